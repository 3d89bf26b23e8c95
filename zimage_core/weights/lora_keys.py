"""The names in LoRA files: which layer a tensor changes, which part of the change it is, or whose it is.

Every trainer writes a prefix, the path of a layer, and a part's name. Dots, underscores and dashes are one
and the same here: then a path is looked up as it is, whichever trainer wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from ..config import NanoConfig, S3DiTConfig
from .keys import FUSED, PREFERENCE, TRANSFORMER, rename

HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
ADAPTER = r"(?:\.(?!bias$)[A-Za-z]\w*)??"  # peft's name of the adapter, as in lora_A.default.weight
PARTS = {  # part of a change, as ComfyUI's adapters name it -> what trainers write behind a path
    "lora_down": rf"\.lora_(?:down|A){ADAPTER}(?:\.weight)?|[._]lora\.down\.weight|"
    r"\.lora_linear_layer\.down\.weight",
    "lora_up": rf"\.lora_(?:up|B){ADAPTER}(?:\.weight)?|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "up_bias": rf"\.lora_(?:up|B){ADAPTER}\.bias",
    "alpha": r"\.(?:lora_)?alpha",
    "dora_scale": rf"\.dora_scale|\.lora_magnitude_vector{ADAPTER}(?:\.weight)?",
    **{part: rf"\.{part}" for part in (*HADA, *LOKR)},
    "diff": r"\.(?:diff|w_norm)",
    "diff_b": r"\.(?:diff_b|b_norm)",
}
_PART = "|".join(f"(?P<{part}>{how})" for part, how in PARTS.items())
_KEY = re.compile(rf"(?P<path>.+?)(?:{_PART})", re.DOTALL)

PREFIXES = (  # before the path, in any order and number; with underscores for all marks
    "base_model_model_",
    "model_diffusion_model_",
    "diffusion_model_",
    "transformer_",
    "unet_",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "text_encoders_",
    "text_encoder_",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "te_",
    "qwen3_4b_",
    "_orig_mod_",
    "module_",
    "model_",
)
# Of the host's networks, and of ours.
_ROOT = re.compile(r"diffusion_model\.|(?:.+\.)?transformer\.model\.|model\.")

TEXT_ENCODER = re.compile(
    r"(?:.*_)?(?:(?:text_encoders?|te\d?)_|(?:self_attn_[qkvo]|mlp_(?:gate|up|down))_proj$)"
)
NO_CHANGES = (  # pattern in a name without a part that is read -> what it is
    (re.escape(PREFERENCE), "a setting of attention for newer ComfyUIs, no change of weights"),
    (r"\.(?:oft|boft)_|\.oft_R", "OFT is not read here"),
    (r"\.[ab][12]\.weight$", "GLoRA is not read here"),
    (r"\.lora_mid|\.(?:hada|lokr)_t\d", "for a convolution, and Z-Image has none"),
    (r"\.set_weight$", "a weight in place of the model's, which is not read here"),
    (r"^control_|controlnet", "of a ControlNet: use Z-Image ControlNet Loader"),
)
OTHERS = (  # pattern in a path, with underscores for all marks -> whose it is
    (r"text_model_encoder|lora_te[12]?_text_", "of CLIP, the text encoder of SD, SDXL and Flux"),
    (r"encoder_block_\d+_layer|lora_te3_|t5xxl", "of T5, the text encoder of SD3 and Flux"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "of Flux"),
    (r"joint_blocks", "of SD3"),
    (r"(?:input|output|middle|down|up|mid)_blocks?_", "of SD or SDXL"),
    (r"transformer_blocks_\d+_(?:(?:img|txt)_|attn_add_)", "of Qwen-Image, or of Flux or SD3"),
    (r"transformer_blocks_\d+", "of Qwen-Image, SD3, Flux or LTX-Video"),
    (r"blocks_\d+_(?:self_attn|cross_attn|ffn)", "of Wan or Anima"),
    (r"layers_\d+_attn_|caption_projection|time_caption_embed", "of Lumina 2"),
    (r"siglip_", "of Z-Image's omni models, and this model has no such layers"),
)
WIDTHS = {2304: "Lumina 2", S3DiTConfig.dim: "Z-Image", NanoConfig().transformer.dim: "the built-in nano"}
NO_NAME = "no layer of this model has such a name"


class Place(NamedTuple):
    """Where a change goes: a layer, and of fused rows the part that its name means (None: all of them)."""

    layer: str
    rows: str | None = None


def split_key(key: str) -> tuple[str, str] | None:
    """A tensor's name -> path of the layer as it is written, part of the change; None: no part of one."""
    found = _KEY.fullmatch(key)
    return (found["path"], found.lastgroup) if found else None


def underscored(path: str) -> str:
    return re.sub(r"[.-]", "_", path)


def places(shapes: Mapping[str, torch.Size]) -> dict[str, Place]:
    """{any name of a layer, underscored and without prefixes: the place}; shapes: of a model's parameters."""
    found = {}
    for layer in {key.rpartition(".")[0] for key in shapes if key.endswith((".weight", ".bias"))}:
        path = _ROOT.sub("", layer, count=1) if _ROOT.match(layer) else layer
        for name in (path, rename(path, TRANSFORMER, reverse=True)):
            found[underscored(name)] = Place(layer)
        block, _, last = path.rpartition(".")
        if last == "out" and block.endswith("attention"):
            found[underscored(f"{block}.to_out")] = Place(layer)
        if last == "qkv":
            found[underscored(f"{block}.to_qkv")] = Place(layer)
            found |= {underscored(f"{block}.{rows}"): Place(layer, rows) for rows in FUSED}
    return found


def place_of(path: str, known: Mapping[str, Place]) -> Place | None:
    """Of a path as a file has it; known: see `places`."""
    names = (*_without_prefixes(underscored(path)),)
    return next((known[name] for name in names if name in known), None)


def _without_prefixes(name: str) -> Iterable[str]:
    """The name, and what is left of it after each prefix."""
    while True:
        yield name
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return
        name = name[len(prefix) :]


def why_not(key: str, known: Mapping[str, Place], has_text_encoder: bool) -> str:
    """A guess why no layer of the model takes this tensor."""
    split = split_key(key)
    if split is None:
        found = (why for pattern, why in NO_CHANGES if re.search(pattern, key))
        return next(found, "no part of a LoRA, LoHa, LoKr, DoRA or difference")
    path = underscored(split[0])
    for name in _without_prefixes(path):
        if above := _number_above(name, known):
            return above
    if TEXT_ENCODER.match(path) and not has_text_encoder and "text_model" not in path:
        return "for the text encoder, and no clip is linked"
    found = (why for pattern, why in (*OTHERS, *NO_CHANGES) if re.search(pattern, path))
    return next(found, NO_NAME)


def _number_above(name: str, known: Mapping[str, Place]) -> str | None:
    """What is to be said where only the number of the layer is wrong."""
    if (number := re.search(r"(?<=_)\d+(?=_)", name)) is None:
        return None
    start, end = name[: number.start()], name[number.end() :]
    count = next((n for n in range(len(known)) if f"{start}{n}{end}" not in known), 0)
    if count == 0 or len(number[0]) < 5 and int(number[0]) < count:
        return None
    return f"layer {number[0][:8]} of {start.strip('_')}, and this model has 0 to {count - 1}"
