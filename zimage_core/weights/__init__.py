"""Weights in the wild: any file, folder or dict that people have -> our modules."""

from .checkpoint import Checkpoint
from .errors import WeightsError
from .lora import LoraFile, LoraFit, fit_lora, read_lora
from .modules import (
    load_autoencoder,
    load_control,
    load_text_encoder,
    load_transformer,
    load_vision_encoder,
)
from .readers import (
    READERS,
    describe,
    parts_of,
    read_autoencoder,
    read_control,
    read_text_encoder,
    read_transformer,
    read_vision_encoder,
)

__all__ = [
    "READERS",
    "Checkpoint",
    "LoraFile",
    "LoraFit",
    "WeightsError",
    "describe",
    "fit_lora",
    "load_autoencoder",
    "load_control",
    "load_text_encoder",
    "load_transformer",
    "load_vision_encoder",
    "parts_of",
    "read_autoencoder",
    "read_control",
    "read_lora",
    "read_text_encoder",
    "read_transformer",
    "read_vision_encoder",
]
