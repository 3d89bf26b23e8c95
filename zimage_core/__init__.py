"""Z-Image as a library: the model, its weights and its prompts, without ComfyUI."""

from .autoencoder import AutoencoderKL
from .config import AutoencoderConfig, Qwen3Config, S3DiTConfig
from .pipeline import ZImagePipeline
from .text_encoder import Qwen3TextEncoder
from .transformer import S3DiT

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "Qwen3Config",
    "Qwen3TextEncoder",
    "S3DiT",
    "S3DiTConfig",
    "ZImagePipeline",
]
