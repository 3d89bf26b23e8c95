"""Weights in the wild: any file, folder or dict that people have -> our modules."""

from .checkpoint import (
    READERS,
    Checkpoint,
    describe,
    load_autoencoder,
    load_text_encoder,
    load_transformer,
    read_autoencoder,
    read_text_encoder,
    read_transformer,
)
from .errors import WeightsError

__all__ = [
    "READERS",
    "Checkpoint",
    "WeightsError",
    "describe",
    "load_autoencoder",
    "load_text_encoder",
    "load_transformer",
    "read_autoencoder",
    "read_text_encoder",
    "read_transformer",
]
