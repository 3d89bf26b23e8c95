"""Z-Image as a library: the model, its weights and its prompts, without ComfyUI."""

from .config import AutoencoderConfig, Qwen3Config, S3DiTConfig
from .model.autoencoder import AutoencoderKL
from .model.s3dit import S3DiT
from .model.text_encoder import Qwen3TextEncoder
from .pipeline import ZImagePipeline

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "Qwen3Config",
    "Qwen3TextEncoder",
    "S3DiT",
    "S3DiTConfig",
    "ZImagePipeline",
]
