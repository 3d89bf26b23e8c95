"""Z-Image as a library: the model, its weights and its prompts, without ComfyUI."""

from .config import AutoencoderConfig, NanoConfig, Qwen3Config, S3DiTConfig
from .text_encoder import Qwen3TextEncoder
from .transformer import S3DiT

__all__ = ["AutoencoderConfig", "NanoConfig", "Qwen3Config", "Qwen3TextEncoder", "S3DiT", "S3DiTConfig"]
