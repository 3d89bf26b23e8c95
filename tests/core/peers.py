"""The reference implementations with our random weights in them."""

from __future__ import annotations

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from tests.core.reference import Reference
from zimage_core import S3DiT
from zimage_core.weights.keys import transformer_to_diffusers


def reference_of(model: S3DiT) -> Reference:
    c = model.config
    return Reference(
        transformer_to_diffusers(model.state_dict()), c.n_heads, c.axes_dims, c.rope_theta, c.norm_eps
    )


def diffusers_of(model: S3DiT) -> ZImageTransformer2DModel:
    """diffusers fixes the timestep MLP at 1024, so a config of ours with another width gets one put in."""
    c = model.config
    peer = ZImageTransformer2DModel(
        dim=c.dim, n_layers=c.n_layers, n_refiner_layers=c.n_refiner_layers,
        n_heads=c.n_heads, n_kv_heads=c.n_kv_heads,
        norm_eps=c.norm_eps, cap_feat_dim=c.cap_feat_dim, rope_theta=c.rope_theta, t_scale=c.t_scale,
        axes_dims=list(c.axes_dims), axes_lens=[1536, 512, 512], in_channels=c.in_channels,
        siglip_feat_dim=c.siglip_feat_dim,
    )  # fmt: skip
    if c.t_hidden != 1024:
        peer.t_embedder.mlp = nn.Sequential(
            nn.Linear(256, c.t_hidden), nn.SiLU(), nn.Linear(c.t_hidden, c.t_dim)
        )
    peer.load_state_dict(transformer_to_diffusers(model.state_dict()))
    return peer.to(next(model.parameters()).dtype).eval().requires_grad_(False)


def diffusers_velocity(
    peer: ZImageTransformer2DModel, x: Tensor, sigma: Tensor, captions: list[Tensor]
) -> Tensor:
    out = peer(list(x.unsqueeze(2).unbind(0)), 1.0 - sigma, captions, return_dict=False)[0]
    return -torch.stack(list(out)).squeeze(2)
