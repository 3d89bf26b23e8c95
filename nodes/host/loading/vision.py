"""A SigLIP 2 file -> the host's CLIP_VISION, at any size; by our own encoder where the host has none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management as management
import comfy.model_patcher
import torch
from torch import Tensor

from ....zimage_core.model.vision import VisionEncoder
from ....zimage_core.weights import load_vision_encoder, read_vision_encoder

HOSTS_OWN = "siglip2_vision_model"  # its name in the host's table of encoders


def load_vision(path: Path) -> Any:
    """CLIP_VISION. Raises WeightsError when the file is no SigLIP 2 naflex."""
    checkpoint = read_vision_encoder(path)
    logging.info("Z-Image vision encoder: %s", checkpoint.summary)
    if HOSTS_OWN not in getattr(comfy.clip_vision, "IMAGE_ENCODERS", {}):
        return Vision(load_vision_encoder(path, dtype=torch.float32))
    c = checkpoint.config
    vision = comfy.clip_vision.ClipVisionModel(
        {
            "model_type": HOSTS_OWN,
            "hidden_act": "gelu_pytorch_tanh",
            "num_channels": 3,
            "image_size": -1,  # any
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "patch_size": c.patch_size,
            "num_patches": c.max_num_patches,
        }
    )
    vision.load_sd(checkpoint.plain())
    return vision


class Vision:
    """Our encoder as a CLIP_VISION; its output has what omni conditioning needs, and no pooled features."""

    def __init__(self, encoder: VisionEncoder) -> None:
        self.patcher = comfy.model_patcher.ModelPatcher(
            encoder,
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )

    def encode_image(self, image: Tensor, crop: bool = False) -> comfy.clip_vision.Output:
        """image: [B, H, W, 3] in [0, 1]. Nothing is cropped: the encoder takes any shape."""
        management.load_model_gpu(self.patcher)
        encoder = self.patcher.model
        with torch.no_grad():
            features = encoder.features(image.to(self.patcher.load_device))  # [B, rows, columns, C]
        patch = encoder.config.patch_size
        output = comfy.clip_vision.Output()
        output["last_hidden_state"] = features.flatten(1, 2).to(management.intermediate_device())
        output["image_sizes"] = [(3, *(patch * count for count in features.shape[1:3]))] * len(image)
        return output
