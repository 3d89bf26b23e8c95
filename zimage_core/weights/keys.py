"""Parameter names in the wild <-> ours, which are those of ComfyUI's single files.

Tables, not code: every rule rewrites a layer's path and so carries `.weight`, `.bias` and quantisation
companions alike.
Rules are anchored to whole path parts, which makes the mapping idempotent: our own names pass through
unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WeightsError
from .quantisers import refuse_whole_numbers

ATTENTION = (
    r"(?P<block>(?:(?:control_)?(?:layers|noise_refiner)|context_refiner|siglip_refiner)\.\d+\.attention)"
)


@dataclass(frozen=True)
class Rename:
    """diffusers' path pattern and ours, each as (pattern to find, template to write)."""

    theirs: str
    ours: str


# Groups named in a pattern are kept; the rest of a key (".weight" ...) follows the path.
TRANSFORMER = (
    Rename("all_x_embedder.2-1", "x_embedder"),
    Rename("all_final_layer.2-1", "final_layer"),
    Rename("{block}.to_out.0", "{block}.out"),
    Rename("{block}.norm_q", "{block}.q_norm"),
    Rename("{block}.norm_k", "{block}.k_norm"),
)
TEXT_ENCODER = (  # llama.cpp's names, as in GGUF files
    Rename("token_embd", "model.embed_tokens"),
    Rename("output_norm", "model.norm"),
    Rename("blk.{n}.attn_norm", "model.layers.{n}.input_layernorm"),
    Rename("blk.{n}.attn_q", "model.layers.{n}.self_attn.q_proj"),
    Rename("blk.{n}.attn_k", "model.layers.{n}.self_attn.k_proj"),
    Rename("blk.{n}.attn_v", "model.layers.{n}.self_attn.v_proj"),
    Rename("blk.{n}.attn_output", "model.layers.{n}.self_attn.o_proj"),
    Rename("blk.{n}.attn_q_norm", "model.layers.{n}.self_attn.q_norm"),
    Rename("blk.{n}.attn_k_norm", "model.layers.{n}.self_attn.k_norm"),
    Rename("blk.{n}.ffn_norm", "model.layers.{n}.post_attention_layernorm"),
    Rename("blk.{n}.ffn_gate", "model.layers.{n}.mlp.gate_proj"),
    Rename("blk.{n}.ffn_up", "model.layers.{n}.mlp.up_proj"),
    Rename("blk.{n}.ffn_down", "model.layers.{n}.mlp.down_proj"),
)
# By torch.compile, checkpointing, FSDP and DDP
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.|^module\.|(?<=^model\.)module\."
)
FUSED = ("to_q", "to_k", "to_v")  # rows of attention.qkv, in this order
PREFERENCE = ".comfy_attention.config"  # JSON in bytes: the attention that newer ComfyUIs use in a block
LEFTOVERS = {  # what some files hold beside the weights, and nothing here needs
    "transformer": re.compile(rf"norm_final\.|.*{re.escape(PREFERENCE)}$"),
    "text_encoder": re.compile(r"lm_head\.|model\.lm_head\.|.*\.rotary_emb\.inv_freq$|output\.|rope_freqs\."),
    "autoencoder": re.compile(r"loss\."),
    "vision": re.compile(r"head\."),
    "control": re.compile(r"(?!control_|scaled_fp8$)"),
}

PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer.", ""),
    "text_encoder": ("text_encoders.qwen3_4b.transformer.", "qwen3_4b.transformer.", "text_encoder.", ""),
    "autoencoder": ("vae.", "first_stage_model.", ""),
    "vision": ("vision_model.", "siglip.vision_model.", "siglip.", ""),
    "control": ("model.diffusion_model.", "diffusion_model.", "transformer.", "controlnet.", ""),
}
CLAIMED = tuple({prefix for prefixes in PREFIXES.values() for prefix in prefixes if prefix})
SIGNATURES = {  # a layer that only this kind of file has, in each dialect
    "transformer": ("cap_embedder.1.weight",),
    "text_encoder": ("model.embed_tokens.weight", "embed_tokens.weight", "token_embd.weight"),
    "autoencoder": ("decoder.conv_in.weight",),
    "vision": ("embeddings.patch_embedding.weight",),
    "control": ("control_all_x_embedder.2-1.weight",),
}

# The autoencoder: diffusers on the left, Flux's own on the right; {d} counts levels down, {u} counts them
# from the other end.
AUTOENCODER = (
    Rename("encoder.down_blocks.{d}.resnets.{r}.conv_shortcut", "encoder.down.{d}.block.{r}.nin_shortcut"),
    Rename("encoder.down_blocks.{d}.resnets.{r}", "encoder.down.{d}.block.{r}"),
    Rename("encoder.down_blocks.{d}.downsamplers.0", "encoder.down.{d}.downsample"),
    Rename("decoder.up_blocks.{u}.resnets.{r}.conv_shortcut", "decoder.up.{u}.block.{r}.nin_shortcut"),
    Rename("decoder.up_blocks.{u}.resnets.{r}", "decoder.up.{u}.block.{r}"),
    Rename("decoder.up_blocks.{u}.upsamplers.0", "decoder.up.{u}.upsample"),
    Rename("{side}.mid_block.resnets.0", "{side}.mid.block_1"),
    Rename("{side}.mid_block.resnets.1", "{side}.mid.block_2"),
    Rename("{side}.mid_block.attentions.0.group_norm", "{side}.mid.attn_1.norm"),
    Rename("{side}.mid_block.attentions.0.to_q", "{side}.mid.attn_1.q"),
    Rename("{side}.mid_block.attentions.0.to_k", "{side}.mid.attn_1.k"),
    Rename("{side}.mid_block.attentions.0.to_v", "{side}.mid.attn_1.v"),
    Rename("{side}.mid_block.attentions.0.to_out.0", "{side}.mid.attn_1.proj_out"),
    Rename("{side}.conv_norm_out", "{side}.norm_out"),
)
GROUPS = {
    "block": ATTENTION,
    "n": r"(?P<n>\d+)",
    "d": r"(?P<d>\d+)",
    "u": r"(?P<u>\d+)",
    "r": r"(?P<r>\d+)",
    "side": "(?P<side>encoder|decoder)",
}


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"(\{\w+\})", template)
    body = "".join(GROUPS[part[1:-1]] if part.startswith("{") else re.escape(part) for part in parts)
    return re.compile(rf"^{body}(?=\.|$)")


def rename(key: str, table: Iterable[Rename], levels: int = 0, reverse: bool = False) -> str:
    """One key through a table; `levels` is the number of autoencoder levels, which {u} counts backwards."""
    for rule in table:
        source, target = (rule.ours, rule.theirs) if reverse else (rule.theirs, rule.ours)
        if match := _pattern(source).match(key):
            groups = match.groupdict()
            if "u" in groups:
                groups["u"] = levels - 1 - int(groups["u"])
            return target.format(**groups) + key[match.end() :]
    return key


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers around modules put into it."""
    return WRAPPERS.sub("", name)


def strip_prefix(tensors: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of one part of a file, without its prefix, and that prefix; empty when it has no such part.

    Without a prefix it is all that no other part claims. A prefix that no table has counts where only one is
    there, averages of training (`ema`) apart.
    """
    for prefix in (*PREFIXES[kind], *_other_prefixes(tensors, kind)):
        if any(prefix + signature in tensors for signature in SIGNATURES[kind]):
            foreign = () if prefix else CLAIMED
            part = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            return {k: v for k, v in part.items() if not k.startswith(foreign)}, prefix
    return {}, ""


def unclaimed(names: Iterable[str]) -> list[str]:
    """Those that stand under no known prefix of any part."""
    roots = {prefix.split(".")[0] for prefix in CLAIMED}
    return [name for name in names if name.split(".")[0] not in roots]


def _other_prefixes(tensors: Mapping[str, Tensor], kind: str) -> list[str]:
    # not embed_tokens alone: with "model." before it, it would be taken for a prefix of its own
    ends = [f".{signature}" for signature in SIGNATURES[kind][: 1 if kind == "text_encoder" else None]]
    found = {key[: 1 - len(end)] for key in tensors for end in ends if key.endswith(end)}
    plain = [prefix for prefix in found if "ema" not in re.split(r"[._]", prefix)]
    for prefixes in (plain, list(found)):
        if len(prefixes) == 1 and prefixes[0] not in CLAIMED:
            return prefixes
    return []


def without_leftovers(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """tensors: of one part, without its prefix."""
    return {k: v for k, v in tensors.items() if not LEFTOVERS[kind].match(k)}


def transformer_to_ours(tensors: Mapping[str, Tensor], name: str = "this") -> dict[str, Tensor]:
    """Names only; split q, k, v rows are still split (see `fuse_qkv`).

    Raises WeightsError when a tensor is there under two names; name: the file's.
    """
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        ours = rename(key, TRANSFORMER)
        if ours in out:
            raise WeightsError(f"{name} holds {ours} twice, under two names. Choose another file.")
        out[ours] = value
    return out


def fuse_qkv(tensors: Mapping[str, Tensor], name: str = "this") -> dict[str, Tensor]:
    """attention.to_q, to_k, to_v .weight -> attention.qkv.weight.

    Raises WeightsError when the three do not fit together or are there both ways; name: the file's.
    """
    fused = dict(tensors)
    for first in [k for k in tensors if k.endswith(".attention.to_q.weight")]:
        base = first[: -len("to_q.weight")]
        names = [f"{base}{part}.weight" for part in FUSED]
        if not all(part in fused for part in names):
            continue
        parts = [fused.pop(part) for part in names]
        shapes = [tuple(part.shape) for part in parts]
        if f"{base}qkv.weight" in fused or {len(shape) for shape in shapes} != {2}:
            raise WeightsError(f"{name} holds {base}qkv twice or misshapen: {shapes}. Choose another file.")
        if len({shape[1] for shape in shapes}) != 1:
            raise WeightsError(
                f"{name} has {base}to_q, to_k and to_v of shapes {shapes}, expected as many columns in each. "
                "Choose another file."
            )
        refuse_whole_numbers(name, dict(zip(names, parts, strict=True)))
        if len({part.dtype for part in parts}) != 1:  # fp8 has no common type with others
            parts = [part.bfloat16() if part.element_size() == 1 else part for part in parts]
        fused[f"{base}qkv.weight"] = torch.cat(parts)
    return fused


def transformer_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours -> diffusers; diffusers has no grouped-query attention, so q, k and v are thirds."""
    out = {}
    for key, value in tensors.items():
        if key.endswith(".attention.qkv.weight"):
            base = key[: -len("qkv.weight")]
            out |= {f"{base}{part}.weight": rows for part, rows in zip(FUSED, value.chunk(3), strict=True)}
        else:
            out[rename(key, TRANSFORMER, reverse=True)] = value
    return out


def text_encoder_to_ours(path: str) -> str:
    """One tensor or layer of a Qwen3; the decoder is under `model.`."""
    path = rename(path, TEXT_ENCODER)
    return path if path.startswith("model.") else f"model.{path}"


def autoencoder_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names, and diffusers' linear attention weights [C, C] as Flux's 1x1 convolutions [C, C, 1, 1]."""
    levels = _levels(tensors, r"^decoder\.up_blocks\.(\d+)")
    out = {rename(k, AUTOENCODER, levels): v for k, v in tensors.items()}
    return {
        k: v[:, :, None, None] if ".attn_1." in k and k.endswith(".weight") and v.ndim == 2 else v
        for k, v in out.items()
    }


def autoencoder_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    levels = _levels(tensors, r"^decoder\.up\.(\d+)")
    out = {}
    for key, value in tensors.items():
        if ".attn_1." in key and value.ndim == 4:
            value = value[:, :, 0, 0]
        out[rename(key, AUTOENCODER, levels, reverse=True)] = value
    return out


def _levels(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return max((int(m[1]) + 1 for k in tensors if (m := re.match(pattern, k))), default=0)
