"""The host's own Z-Image network at the sizes of one of our configurations; for scripts inside a ComfyUI."""

from __future__ import annotations

from typing import Any

from zimage_core import S3DiTConfig


def native_config(config: S3DiTConfig) -> Any:
    """The host's Z-Image configuration of these sizes; its own loader knows no others than the real ones."""
    import comfy.supported_models

    c = config
    names = {"image_model": "lumina2", "patch_size": c.patch_size, "in_channels": c.in_channels, "dim": c.dim}
    names |= {"n_layers": c.n_layers, "n_refiner_layers": c.n_refiner_layers, "n_heads": c.n_heads}
    names |= {"n_kv_heads": c.n_kv_heads, "cap_feat_dim": c.cap_feat_dim, "axes_dims": list(c.axes_dims)}
    names |= {"axes_lens": [1536, 512, 512], "rope_theta": c.rope_theta, "ffn_dim_multiplier": 8 / 3}
    names |= {"qk_norm": True, "z_image_modulation": True, "time_scale": c.t_scale}
    return comfy.supported_models.ZImage({**names, "pad_tokens_multiple": c.pad_multiple})


def native_network(config: S3DiTConfig, **place: Any) -> Any:
    """A NextDiT with empty weights; place: dtype and device."""
    import comfy.ops
    from comfy.ldm.lumina.model import NextDiT

    if config.siglip_feat_dim is not None:  # only newer hosts know it
        place["siglip_feat_dim"] = config.siglip_feat_dim
    return NextDiT(
        patch_size=config.patch_size, in_channels=config.in_channels, dim=config.dim,
        n_layers=config.n_layers, n_refiner_layers=config.n_refiner_layers, n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads, ffn_dim_multiplier=8 / 3, norm_eps=config.norm_eps, qk_norm=True,
        cap_feat_dim=config.cap_feat_dim, axes_dims=list(config.axes_dims), axes_lens=[1536, 512, 512],
        rope_theta=config.rope_theta, z_image_modulation=True, time_scale=config.t_scale,
        pad_tokens_multiple=config.pad_multiple, image_model="lumina2",
        operations=comfy.ops.disable_weight_init, **place,
    )  # fmt: skip
