"""Tensor shapes -> configuration. Every size is read, never assumed: the stacks disagree at small sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import AutoencoderConfig, ControlConfig, Qwen3Config, S3DiTConfig, VisionConfig
from .errors import WeightsError, incomplete

AXES = (2, 3, 3)  # eighths of the head that turn with frame, row and column: 32, 48, 48 of 128
MING = "__ming_image__"  # a tensor by which ComfyUI's files say so
VISION_HEADS = {1152: 72}  # width of a head where it is not 64; no tensor's shape tells


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for key in tensors if (m := re.match(pattern, key))})


def _shape(name: str, tensors: Mapping[str, Tensor], key: str, ndim: int = 2) -> tuple[int, ...]:
    if key not in tensors:
        raise WeightsError(f"{name} has no tensor {key}. {incomplete(name)}")
    shape = tuple(tensors[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise WeightsError(
            f"{name} has a tensor of the wrong shape: {key} {shape}, expected {ndim} dimensions. Download it "
            "again or choose another file."
        )
    return shape


def refuse_relatives(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Raises WeightsError for models that are made of Z-Image's blocks and are another model.

    tensors: under the file's own names. Looked at first: what else such a file is, quantised or not, does not
    matter.
    """
    if any(key.endswith(MING) for key in tensors) or _image_model(metadata) == "ming_image":
        raise WeightsError(f"{name} is a Ming-Image file, not Z-Image. Load it with ComfyUI's own loader.")
    if any("dec_net.cond_embed." in key for key in tensors):
        raise WeightsError(
            f"{name} is a pixel-space Z-Image, which has no latents. Load it with ComfyUI's own loader."
        )


def refuse_other_qwens(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError for a Qwen that sees pictures: its text half has Qwen3's sizes, not its weights."""
    if any(re.search(r"(?:^|\.)(?:visual|language_model)\.", key) for key in tensors):
        raise WeightsError(
            f"{name} is a Qwen3-VL or a relative, which sees pictures. Z-Image needs Qwen3-4B "
            "(qwen_3_4b.safetensors): choose that."
        )


def _image_model(metadata: Mapping[str, str]) -> str | None:
    """What ComfyUI's writers note about a transformer in a file's metadata."""
    try:
        return json.loads(metadata["config"])["transformer"]["image_model"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def transformer_config(name: str, tensors: Mapping[str, Tensor]) -> S3DiTConfig:
    """tensors: under our names, q/k/v fused. Raises WeightsError for Lumina 2 and for incomplete files."""

    def shape(key: str) -> tuple[int, ...]:
        return _shape(name, tensors, key)

    if "cap_pad_token" not in tensors:
        raise WeightsError(
            f"{name} has no cap_pad_token: it looks like Lumina 2, Ming-Image or another relative, not "
            "Z-Image. Load it with ComfyUI's own loader."
        )
    dim, patch_width = shape("x_embedder.weight")
    t_dim, t_hidden = shape("t_embedder.mlp.2.weight")
    return S3DiTConfig(
        dim=dim,
        n_layers=_count(tensors, r"layers\.(\d+)\."),
        n_refiner_layers=_count(tensors, r"noise_refiner\.(\d+)\."),
        in_channels=patch_width // S3DiTConfig.patch_size**2,
        cap_feat_dim=shape("cap_embedder.1.weight")[1],
        t_hidden=t_hidden,
        t_dim=t_dim,
        siglip_feat_dim=shape("siglip_embedder.1.weight")[1]
        if "siglip_embedder.1.weight" in tensors
        else None,
        **_block_sizes(name, tensors, "layers.0"),
    )


def _block_sizes(name: str, tensors: Mapping[str, Tensor], block: str) -> dict:
    """S3DiTConfig's fields about the inside of a block."""

    def shape(key: str, ndim: int = 2) -> tuple[int, ...]:
        return _shape(name, tensors, f"{block}.{key}", ndim)

    head_dim = shape("attention.q_norm.weight", 1)[0]
    n_heads = shape("attention.out.weight")[1] // head_dim
    return {
        "n_heads": n_heads,
        "n_kv_heads": (shape("attention.qkv.weight")[0] // head_dim - n_heads) // 2,
        "ffn_dim": shape("feed_forward.w1.weight")[0],
        "axes_dims": tuple(head_dim * eighths // 8 for eighths in AXES),
    }


def control_config(name: str, tensors: Mapping[str, Tensor]) -> ControlConfig:
    """tensors: under our names, q/k/v fused. Raises WeightsError for incomplete files."""
    dim, patch_width = _shape(name, tensors, "control_all_x_embedder.2-1.weight")
    routing = "tokens"
    if "control_noise_refiner.0.after_proj.weight" in tensors:
        routing = "refiner" if _trained(tensors, "control_noise_refiner.0.after_proj") else "layers"
    blocks = S3DiTConfig(
        dim=dim,
        n_layers=_count(tensors, r"control_layers\.(\d+)\."),
        n_refiner_layers=_count(tensors, r"control_noise_refiner\.(\d+)\."),
        t_dim=_shape(name, tensors, "control_layers.0.adaLN_modulation.0.weight")[1],
        **_block_sizes(name, tensors, "control_layers.0"),
    )
    return ControlConfig(blocks, patch_width // S3DiTConfig.patch_size**2, routing)


def _trained(tensors: Mapping[str, Tensor], layer: str) -> bool:
    """Whether a layer that training starts at zero has moved, by those of its values that were read."""
    values = (tensors.get(f"{layer}.{name}") for name in ("weight", "bias"))
    return any(v is not None and not v.is_meta and bool(v.float().any()) for v in values)


def text_encoder_config(name: str, tensors: Mapping[str, Tensor]) -> Qwen3Config:
    def shape(key: str, ndim: int = 2) -> tuple[int, ...]:
        return _shape(name, tensors, key, ndim)

    vocab_size, hidden_size = shape("model.embed_tokens.weight")
    if "model.layers.0.self_attn.q_norm.weight" not in tensors:
        raise WeightsError(
            f"{name} is not a Qwen3 model (it has no q_norm; {hidden_size} wide). Z-Image needs Qwen3-4B, "
            f"2560 wide (qwen_3_4b.safetensors): choose that."
        )
    head_dim = shape("model.layers.0.self_attn.q_norm.weight", 1)[0]
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shape("model.layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=_count(tensors, r"model\.layers\.(\d+)\."),
        num_attention_heads=shape("model.layers.0.self_attn.q_proj.weight")[0] // head_dim,
        num_key_value_heads=shape("model.layers.0.self_attn.k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
    )


def autoencoder_config(name: str, tensors: Mapping[str, Tensor]) -> AutoencoderConfig:
    def shape(key: str) -> tuple[int, ...]:
        return _shape(name, tensors, key, 4)

    ch, in_channels = shape("encoder.conv_in.weight")[:2]
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    widths = [shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    z_channels = shape("decoder.conv_in.weight")[1]
    if z_channels != AutoencoderConfig.z_channels:
        raise WeightsError(
            f"{name} has {z_channels} latent channels, Z-Image needs the Flux.1 autoencoder with "
            f"{AutoencoderConfig.z_channels} (ae.safetensors)."
        )
    return AutoencoderConfig(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=_count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        in_channels=in_channels,
        z_channels=z_channels,
    )


def refuse_quant_conv(name: str, tensors: dict[str, Tensor]) -> None:
    """Takes out the 1x1 convolutions around the latents, which change nothing in files saved by ComfyUI.

    Raises WeightsError when they do change something: then it is another autoencoder.
    """
    for layer in ("quant_conv", "post_quant_conv"):
        weight, bias = (tensors.pop(f"{layer}.{part}", None) for part in ("weight", "bias"))
        if weight is None:
            continue
        square = weight.ndim == 4 and weight.shape[2:] == (1, 1) and weight.shape[0] == weight.shape[1]
        same = (
            square and not weight.is_meta and torch.equal(weight.flatten(1).float(), torch.eye(len(weight)))
        )
        if not same or (bias is not None and bias.float().any()):
            raise WeightsError(
                f"{name} has a {layer} that changes latents, which Z-Image's autoencoder has not. Use the "
                "Flux.1 autoencoder (ae.safetensors)."
            )


def vision_encoder_config(name: str, tensors: Mapping[str, Tensor]) -> VisionConfig:
    """tensors: under our names. Raises WeightsError for CLIP, DINO and the SigLIPs of one fixed size."""

    def shape(key: str) -> tuple[int, ...]:
        return _shape(name, tensors, f"vision_model.{key}")

    if tensors["vision_model.embeddings.patch_embedding.weight"].ndim == 4:
        raise WeightsError(
            f"{name} is a vision encoder for one picture size, such as CLIP or the first SigLIP. Omni "
            f"weights need SigLIP 2 naflex (siglip2-so400m-patch16-naflex)."
        )
    hidden_size, pixels = shape("embeddings.patch_embedding.weight")
    return VisionConfig(
        hidden_size=hidden_size,
        intermediate_size=shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=_count(tensors, r"vision_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=hidden_size // VISION_HEADS.get(hidden_size, 64),
        patch_size=round((pixels / 3) ** 0.5),
        max_num_patches=shape("embeddings.position_embedding.weight")[0],
    )
