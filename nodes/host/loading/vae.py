"""An autoencoder file -> the host's VAE, narrow ones included."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.sd
import torch

from ....zimage_core.config import AutoencoderConfig
from ....zimage_core.weights import read_autoencoder
from ..running.first_not_finite import check_pictures


def load_vae(path: Path) -> Any:
    """The host's VAE. Raises WeightsError when the file is no 16-channel Flux autoencoder."""
    checkpoint = read_autoencoder(path)
    logging.info("Z-Image autoencoder: %s", checkpoint.summary)
    state, c = checkpoint.plain(), checkpoint.config
    if c == AutoencoderConfig():
        vae = comfy.sd.VAE(sd=state)
        check_pictures(vae)
        return vae
    moments, z = 2 * c.z_channels, c.z_channels
    first = next(iter(state.values()))
    state |= {  # the host's class for given sizes has these two; identities leave the rest as it is
        "quant_conv.weight": torch.eye(moments).to(first)[:, :, None, None],
        "quant_conv.bias": torch.zeros(moments).to(first),
        "post_quant_conv.weight": torch.eye(z).to(first)[:, :, None, None],
        "post_quant_conv.bias": torch.zeros(z).to(first),
    }
    sizes = {
        "double_z": True,
        "z_channels": z,
        "resolution": 256,
        "in_channels": c.in_channels,
        "out_ch": c.in_channels,
        "ch": c.ch,
        "ch_mult": list(c.ch_mult),
        "num_res_blocks": c.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(sd=state, config={"params": {"ddconfig": sizes, "embed_dim": z}})
    vae.latent_channels = z
    check_pictures(vae)
    return vae
