"""Small weight files of every part and layout, and the ways in which files go wrong."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.core.random_models import random_s3dit, randomise
from zimage_core import AutoencoderConfig, AutoencoderKL, Qwen3Config, Qwen3TextEncoder, S3DiTConfig
from zimage_core.conditions.control import ControlNet
from zimage_core.config import ControlConfig, VisionConfig
from zimage_core.model.vision import VisionEncoder
from zimage_core.weights.keys import autoencoder_to_diffusers, transformer_to_diffusers

SIZES = {"n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 24, "t_hidden": 16, "t_dim": 16}
TRANSFORMER = S3DiTConfig(dim=32, n_layers=2, ffn_dim=48, axes_dims=(4, 6, 6), **SIZES)
CONTROL = ControlConfig(
    S3DiTConfig(dim=32, n_layers=1, ffn_dim=48, axes_dims=(4, 6, 6), **SIZES), 33, "refiner"
)
TEXT_ENCODER = Qwen3Config(
    vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16,
)  # fmt: skip
AUTOENCODER = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
VISION = VisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=1)
TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int8: "I8",
}


class Entry(NamedTuple):
    """One tensor of a file: its type and shape as the header says them, and its bytes."""

    dtype: object
    shape: object
    content: bytes


def entry(tensor: Tensor) -> Entry:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return Entry(TYPES[tensor.dtype], list(tensor.shape), content)


@dataclass
class Draft:
    """A safetensors file before it is written."""

    entries: dict[str, Entry]
    metadata: dict = field(default_factory=dict)

    def header(self) -> dict:
        header, at = {}, 0
        for name, (dtype, shape, content) in self.entries.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
            at += len(content)
        return header | ({"__metadata__": self.metadata} if self.metadata else {})

    def written(self, header: str | None = None) -> bytes:
        text = (json.dumps(self.header()) if header is None else header).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + b"".join(e.content for e in self.entries.values())


class Source(NamedTuple):
    """A good file: which part it holds, and the weights that it stands for."""

    kind: str
    draft: Draft
    truth: dict[str, Tensor]


def _fp8(
    state: dict[str, Tensor], layers: str, dtype: torch.dtype, scale: str, rows: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The matrices whose names have `layers` in them in fp8 with a scale; and what they stand for."""
    out, truth = {}, {}
    for key, value in state.items():
        if layers in key and value.ndim == 2:
            largest = value.abs().amax(1, keepdim=True) if rows else value.abs().amax()
            factor = largest / torch.finfo(dtype).max
            out[key] = (value / factor).to(dtype)
            out[f"{key.removesuffix('weight')}{scale}"] = factor
            truth[key] = out[key].double() * factor.double()
        else:
            out[key] = truth[key] = value.bfloat16()
    return out, truth


def _marks(state: dict[str, Tensor], format_name: str) -> dict[str, Tensor]:
    text = torch.tensor(list(json.dumps({"format": format_name}).encode()), dtype=torch.uint8)
    layers = [k.rpartition(".")[0] for k in state if k.endswith("weight_scale")]
    return {f"{layer}.comfy_quant": text.clone() for layer in layers}


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


def sources() -> dict[str, Source]:
    """Of every part, in the layouts that people have."""
    transformer = random_s3dit(TRANSFORMER, 31).state_dict()
    encoder = randomise(Qwen3TextEncoder(TEXT_ENCODER, language_model=True), 32).state_dict()
    autoencoder = randomise(AutoencoderKL(AUTOENCODER), 33).state_dict()
    made: dict[str, Source] = {}

    def add(name: str, kind: str, state: dict, truth: dict, metadata: dict | None = None) -> None:
        entries = {k: entry(v) for k, v in state.items()}
        made[name] = Source(kind, Draft(entries, metadata or {}), truth)

    plain = {k: v.bfloat16() for k, v in transformer.items()}
    add("transformer", "transformer", plain, plain, {"format": "pt"})
    add("transformer, diffusers", "transformer", transformer_to_diffusers(plain), plain)
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    state, truth = _fp8(transformer, "layers.", e4m3, "scale_weight")
    add("scaled_fp8", "transformer", state | {"scaled_fp8": torch.empty(0, dtype=e4m3)}, truth)
    state, truth = _fp8(transformer, "attention.", e5m2, "weight_scale", rows=True)
    add("comfy_quant of rows", "transformer", state | _marks(state, "float8_e5m2"), truth)
    state, truth = _fp8(transformer, "feed_forward.", e4m3, "weight_scale")
    layers = {f"model.diffusion_model.{k.removesuffix('.comfy_quant')}": {"format": "float8_e4m3fn"}
              for k in _marks(state, "")}  # fmt: skip
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    add("metadata", "transformer", _prefixed(state, "model.diffusion_model."), truth, metadata)
    state, truth = _fp8(transformer, "attention.", e4m3, "weight_scale")
    add("scales without marker", "transformer", _prefixed(state, "diffusion_model."), truth)
    add("text encoder", "text_encoder", encoder, encoder)
    state, truth = _fp8(encoder, "mlp.", e4m3, "weight_scale")
    add("text encoder in fp8", "text_encoder", state | _marks(state, "float8_e4m3fn"), truth)
    add("autoencoder", "autoencoder", autoencoder, autoencoder)
    add("autoencoder, diffusers", "autoencoder", autoencoder_to_diffusers(autoencoder), autoencoder)
    state = randomise(ControlNet(CONTROL), 34).state_dict()
    add("control", "control", transformer_to_diffusers(state), state)
    state = randomise(VisionEncoder(VISION), 35).state_dict()
    add("vision", "vision", state, state)
    return made


# Each kind of damage: (random, good draft, path) -> a file or a folder is there.

Damage = Callable[[random.Random, Draft, Path], None]
DAMAGES: dict[str, Damage] = {}


def damage(name: str) -> Callable[[Damage], Damage]:
    def register(function: Damage) -> Damage:
        DAMAGES[name] = function
        return function

    return register


def _write(path: Path, draft: Draft, header: str | None = None) -> None:
    path.write_bytes(draft.written(header))


def _changed(draft: Draft, **entries: Entry | None) -> Draft:
    out = {k: entries.get(k, v) for k, v in draft.entries.items()}
    return Draft({k: v for k, v in (out | entries).items() if v is not None}, draft.metadata)


def _any(rng: random.Random, draft: Draft, *endings: str) -> str:
    """A tensor's name; with one of the endings where there is such a one."""
    names = [name for name in draft.entries if name.endswith(endings)] if endings else []
    return rng.choice(names or list(draft.entries))


ODD_JSON = (None, True, 3, -1.5, "text", [], {}, [[1, 2]], {"a": None})
DEEP = ("[" * 20_000, '{"a":' * 20_000, "[" * 900 + "]" * 900)


@damage("cut off")
def _cut(rng: random.Random, draft: Draft, path: Path) -> None:
    content = draft.written()
    path.write_bytes(content[: rng.randrange(len(content))])


@damage("length of the header")
def _length(rng: random.Random, draft: Draft, path: Path) -> None:
    content = draft.written()
    length = int.from_bytes(content[:8], "little")
    wrong = rng.choice(
        (0, 1, length - 1, length + 1, length + 8, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64))
    )
    path.write_bytes(wrong.to_bytes(8, "little") + content[8:])


@damage("bytes of the header")
def _header_bytes(rng: random.Random, draft: Draft, path: Path) -> None:
    content = bytearray(draft.written())
    length = int.from_bytes(content[:8], "little")
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        content[8 + rng.randrange(length)] = rng.choice((rng.randrange(256), rng.choice(b'"{}[]:,0 9a')))
    path.write_bytes(bytes(content))


@damage("header that is no object of tensors")
def _odd_header(rng: random.Random, draft: Draft, path: Path) -> None:
    header = draft.header()
    name = rng.choice(list(header))
    header[name] = rng.choice(ODD_JSON)
    texts = [json.dumps(header), *DEEP, json.dumps(rng.choice(ODD_JSON)), "", "{", "\ud800"]
    _write(path, draft, rng.choice(texts))


@damage("offsets")
def _offsets(rng: random.Random, draft: Draft, path: Path) -> None:
    header = draft.header()
    name = _any(rng, draft)
    start, end = header[name]["data_offsets"]
    wrong = (
        [start + 1, end + 1], [end, start], [start], [], [start, end, end], None, "0", [str(start), str(end)],
        [float(start), float(end)], [-1, end], [0, 2**70], [start, 1e400], [start, math.nan], [0, 0],
    )  # fmt: skip
    header[name]["data_offsets"] = rng.choice(wrong)
    _write(path, draft, json.dumps(header))


@damage("type in the header")
def _type(rng: random.Random, draft: Draft, path: Path) -> None:
    name = _any(rng, draft)
    stored = draft.entries[name]
    sizes = {"F32": ("I32", "U32"), "BF16": ("I16", "U16"), "U8": ("I8", "BOOL")}
    same = sizes.get(stored.dtype, ("I8", "U8", "F8_E8M0"))
    other = {"F32": "F16", "BF16": "F32"}.get(stored.dtype, "F64")
    odd = ("F4", "F6_E2M3", "C64", "F128", "bf16", "", None, 7, ["F32"])
    _write(path, _changed(draft, **{name: stored._replace(dtype=rng.choice((*same, other, *odd)))}))


@damage("shape in the header")
def _shape(rng: random.Random, draft: Draft, path: Path) -> None:
    name = _any(rng, draft)
    stored = draft.entries[name]
    shape, count = list(stored.shape), math.prod(stored.shape)
    wrong = (
        [count], [1, *shape], [*shape, 1], [count, 1], [2, count // 2], [*shape[:-1], (shape or
        [1])[-1] + 1], [],
        [0], [-1], [2**40, 2**40], [float(n) for n in shape], [str(n) for n in shape], None, "3", {}, [None],
    )  # fmt: skip
    _write(path, _changed(draft, **{name: stored._replace(shape=rng.choice(wrong))}))


@damage("misshapen content")
def _misshapen(rng: random.Random, draft: Draft, path: Path) -> None:
    """A consistent file in which one weight has another shape."""
    name = _any(rng, draft, ".weight", ".bias", "pad_token")
    shapes = (
        [],
        [0],
        [1],
        [7],
        [3, 5],
        [1, 1],
        [2, 2, 2],
        [1, 2, 3, 4],
        [32],
        [32, 31],
        [0, 32],
        [96, 32, 1],
    )
    shape = rng.choice([shape for shape in shapes if shape != draft.entries[name].shape])
    if name.endswith("pad_token") and shape == [32]:  # as GGUF-born files hold it
        shape = [33]
    dtype = rng.choice((torch.float32, torch.bfloat16))
    _write(path, _changed(draft, **{name: entry(torch.full(shape, 0.01, dtype=dtype))}))


@damage("renamed")
def _renamed(rng: random.Random, draft: Draft, path: Path) -> None:
    name = _any(rng, draft, *rng.choice(((), ("scale", "scale_weight"), ("comfy_quant",), (".weight",))))
    layer, _, suffix = name.rpartition(".")
    others = (
        f"{layer}.{suffix}_", f"{layer}.kernel", f"x.{name}", f"{name}.weight", name.upper(), "", suffix,
        name.replace("layers.0", "layers.9"), name.replace("layers.0", "layers.x"),
        name.replace("to_q", "to_k"),
        f"{layer}.scale", f"{layer}.weight_scale_2", name.replace("weight", "qweight"), f"{layer}.weight",
    )  # fmt: skip
    other = rng.choice([other for other in others if other not in draft.entries])
    draft.entries = {(other if k == name else k): v for k, v in draft.entries.items()}
    _write(path, draft)


@damage("left out")
def _left_out(rng: random.Random, draft: Draft, path: Path) -> None:
    part = rng.choice(("layers.0.", "layers.1.", "scale", "pad_token", "norm", "embed", "to_k", ""))
    names = [name for name in draft.entries if part in name]
    # not a whole block: that is a model with one less
    gone = rng.sample(names, min(len(names), rng.choice((1, 1, 2, 5)))) or [_any(rng, draft)]
    _write(path, _changed(draft, **dict.fromkeys(gone)))


@damage("tensors that do not belong there")
def _extra(rng: random.Random, draft: Draft, path: Path) -> None:
    name = _any(rng, draft, ".weight")
    layer, value = name.removesuffix(".weight"), torch.full((4,), 0.5)
    endings = (
        "bias_", "lora_A.weight", "lora_down.weight", "weight_scale", "scale_weight",
        "weight_scale_2", "absmax",
        "SCB", "qweight", "zero_point", "weight._data", "input_scale", "comfy_quant", "scaled_fp8", "alpha",
        "weight_quantizer._scale", "weight_scale_inv", "scale_input",
    )  # fmt: skip
    shape = rng.choice(((), (1,), (4,), (3, 3), (2, 2, 1), (0,)))
    value = torch.full(shape, 0.5)
    names = [name for name in (f"{layer}.{end}" for end in endings) if name not in draft.entries]
    _write(path, _changed(draft, **{rng.choice(names): entry(value)}))


@damage("scales")
def _scales(rng: random.Random, draft: Draft, path: Path) -> None:
    name = _any(rng, draft, ".weight_scale", ".scale_weight")
    nan, inf = float("nan"), float("inf")
    values = (
        torch.tensor(nan), torch.tensor(inf), torch.tensor(0.0), torch.tensor(-0.01),
        torch.ones(0), torch.ones(7),
        torch.ones(5, 3), torch.full((32, 1), nan), torch.ones(2, 2, 2), torch.ones(3, dtype=torch.int8),
        torch.ones((), dtype=torch.uint8), torch.ones(32, 1).to(torch.float8_e4m3fn),
        torch.ones(32, 1, dtype=torch.uint8),
    )  # fmt: skip
    _write(path, _changed(draft, **{name: entry(rng.choice(values))}))


@damage("quantisation markers")
def _markers(rng: random.Random, draft: Draft, path: Path) -> None:
    layer = _any(rng, draft, ".weight").removesuffix(".weight")
    specs = (
        *map(json.dumps, ODD_JSON), *DEEP, "", "{", "\xff\xfe", '{"format": 3}', '{"format": null}',
        '{"format": "float8_e4m3fn_sparse"}', '{"format": ["float8_e4m3fn"]}',
        '{"format": "int8_tensorwise"}', '{"format": "nvfp4"}',
        '{"format": "float8_e4m3fn", "convrot": true}', '{"form": "float8_e4m3fn"}',
    )  # fmt: skip
    text = torch.tensor(list(rng.choice(specs).encode("latin-1")), dtype=torch.uint8)
    value = rng.choice((text, text, text, text.float(), text.to(torch.int8), text[:0], text.reshape(1, -1)))
    _write(path, _changed(draft, **{f"{layer}.comfy_quant": entry(value)}))


@damage("metadata")
def _metadata(rng: random.Random, draft: Draft, path: Path) -> None:
    layer = _any(rng, draft, ".weight").removesuffix(".weight")
    texts = (
        *map(json.dumps, ODD_JSON), *DEEP, "", "{", '{"layers": null}', '{"layers": []}',
        '{"layers": {"": {}}}',
        json.dumps({"layers": {layer: None}}), json.dumps({"layers": {layer: "float8_e4m3fn"}}),
        json.dumps({"layers": {layer: {"format": "nvfp4"}}}), json.dumps({"layers": {layer: {"format": []}}}),
        json.dumps({"layers": {"layers.77.attention.out": {"format": "float8_e4m3fn"}}}),
    )  # fmt: skip
    key = rng.choice(("_quantization_metadata", "_quantization_metadata", "config"))
    if rng.random() < 0.2:
        draft.metadata = rng.choice(({key: 3}, {key: None}, {"a": ["b"]}, ["a"], "a", 7))
    else:
        draft.metadata = {**draft.metadata, key: rng.choice(texts)}
    _write(path, draft)


@damage("values that are no numbers")
def _values(rng: random.Random, draft: Draft, path: Path) -> None:
    """In small tensors, which are looked at: norms, biases, pad tokens, scales."""
    names = [k for k, e in draft.entries.items() if e.dtype in ("F32", "BF16") and len(e.shape) < 2]
    name = rng.choice(names + [k for k in draft.entries if k.endswith("pad_token")])
    stored, width = draft.entries[name], {"F32": 4, "BF16": 2}[draft.entries[name].dtype]
    bits = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"))[
        -width:
    ]  # NaN, infinity, -infinity
    at = rng.randrange(len(stored.content) // width) * width
    content = stored.content[:at] + bits + stored.content[at + width :]
    _write(path, _changed(draft, **{name: stored._replace(content=content)}))


@damage("holes of zeros")
def _holes(rng: random.Random, draft: Draft, path: Path) -> None:
    """From a norm on, to the end of the file or for a while."""
    header = draft.header()
    name = _any(rng, draft, "norm1.weight", "norm2.weight", "layernorm.weight")
    start, end = header[name]["data_offsets"]
    content = draft.written()
    begin = len(content) - sum(len(e.content) for e in draft.entries.values())
    stop = rng.choice((begin + end, len(content)))
    path.write_bytes(content[: begin + start] + bytes(stop - begin - start) + content[stop:])


@damage("matrices of whole numbers")
def _whole_numbers(rng: random.Random, draft: Draft, path: Path) -> None:
    """Quantised weights without a word about it."""
    name = _any(rng, draft, ".weight")
    value = torch.ones([n for n in draft.entries[name].shape], dtype=rng.choice((torch.int8, torch.uint8)))
    packed = value.flatten()[: value.numel() // 2 or 1]
    _write(path, _changed(draft, **{name: entry(rng.choice((value, packed, packed.reshape(-1, 1))))}))


@damage("something else under this name")
def _impostor(rng: random.Random, draft: Draft, path: Path) -> None:
    pickle, archive = io.BytesIO(), io.BytesIO()
    torch.save({"a": 1}, pickle, _use_new_zipfile_serialization=False)
    torch.save({"a": 1}, archive)
    contents = (
        b"", b"\n", bytes(7), bytes(8), bytes(100_000), b"<!DOCTYPE html><html><body>Log in</body></html>",
        b"\xef\xbb\xbf  <HTML>" + b"x" * 999,
        b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 1\n",
        b"GGUF\3\0\0\0" + bytes(64), b"PK\3\4" + bytes(60), pickle.getvalue(), archive.getvalue(),
        b'{"error": "Repository not found"}', b"Invalid username or password.", b"\x1f\x8b\x08" + bytes(50),
        rng.randbytes(rng.randrange(1, 3000)), b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]",
    )  # fmt: skip
    path.write_bytes(rng.choice(contents))


@damage("sharded folders")
def _shards(rng: random.Random, draft: Draft, path: Path) -> None:
    path.mkdir()
    names = list(draft.entries)
    for file, part in (("a", names[::2]), ("b", names[1::2])):
        content = Draft({k: draft.entries[k] for k in part}, draft.metadata).written()
        (path / f"{file}.safetensors").write_bytes(content)
    index = {"weight_map": {k: f"{'ab'[i % 2]}.safetensors" for i, k in enumerate(names)}}
    texts = (
        *map(json.dumps, ODD_JSON), *DEEP, "", "{", '{"weight_map": null}',
        '{"weight_map": ["a.safetensors"]}',
        '{"weight_map": {}}', '{"weight_map": {"x": null}}', '{"weight_map": {"x": ["a.safetensors"]}}',
        *(
            json.dumps({"weight_map": {"x": file}})
            for file in ("../other.safetensors", "/etc/passwd", "a.safetensors", "c.safetensors")
        ),
    )  # fmt: skip
    index_file = path / "model.safetensors.index.json"
    index_file.write_text(json.dumps(index))
    what = rng.randrange(5)
    if what == 0:
        (path / "a.safetensors").unlink()
    elif what == 1:
        content = (path / "b.safetensors").read_bytes()
        (path / "b.safetensors").write_bytes(content[: rng.randrange(len(content))])
    elif what == 2:
        index_file.unlink()
    elif what == 3:
        shutil.copy(path / "a.safetensors", path / "b.safetensors")
    else:
        index_file.write_text(rng.choice(texts))
