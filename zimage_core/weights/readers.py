"""A file of any dialect -> one part of the model under our names, with its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions.control import ControlNet
from ..model.autoencoder import AutoencoderKL
from ..model.s3dit import S3DiT
from ..model.text_encoder import Qwen3TextEncoder
from ..model.vision import VisionEncoder
from . import detect, keys, layouts, quantised
from .checkpoint import Checkpoint
from .errors import SHARD, WeightsError, incomplete, some
from .files import RawFile, folder_of, lacks, names_in, read_tensors
from .quantisers import quantiser_of, refuse_quantisers, refuse_whole_numbers
from .values import check_small, not_finite

Source = str | os.PathLike | Mapping[str, Tensor] | RawFile

LABELS = {
    "transformer": "Z-Image transformer",
    "text_encoder": "text encoder",
    "autoencoder": "autoencoder (VAE)",
    "vision": "vision encoder",
    "control": "Z-Image ControlNet",
}


def _raw(source: Source, with_values: bool, kind: str) -> RawFile:
    if isinstance(source, RawFile):
        raw = source
    elif isinstance(source, Mapping):
        raw = RawFile("the given dict", dict(source))
    else:
        raw = read_tensors(folder_of(Path(source), kind), with_values)
    return _unwrapped(raw) if any(keys.WRAPPERS.search(name) for name in raw.tensors) else raw


def _unwrapped(raw: RawFile) -> RawFile:
    """The same without what wrappers put into names. Raises WeightsError when two names become one."""
    tensors = {keys.unwrapped(name): value for name, value in raw.tensors.items()}
    if len(tensors) != len(raw.tensors):
        raise WeightsError(
            f"{raw.name} holds tensors twice, with and without _orig_mod. Choose another file."
        )
    formats = {keys.unwrapped(layer): spec for layer, spec in raw.formats.items()}
    metadata = quantised.renamed_metadata(raw.metadata, keys.unwrapped)
    return RawFile(raw.name, tensors, metadata, formats)


def read_transformer(source: Source, values: bool = True) -> Checkpoint:
    """values: False checks and describes a file by its header, with tensors that hold nothing.

    Raises WeightsError when the file is not a Z-Image transformer, is incomplete, or has tensors of wrong
    shape.
    """
    part = _part(source, "transformer", values)
    detect.refuse_relatives(part.file.name, part.file.tensors, part.file.metadata)
    if "cap_pad_token" in part.tensors:
        _blocks(part)
    for pad in ("x_pad_token", "cap_pad_token", "siglip_pad_token"):  # GGUF-born files hold them flat
        if pad in part.tensors:
            part.tensors[pad] = part.tensors[pad].reshape(1, -1)
    return _checkpoint(part, detect.transformer_config, lambda config: S3DiT(config, device="meta"))


def mapped_transformer(source: Source) -> tuple[dict[str, Tensor], quantised.Formats]:
    """A transformer's tensors and formats as they lie in the file, mapped: q, k and v may be apart.

    For files that `read_transformer` took, whose checks are not repeated.
    """
    part = _part(source, "transformer", True)
    _unfused(part)
    return part.tensors, part.formats


def read_control(source: Source, values: bool = True) -> Checkpoint:
    """A Z-Image-Fun-Controlnet-Union of any version; what else a file holds is left out.

    Raises WeightsError when the file is no control, is incomplete, or has tensors that no version has.
    """
    part = _part(source, "control", values)
    _blocks(part)

    def config(name: str, tensors: dict[str, Tensor]) -> Any:
        check_small(name, tensors)
        found = detect.control_config(name, tensors)
        if found.routing == "layers":  # version 2.0 brings a refiner that it was trained without
            for key in [k for k in tensors if k.startswith("control_noise_refiner.")]:
                part.formats.pop(key.removesuffix(".weight"), None)
                del part.tensors[key]
        return found

    return _checkpoint(part, config, lambda config: ControlNet(config, device="meta"))


def read_text_encoder(source: Source, values: bool = True) -> Checkpoint:
    """Qwen3 of any size, with or without its output head, which is the embedding once more."""
    raw = _raw(source, values, "text_encoder")
    detect.refuse_other_qwens(raw.name, raw.tensors)
    part = _part(raw, "text_encoder", values)
    _scales(part)
    part.tensors = {keys.text_encoder_to_ours(k): v for k, v in part.tensors.items()}
    part.formats = {keys.text_encoder_to_ours(k): v for k, v in part.formats.items()}

    def network(config: Any, head: bool = "model.norm.weight" in part.tensors) -> nn.Module:
        return Qwen3TextEncoder(config, device="meta", language_model=head)

    # the last layer serves the head alone, and may be there without it
    return _checkpoint(part, detect.text_encoder_config, network, lambda config: network(config, head=True))


def read_autoencoder(source: Source, values: bool = True) -> Checkpoint:
    """The Flux-style autoencoder, in ComfyUI's or diffusers' names."""
    part = _part(source, "autoencoder", values)
    _applied_scales(part)
    part.tensors = keys.autoencoder_to_ours(part.tensors)
    detect.refuse_quant_conv(part.file.name, part.tensors)
    return _checkpoint(part, detect.autoencoder_config, lambda config: AutoencoderKL(config, device="meta"))


def read_vision_encoder(source: Source, values: bool = True) -> Checkpoint:
    """SigLIP 2 naflex, from its own file or a folder of a diffusers model."""
    part = _part(source, "vision", values)
    _applied_scales(part)
    part.tensors = {f"vision_model.{k}": v for k, v in part.tensors.items()}
    return _checkpoint(
        part, detect.vision_encoder_config, lambda config: VisionEncoder(config, device="meta")
    )


READERS = {
    "transformer": read_transformer,
    "text_encoder": read_text_encoder,
    "autoencoder": read_autoencoder,
    "vision": read_vision_encoder,
    "control": read_control,
}


@dataclass
class _Part:
    """One part of a file on its way to a Checkpoint."""

    file: RawFile
    kind: str
    prefix: str
    tensors: dict[str, Tensor]
    formats: quantised.Formats = field(default_factory=dict)
    preferences: dict[str, Tensor] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)  # names of what has not the transformer's prefix


def _part(source: Source, kind: str, with_values: bool) -> _Part:
    raw = _raw(source, with_values, kind)
    tensors, prefix = keys.strip_prefix(raw.tensors, kind)
    if not tensors:
        raise WeightsError(
            f"{raw.name} holds no {LABELS[kind]}: {what_is(raw.tensors)}. "
            f"{incomplete(raw.name) if SHARD.search(raw.name) else 'Choose a file that has one.'}"
        )
    preferences = {key: value for key, value in tensors.items() if key.endswith(keys.PREFERENCE)}
    beside = [key for key in raw.tensors if kind == "transformer" and not key.startswith(prefix)]
    return _Part(raw, kind, prefix, keys.without_leftovers(tensors, kind), {}, preferences, beside)


def _scales(part: _Part) -> None:
    """What the file says about quantisation, brought to the one form."""
    name = part.file.name
    if part.file.formats:
        inside = {k: spec for k, spec in part.file.formats.items() if k.startswith(part.prefix)}
        part.formats = {k.removeprefix(part.prefix): spec for k, spec in inside.items()}
        return
    refuse_quantisers(name, part.kind, part.tensors)
    part.tensors, part.formats = quantised.normalise(
        name, part.kind, part.tensors, part.file.metadata, part.prefix, part.file.tensors
    )


def _applied_scales(part: _Part) -> None:
    """For parts that nobody runs in fp8."""
    _scales(part)
    part.tensors = quantised.dequantise_all(part.tensors, part.formats, torch.bfloat16)
    part.formats = {}


def _unfused(part: _Part) -> None:
    """A part made of S3-DiT blocks under our names, q, k and v as they are in the file."""
    _scales(part)
    part.tensors = keys.transformer_to_ours(part.tensors, part.file.name)
    part.formats = {keys.rename(layer, keys.TRANSFORMER): spec for layer, spec in part.formats.items()}


def _blocks(part: _Part) -> None:
    """A part made of S3-DiT blocks: our names, q, k and v fused."""
    _unfused(part)
    quantised.fuse_quantised_qkv(part.tensors, part.formats, keys.FUSED)
    part.tensors = keys.fuse_qkv(part.tensors, part.file.name)


def _checkpoint(
    part: _Part,
    detected: Callable[[str, dict[str, Tensor]], Any],
    network: Callable[[Any], nn.Module],
    largest: Callable[[Any], nn.Module] | None = None,
) -> Checkpoint:
    """Sizes are read from the tensors, and the tensors checked against a network of these sizes.

    largest: makes one with all that a file may hold, where that is more than it must.
    """
    name, kind, tensors = part.file.name, part.kind, part.tensors
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    seen = dict(tensors)  # with matrices as large as what they stand for
    for layer, spec in part.formats.items():
        key = f"{layer}.weight"
        shapes[key] = layouts.shape_of(tensors[key], spec)
        if shapes[key] != tuple(tensors[key].shape):
            seen[key] = torch.empty(shapes[key], device="meta")
    try:
        config = detected(name, seen)
        expected = {k: tuple(v.shape) for k, v in network(config).state_dict().items()}
        known = set(largest(config).state_dict() if largest else expected)
    except WeightsError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{name} has tensors of sizes that do not fit together: {error}. It is damaged, or of "
            "another model: choose another file."
        ) from error
    missing = [k for k in expected if k not in tensors]
    if missing:
        raise WeightsError(
            f"{name} lacks {len(missing)} of {len(expected)} tensors of the {LABELS[kind]}: {some(missing)}. "
            f"{incomplete(name)}"
        )
    wrong = [f"{k} {shapes[k]}, expected {shape}" for k, shape in expected.items() if shapes[k] != shape]
    if wrong:
        raise WeightsError(
            f"{name} has {len(wrong)} tensors of the wrong shape: {some(wrong)}. It is "
            "damaged or of another model: choose another file."
        )
    formats = {layer: spec for layer, spec in part.formats.items() if f"{layer}.weight" in known}
    scales = {f"{layer}.{companion}" for layer in formats for companion in layouts.COMPANIONS}
    roots = {k.split(".")[0] for k in expected}
    if kind == "control":  # all that is left of the file is its own
        roots |= {k.split(".")[0] for k in tensors}
    unknown = [k for k in tensors if k.split(".")[0] in roots and k not in known and k not in scales]
    if unknown:
        raise WeightsError(
            f"{name} has {len(unknown)} tensors that no {LABELS[kind]} has: {some(unknown)}. Without "
            "them its weights would not be what the file means. Choose another file."
        )
    used = known | scales
    left_over = keys.unclaimed([*part.beside, *(k for k in tensors if k not in used)])
    tensors = {k: v for k, v in tensors.items() if k in used}
    weights = {k: v for k, v in tensors.items() if k in known and k.removesuffix(".weight") not in formats}
    refuse_whole_numbers(name, weights)
    check_small(name, weights)
    return Checkpoint(name, kind, config, tensors, formats, part.prefix, part.preferences, left_over)


TELLTALES = (  # key fragment -> what a file with it is
    ("lora_", "it is a LoRA"),
    (".lokr_", "it is a LoKr adapter"),
    (".hada_", "it is a LoHa adapter"),
    ("input_blocks.", "it is a Stable Diffusion UNet"),
    ("double_blocks.", "it is a Flux-family transformer"),
    ("joint_blocks.", "it is Stable Diffusion 3"),
)


def what_is(tensors: Mapping[str, Tensor]) -> str:
    """One sentence part about a file's content, for messages."""
    for kind, label in LABELS.items():
        if keys.strip_prefix(tensors, kind)[0]:
            return f"it is a {label}"
    for fragment, text in TELLTALES:
        if any(fragment in key for key in tensors):
            return text
    if found := quantiser_of(tensors):
        return f"it is quantised by {found[0].label}, which is not read here"
    return f"its {len(tensors)} tensors start with {some(sorted(tensors)) or 'nothing'}"


def parts_of(path: str | os.PathLike) -> set[str]:
    """The parts that a file seems to hold, by the names in its header alone; none of what is no safetensors.

    Cheap enough for lists of files: whether a part is sound is seen when it is read.
    """
    try:
        names = dict.fromkeys(names_in(Path(path)))
    except (WeightsError, OSError):
        return set()
    found = {kind: keys.strip_prefix(names, kind)[0] for kind in LABELS}
    if "cap_pad_token" not in found["transformer"]:  # of Lumina 2
        del found["transformer"]
    return {kind for kind, names in found.items() if names}


def describe(source: Source, values: bool = False) -> dict[str, dict[str, Any]]:
    """What each part in a file or folder is, by kind: its sizes, types, formats and config.

    kept_layers: matrices that are not quantised where others are. left_over: names of tensors that nothing
    here uses. values: True reads every value, half a
    minute for the largest file, and adds "not_finite": the names of tensors that hold NaN or infinity.

    variant: Turbo or Base by a known statistic of its norms, or omni, of a transformer.

    Raises WeightsError when it holds nothing of Z-Image.
    """
    parts, files = {}, {}
    for kind, reader in READERS.items():
        place = folder_of(Path(source), kind) if isinstance(source, (str, os.PathLike)) else None
        if place and lacks(Path(source), kind):
            continue
        if place not in files:
            files[place] = _raw(source, False, kind)
        if keys.strip_prefix(files[place].tensors, kind)[0]:
            part = reader(source, values)
            parts[kind] = {"variant": part.variant} if kind == "transformer" else {}
            parts[kind] |= {
                "parameters": part.parameters,
                "dtype": str(part.dtype).removeprefix("torch."),
                "bytes": part.bytes,
                "quantised_layers": len(part.formats),
                "kept_layers": len(part.kept),
                "formats": part.stored_as,
                "left_over": part.left_over,
                "config": part.config,
            }
            if values:
                parts[kind]["not_finite"] = list(not_finite(part.tensors))
    if not parts:
        raw = _raw(source, False, "transformer")
        raise WeightsError(
            f"{raw.name} holds nothing of Z-Image: {what_is(raw.tensors)}. Choose another file."
        )
    return parts
