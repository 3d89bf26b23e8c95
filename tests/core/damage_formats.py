"""Damaged files of ComfyUI's formats and of ggml's: what only such files have, and how it goes wrong."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from tests.core.damage import DEEP, Draft, Entry, Source, entry
from tests.core.formats import KITCHEN, WIDE, block_matrices, blocks, by_kitchen, marker
from tests.core.random_models import random_s3dit

ODD_VALUES = (0, -1, -256, 1, 3, 17, 2**20, 2**22, 2**31, 2**63, 2**200, 10**4000, True, False, 64.0, 1e300,
              float("nan"), "256", "x" * 5000, None, [], [256], {}, {"a": {}})  # fmt: skip
OPTIONS = ("convrot", "convrot_groupsize", "group_size", "linear_dtype", "full_precision_matrix_mult",
           "block_size", "params", "format", "orig_shape", "x" * 3000)  # fmt: skip


def kitchen_sources() -> dict[str, Source]:
    """A transformer in each of ComfyUI's formats, with a marker for each layer."""
    state = random_s3dit(WIDE, 36).state_dict()
    made = {}
    for name in KITCHEN:
        tensors, marks, truth = by_kitchen(state, name)
        tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
        entries = {key: _entry(value) for key, value in tensors.items()}
        made[name] = Source("transformer", Draft(entries), truth)
    return made


def _entry(tensor: Tensor) -> Entry:
    if str(tensor.dtype) == "torch.float8_e8m0fnu":
        return entry(tensor.view(torch.uint8))._replace(dtype="F8_E8M0")
    return entry(tensor)


def _layer(rng: random.Random, draft: Draft) -> str:
    layers = [name.removesuffix(".comfy_quant") for name in draft.entries if name.endswith(".comfy_quant")]
    return rng.choice(layers)


def odd_option(rng: random.Random, draft: Draft) -> None:
    """A value in a marker that no converter writes, in one layer or in all, beside the others or nested."""
    option, value = rng.choice(OPTIONS), rng.choice(ODD_VALUES)
    if option == "convrot" and value in (1, False):  # a good value, and other weights
        value = "yes"
    layers = [name for name in draft.entries if name.endswith(".comfy_quant")]
    nested = rng.random() < 0.3
    for name in layers if rng.random() < 0.3 else [rng.choice(layers)]:
        spec = json.loads(draft.entries[name].content)
        changed = {"format": spec["format"], "params": {**spec, option: value}}
        text = _text(changed if nested else {**spec, option: value})
        draft.entries[name] = Entry("U8", [len(text)], text)


def _text(spec: dict) -> bytes:
    short = {key: 0 if value == 10**4000 else value for key, value in spec.items()}
    text = json.dumps(short)
    return text.replace(": 0", ": 1" + "0" * 4000).encode() if short != spec else text.encode()


def marker_of_any_size(rng: random.Random, draft: Draft) -> None:
    name = f"{_layer(rng, draft)}.comfy_quant"
    text = rng.choice(
        (b" " * 100_000, b"", *(deep.encode() for deep in DEEP), b'{"format": "' + b"x" * 9000 + b'"}')
    )
    text = rng.choice((text, draft.entries[name].content + b" " * 100_000))
    draft.entries[name] = Entry("U8", [len(text)], text)


def other_format(rng: random.Random, draft: Draft) -> None:
    """A layer that says that it is of a format that it is not of."""
    name = f"{_layer(rng, draft)}.comfy_quant"
    spec = json.loads(draft.entries[name].content)
    formats = {key.split()[0].strip(",") for key in KITCHEN} - {spec["format"]}
    spec["format"] = rng.choice(sorted(formats | {"gguf", "mxfp4", "nvfp4 ", "", "x" * 5000}))
    text = json.dumps(spec).encode()
    draft.entries[name] = Entry("U8", [len(text)], text)


def companion(rng: random.Random, draft: Draft) -> None:
    """A companion of other numbers, of another size, of whole numbers, or with what is no number."""
    layer = _layer(rng, draft)
    names = [n for n in draft.entries if n.startswith(f"{layer}.") and not n.endswith(("weight", "_quant"))]
    name = rng.choice(names)
    shape = tuple(draft.entries[name].shape)
    types = (torch.int8, torch.uint8, torch.int32, torch.float64, torch.bool)
    values = [
        torch.full(shape, float("nan")), torch.full(shape, -1.0), torch.full(shape, float("inf")),
        torch.ones(0), torch.ones(7), torch.ones(2, 3, 4), torch.ones(0, 4), torch.ones(5, 0, 1),
    ]  # fmt: skip
    if rng.random() < 0.3:
        kind = rng.choice(types[:3])
        name_of = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}[kind]
        value = torch.full(shape, 3).to(kind)
        if draft.entries[name].dtype in ("F8_E4M3", "F8_E8M0", "U8") and kind is torch.uint8:
            kind, name_of, value = torch.int32, "I32", value.int()  # bytes may be right ones
        draft.entries[name] = Entry(name_of, list(shape), value.numpy().tobytes())
    elif rng.random() < 0.2:
        del draft.entries[name]
        if name.endswith(("codebook", "correction")):
            del draft.entries[f"{layer}.weight"]
    elif name.endswith(("codebook", "correction")):  # these may be below zero
        draft.entries[name] = entry(rng.choice([value for value in values if not (value == -1).any()]))
    else:
        draft.entries[name] = entry(rng.choice(values))


def empty_weight(rng: random.Random, draft: Draft) -> None:
    name = f"{_layer(rng, draft)}.weight"
    old = draft.entries[name]
    rows, columns = old.shape
    wide = [1, 2**20]
    shape = rng.choice(([rows, 0], [0, columns], [0, 0], [0], [], [1], [1, 1], [columns, rows * 2], wide))
    size = int(np.prod(shape)) * (4 if old.dtype == "F32" else 1)
    draft.entries[name] = Entry(old.dtype, shape, bytes(size))
    for end in ("weight_scale", "weight_s_channel"):
        if shape == wide and f"{layer_of(name)}.{end}" in draft.entries:
            draft.entries[f"{layer_of(name)}.{end}"] = entry(torch.ones(1))


def layer_of(name: str) -> str:
    return name.rpartition(".")[0]


MARKER_DAMAGES: dict[str, Callable[[random.Random, Draft], None]] = {
    "an odd option": odd_option,
    "a marker of any size": marker_of_any_size,
    "another format": other_format,
    "a companion": companion,
    "an empty weight": empty_weight,
}


# GGUF: a header in parts that can be made wrong one by one.

TEXT, LIST, UINT32, BOOL, FLOAT32, UINT64, INT64 = 8, 9, 4, 7, 6, 10, 11


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def listed(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


@dataclass
class Stored:
    name: bytes
    shape: list[int]  # ggml's order, columns first
    type: int
    content: bytes
    offset: int | None = None  # None: where the content comes to lie


@dataclass
class GGUFDraft:
    """A GGUF file before it is written. counts: of tensors and of pairs, where they are to be wrong."""

    tensors: list[Stored]
    pairs: list[bytes] = field(default_factory=lambda: [pair("general.architecture", TEXT, text("lumina2"))])
    magic: bytes = b"GGUF"
    version: int = 3
    counts: tuple[int | None, int | None] = (None, None)

    def header(self) -> bytes:
        tensors, pairs = (
            len(real) if said is None else said
            for said, real in zip(self.counts, (self.tensors, self.pairs), strict=True)
        )
        out = self.magic + struct.pack("<IQQ", self.version, tensors, pairs) + b"".join(self.pairs)
        at = 0
        for stored in self.tensors:
            offset = at if stored.offset is None else stored.offset
            sizes = struct.pack(f"<I{len(stored.shape)}Q", len(stored.shape), *stored.shape)
            out += text(stored.name) + sizes + struct.pack("<IQ", stored.type, offset)
            at += len(_padded(stored.content))
        return out

    def written(self) -> bytes:
        return _padded(self.header()) + b"".join(_padded(stored.content) for stored in self.tensors)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 32)


GGUF_TYPES = ("Q4_0", "Q8_0", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_S")


def gguf_source(name: str) -> tuple[GGUFDraft, dict[str, Tensor]]:
    """A transformer in a type's blocks, and what it stands for."""
    state, rng = random_s3dit(WIDE, 37).state_dict(), np.random.default_rng(38)
    kind, layers, tensors, truth = GGMLQuantizationType[name], set(block_matrices(state)), [], {}
    for key, value in state.items():
        stored, type_number = value.float().numpy(), GGMLQuantizationType.F32
        truth[key] = value.float()
        if key.removesuffix(".weight") in layers:
            stored, type_number = blocks(value, kind, rng), kind
            truth[key] = torch.from_numpy(gguf.quants.dequantize(stored, kind))
        shape = list(value.shape)[::-1]
        tensors.append(Stored(key.encode(), shape, int(type_number), stored.tobytes()))
    return GGUFDraft(tensors), truth


HUGE = (2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def gguf_counts(rng: random.Random, draft: GGUFDraft) -> None:
    wrong = [0, 1, len(draft.tensors) - 1, len(draft.tensors) + 1, 100_000, *HUGE]
    draft.counts = rng.choice(((rng.choice(wrong), None), (None, rng.choice((0, 2, 3, *HUGE)))))


def gguf_version(rng: random.Random, draft: GGUFDraft) -> None:
    draft.version = rng.choice((0, 1, 4, 3 << 24, 2**32 - 1))


def gguf_metadata(rng: random.Random, draft: GGUFDraft) -> None:
    deep = rng.choice((9, 100, 5000, 30_000))
    key = "a.list"
    bad = (
        pair(key, LIST, listed(LIST, 1, b"") * deep + listed(UINT32, 0, b"")),
        pair(key, LIST, listed(UINT32, rng.choice(HUGE), b"")),
        pair(key, LIST, listed(TEXT, rng.choice(HUGE), text("a") * 3)),
        pair(key, LIST, listed(LIST, rng.choice(HUGE), listed(UINT32, 0, b"") * 3)),
        pair(key, LIST, listed(rng.choice((13, 77, 2**32 - 1)), 1, b"12345678")),
        pair(key, TEXT, struct.pack("<Q", rng.choice(HUGE))),
        pair(key, rng.choice((13, 2**32 - 1)), b"12345678"),
        struct.pack("<Q", rng.choice(HUGE)) + b"abc",
        pair("x" * 70_000, UINT32, struct.pack("<I", 1)),
    )
    draft.pairs.insert(rng.randrange(len(draft.pairs) + 1), rng.choice(bad))


def gguf_alignment(rng: random.Random, draft: GGUFDraft) -> None:
    values = (
        (UINT32, struct.pack("<I", rng.choice((0, 1, 3, 48, 2**31, 2**32 - 1)))), (BOOL, b"\1"),
        (FLOAT32, struct.pack("<f", 32.0)), (INT64, struct.pack("<q", -32)), (TEXT, text("3" * 5000)),
        (LIST, listed(UINT32, 1, struct.pack("<I", 32))), (UINT64, struct.pack("<Q", 2**64 - 1)),
    )  # fmt: skip
    draft.pairs.append(pair("general.alignment", *rng.choice(values)))


def gguf_shape(rng: random.Random, draft: GGUFDraft) -> None:
    stored = rng.choice(draft.tensors)
    count = int(np.prod(stored.shape))
    wrong = (
        [0], [0, *stored.shape], [*stored.shape, 0], [2**63, 0], [2**32, 2**32], [2**64 - 1], [1] * 9,
        [1] * 100_000, [count + 1], [2, count], [*stored.shape, 2], [2**62, 4, 1], [256, 2**56],
    )  # fmt: skip
    stored.shape = rng.choice(wrong)


def gguf_type(rng: random.Random, draft: GGUFDraft) -> None:
    stored = rng.choice(draft.tensors)
    size = gguf.GGML_QUANT_SIZES
    same = size[GGMLQuantizationType(stored.type)]
    others = [int(kind) for kind in size if size[kind][1] * same[0] != same[1] * size[kind][0]]
    stored.type = rng.choice((*others, 4, 5, 15, 31, 36, 37, 38, 41, 999, 2**31, 2**32 - 1))


def gguf_offset(rng: random.Random, draft: GGUFDraft) -> None:
    at, places = 0, []
    for stored in draft.tensors:
        places.append(at)
        at += len(_padded(stored.content))
    number = rng.randrange(len(places))
    wrong = (places[number] + 1, places[number] + 32, places[number - 1], at, at - 1, *HUGE)
    draft.tensors[number].offset = rng.choice([place for place in wrong if place != places[number]])


def gguf_names(rng: random.Random, draft: GGUFDraft) -> None:
    first, second = rng.sample(draft.tensors, 2)
    wrong = (second.name, b"", b"\xff\xfe", b"x" * 600, b"x" * 70_000, first.name + b"_", b"\0" * 20,
             first.name.replace(b"layers.0", b"layers.7"))  # fmt: skip
    first.name = rng.choice([name for name in wrong if name != first.name])


def gguf_original(rng: random.Random, draft: GGUFDraft) -> None:
    stored = rng.choice(draft.tensors)
    key = f"comfy.gguf.orig_shape.{stored.name.decode()}"
    count = int(np.prod(stored.shape))
    numbers = rng.choice(([count + 1], [0], [2**63, 0], [count, 2**40], [count, 1, 1], [2, 2]))
    bad = (
        pair(key, LIST, listed(UINT64, len(numbers), struct.pack(f"<{len(numbers)}Q", *numbers))),
        pair(key, LIST, listed(INT64, 2, struct.pack("<qq", -1, -count))),
        pair(key, LIST, listed(FLOAT32, 1, struct.pack("<f", count))),
        pair(key, LIST, listed(BOOL, 2, b"\1\1")),
        pair(key, LIST, listed(UINT64, 1000, struct.pack("<1000Q", *range(1000)))),
        pair(key, TEXT, text("3" * 5000)),
        pair(key, UINT64, struct.pack("<Q", count + 1)),
    )
    draft.pairs.append(rng.choice(bad))


def gguf_values(rng: random.Random, draft: GGUFDraft) -> None:
    """A norm or a bias with NaN, or with nothing but zeros."""
    stored = rng.choice([s for s in draft.tensors if len(s.shape) == 1 and b"norm" in s.name])
    stored.content = rng.choice((b"\0\0\xc0\x7f", bytes(4))) * (len(stored.content) // 4)


GGUF_DAMAGES: dict[str, Callable[[random.Random, GGUFDraft], None]] = {
    "counts": gguf_counts,
    "version": gguf_version,
    "metadata": gguf_metadata,
    "alignment": gguf_alignment,
    "shape": gguf_shape,
    "type": gguf_type,
    "offset": gguf_offset,
    "names": gguf_names,
    "original shape": gguf_original,
    "values": gguf_values,
}


def cut(rng: random.Random, content: bytes, header: int) -> bytes:
    return content[: rng.choice((rng.randrange(4, header), rng.randrange(header, len(content) - 31)))]


def header_bytes(rng: random.Random, content: bytes, header: int) -> bytes:
    """Other bytes in the header, but for the texts of the metadata and padding."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        out[rng.randrange(4, header)] = rng.choice((0, 1, 255, rng.randrange(256)))
    return bytes(out)


BYTES: dict[str, Callable[[random.Random, bytes, int], bytes]] = {"cut off": cut, "bytes": header_bytes}
