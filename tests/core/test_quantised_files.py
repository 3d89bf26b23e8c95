"""Quantised files of every layout that people have: scales are applied, or the file is refused by name."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import TINY, random_s3dit, randomise, relative
from tests.core.test_weights import SMALL_TE, block_linears
from zimage_core import Qwen3TextEncoder
from zimage_core.weights import WeightsError, load_text_encoder, load_transformer, read_transformer
from zimage_core.weights.keys import transformer_to_diffusers

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = (E4M3, E5M2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FLOAT = torch.float32

NAMES = ("weight_scale", "scale_weight", "weight_scale_inv")
SHAPES: dict[
    str, Callable[[int, int], tuple[int, ...]]
] = {  # of the scale, by rows and columns of the weight
    "[]": lambda rows, columns: (),
    "[1]": lambda rows, columns: (1,),
    "[1, 1]": lambda rows, columns: (1, 1),
    "[rows]": lambda rows, columns: (rows,),
    "[rows, 1]": lambda rows, columns: (rows, 1),
    "[1, columns]": lambda rows, columns: (1, columns),
    "blocks of 128 x 128": lambda rows, columns: (-(-rows // 128), -(-columns // 128)),
    "blocks of 2 x 2": lambda rows, columns: (rows // 2, columns // 2),
    "halves of rows": lambda rows, columns: (rows, 2),
    "halves of rows, 1": lambda rows, columns: (rows, 2, 1),
}
MARKERS = ("none", "scaled_fp8", "scaled_fp8 at the root", "comfy_quant", "metadata")
PREFIXED = ("scaled_fp8 at the root", "metadata")  # under a checkpoint's prefix


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_s3dit(TINY, 21).state_dict()


def spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    """The scale of every single weight, written out by its indices."""
    if scale.numel() == 1:
        return scale.double().reshape(1, 1).expand(rows, columns)
    if scale.ndim == 1 or scale.shape == (rows, 1):
        return scale.double().reshape(rows, 1).expand(rows, columns)
    grid = scale.double().reshape(scale.shape[0], -1)
    heights, widths = (
        128 if -(-size // 128) == count else size // count
        for size, count in zip((rows, columns), grid.shape, strict=True)
    )
    row, column = torch.arange(rows) // heights, torch.arange(columns) // widths
    return grid[row][:, column]


def scaled(
    state: dict[str, Tensor], name: str, shape: str, dtype: torch.dtype, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The blocks in fp8 with scales of this shape, and the weights that they stand for, in float64."""
    generator = torch.Generator().manual_seed(seed)
    out, truth = {k: v.bfloat16() for k, v in state.items()}, {k: v.bfloat16() for k, v in state.items()}
    for layer in block_linears(state):
        weight = state[f"{layer}.weight"]
        factors = 0.5 + torch.rand(SHAPES[shape](*weight.shape), generator=generator)
        scale = factors * weight.abs().max() / torch.finfo(dtype).max
        whole = spread(scale, *weight.shape)
        stored = (weight.double() / whole).float().clamp(
            torch.finfo(dtype).min, torch.finfo(dtype).max
        ).to(dtype)  # fmt: skip
        out |= {f"{layer}.weight": stored, f"{layer}.{name}": scale}
        truth[f"{layer}.weight"] = stored.double() * whole
    return out, truth


def marked(out: dict[str, Tensor], layers: list[str], marker: str, format_name: str) -> tuple[dict, dict]:
    """(tensors, metadata) with a marker."""
    text = json.dumps({"format": format_name})
    if marker == "comfy_quant":
        mark = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return out | {f"{layer}.comfy_quant": mark.clone() for layer in layers}, {}
    if marker == "scaled_fp8":
        return out | {"scaled_fp8": torch.empty(0, dtype=E4M3)}, {}
    if marker in PREFIXED:
        out = {f"model.diffusion_model.{k}": v for k, v in out.items()}
    if marker == "scaled_fp8 at the root":
        return out | {"scaled_fp8": torch.empty(2, dtype=E4M3)}, {}
    if marker == "metadata":
        specs = {f"model.diffusion_model.{layer}": json.loads(text) for layer in layers}
        return out, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": specs})}
    return out, {}


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("name", NAMES)
def test_scales_are_applied(name: str, marker: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Every shape and every type: the weights are those that the file stands for, in one rounding."""
    kinds = [*itertools.product(SHAPES, (E4M3, E5M2)), *(("[]", dtype) for dtype in FP8[2:])]
    for seed, (shape, dtype) in enumerate(kinds):
        out, truth = scaled(state, name, shape, dtype, seed)
        layers = block_linears(state)
        tensors, metadata = marked(out, layers, marker, str(dtype).removeprefix("torch."))
        path = tmp_path / "file.safetensors"
        save_file(tensors, path, metadata=metadata)
        checkpoint = read_transformer(path)
        loaded = checkpoint.plain(FLOAT)
        worst = max(relative(loaded[k], truth[k]) for k in truth)
        assert worst <= 1e-6, (shape, dtype, worst)
        formats = {layer: spec["format"] for layer, spec in checkpoint.formats.items()}
        assert formats == dict.fromkeys(layers, str(dtype).removeprefix("torch.")), (shape, dtype)
        assert checkpoint.parameters == sum(v.numel() for v in state.values()), (shape, dtype)


def test_formats_of_converters_for_comfyui(state: dict[str, Tensor]) -> None:
    """Row and block scales have format names of their own, and sizes beside them."""
    for ending, shape in {
        "_rowwise": "[rows]",
        "_blockwise": "blocks of 2 x 2",
        "_block3d": "halves of rows, 1",
    }.items():
        out, truth = scaled(state, "weight_scale", shape, E4M3, 3)
        text = json.dumps({"format": f"float8_e4m3fn{ending}", "group_size": 64}).encode()
        mark = torch.tensor(list(text), dtype=torch.uint8)
        out |= {f"{layer}.comfy_quant": mark.clone() for layer in block_linears(state)}
        loaded = load_transformer(out, dtype=FLOAT).state_dict()
        assert max(relative(loaded[k], truth[k]) for k in truth) <= 1e-6, ending


@pytest.mark.parametrize("shape", ["[]", "[rows, 1]", "blocks of 2 x 2"])
@pytest.mark.parametrize("marker", ["none", "comfy_quant"])
def test_split_attention(shape: str, marker: str, state: dict[str, Tensor]) -> None:
    """diffusers' names: three scales become one weight, which is then bf16 where they differ."""
    split = {k: v.contiguous() for k, v in transformer_to_diffusers(state).items()}
    out, truth = scaled(split, "weight_scale", shape, E4M3, 5)
    tensors, _ = marked(out, block_linears(split), marker, "float8_e4m3fn")
    loaded = load_transformer(tensors, dtype=FLOAT).state_dict()
    for key, value in loaded.items():
        if key.endswith("attention.qkv.weight"):
            base = key.removesuffix("qkv.weight")
            expected = torch.cat([truth[f"{base}to_{part}.weight"] for part in "qkv"])
            assert relative(value, expected) <= 4e-3, key  # bf16 has 8 bits
    same = {k: v if "scale" not in k else torch.tensor(2**-6) for k, v in tensors.items()}
    checkpoint = read_transformer(same)
    assert checkpoint.tensors["layers.0.attention.qkv.weight"].dtype == E4M3
    assert checkpoint.tensors["layers.0.attention.qkv.weight_scale"] == 2**-6


def test_input_scales_belong_to_the_weights(state: dict[str, Tensor]) -> None:
    """They go with a layer that is fp8; of split attention the largest counts; 1 in old files means none."""
    split = {k: v.contiguous() for k, v in transformer_to_diffusers(state).items()}
    out, _ = scaled(split, "scale_weight", "[]", E4M3, 6)
    out = {k: torch.tensor(0.01) if k.endswith("scale_weight") else v for k, v in out.items()}
    base = "layers.0.attention"
    for part, scale in zip("qkv", (0.5, 0.75, 0.25), strict=True):
        out[f"{base}.to_{part}.scale_input"] = torch.tensor(scale)
    out["layers.0.feed_forward.w1.scale_input"] = torch.tensor(1.0)
    out["x_embedder.input_scale"] = torch.tensor(2.0)
    found = read_transformer(out).tensors
    assert found[f"{base}.qkv.input_scale"] == 0.75
    assert [k for k in found if k.endswith("input_scale")] == [f"{base}.qkv.input_scale"]


def test_the_full_precision_flag_is_kept(state: dict[str, Tensor]) -> None:
    out, _ = scaled(state, "scale_weight", "[]", E4M3, 7)
    for count, expected in ((0, False), (2, True)):
        for prefix in ("", "model.diffusion_model."):
            tensors = {f"{prefix}{k}": v for k, v in out.items()} | {
                "scaled_fp8": torch.empty(count, dtype=E4M3)
            }
            formats = read_transformer(tensors).formats.values()
            assert {spec.get("full_precision_matrix_mult", False) for spec in formats} == {expected}


def test_a_scale_of_one_beside_a_plain_weight_says_nothing(state: dict[str, Tensor]) -> None:
    tensors = dict(state) | {f"{layer}.weight_scale": torch.ones(()) for layer in block_linears(state)}
    loaded = load_transformer(tensors).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_text_encoders() -> None:
    """Of both namings, under a prefix, with a head that is quantised too."""
    state = randomise(Qwen3TextEncoder(SMALL_TE, language_model=True), 3).state_dict()
    layers = [k.removesuffix(".weight") for k in state if "_proj" in k]
    for bare, prefix, marker in itertools.product(
        (False, True), ("", "text_encoders.qwen3_4b.transformer."), ("none", "comfy_quant")
    ):
        out, truth = {k: v.clone() for k, v in state.items()}, dict(state)
        for layer in layers:
            scale = state[f"{layer}.weight"].abs().max() / 448
            stored = (state[f"{layer}.weight"] / scale).to(E4M3)
            out |= {f"{layer}.weight": stored, f"{layer}.weight_scale": scale}
            truth[f"{layer}.weight"] = stored.double() * scale.double()
        out |= {"lm_head.weight": stored, "lm_head.weight_scale": scale.clone()}
        if marker == "comfy_quant":
            mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
            out |= {f"{layer}.comfy_quant": mark.clone() for layer in (*layers, "lm_head")}
        names = {k: k.removeprefix("model.") if bare else k for k in out}
        loaded = load_text_encoder({prefix + names[k]: v for k, v in out.items()}, language_model=True)
        assert all(relative(v, truth[k]) <= 1e-6 for k, v in loaded.state_dict().items()), (bare, prefix)


# What is not read: refused with the file's name, what was found, and what to use.

HOST_WAY = "Load Diffusion Model.*Z-Image Accelerate"
PLAIN_WAY = "Use the bf16 or fp8 file"


def replaced(state: dict[str, Tensor], make: Callable[[str, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Every linear of the blocks is stored as make(layer, weight) says."""
    out = {k: v.bfloat16() for k, v in state.items()}
    for layer in block_linears(state):
        out |= make(layer, out.pop(f"{layer}.weight"))
    return out


def packed(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)


def mark(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def with_marker(format_name: str, **tensors: Callable[[Tensor], Tensor]) -> Callable[[str, Tensor], dict]:
    """A format of ComfyUI's own."""

    def make(layer: str, weight: Tensor) -> dict[str, Tensor]:
        made = {f"{layer}.{name}": tensor(weight) for name, tensor in tensors.items()}
        return made | {f"{layer}.comfy_quant": mark(json.dumps({"format": format_name}))}

    return make


INT8 = {"weight": lambda w: w.sign().to(torch.int8), "weight_scale": lambda w: torch.ones(w.shape[0], 1)}
MXFP8 = {
    "weight": lambda w: w.to(E4M3),
    "weight_scale": lambda w: torch.ones(w.shape[0], w.shape[1] // 32, dtype=torch.uint8),
}
NVFP4 = {
    "weight": packed,
    "weight_scale": lambda w: torch.ones(w.shape[0], w.shape[1] // 16).to(E4M3),
    "weight_scale_2": lambda w: torch.tensor(1.0),
}


def without_marker(tensors: dict[str, Callable[[Tensor], Tensor]]) -> Callable[[str, Tensor], dict]:
    return lambda layer, weight: {f"{layer}.{name}": make(weight) for name, make in tensors.items()}


OTHERS: dict[str, tuple[Callable[[str, Tensor], dict[str, Tensor]], str, str]] = {  # make, named as, way out
    "awq_w4a16": (with_marker("awq_w4a16", weight=packed), "'awq_w4a16'", HOST_WAY),
    "a format that nobody knows": (with_marker("int4_magic", weight=packed), "'int4_magic'", HOST_WAY),
    "int8, no marker": (without_marker(INT8), "in int8 with scales and without a marker", PLAIN_WAY),
    "int8, no scales": (
        without_marker({"weight": INT8["weight"]}),
        "no floating numbers",
        "bf16 or fp8 file",
    ),
    "mxfp8, no marker": (without_marker(MXFP8), "mxfp8", PLAIN_WAY),
    "nvfp4, no marker": (without_marker(NVFP4), "nvfp4", PLAIN_WAY),
    "fp8 with scales of e8m0": (
        without_marker(
            MXFP8 | {"weight_scale": lambda w: MXFP8["weight_scale"](w).view(torch.float8_e8m0fnu)}
        ),
        "mxfp8",
        PLAIN_WAY,
    ),
    "nunchaku": (
        lambda layer, w: {
            f"{layer}.{n}": torch.zeros(4, 4) for n in ("qweight", "wscales", "smooth_factor", "proj_up")
        },
        "nunchaku",
        PLAIN_WAY,
    ),
    "GPTQ": (
        lambda layer, w: {
            f"{layer}.{n}": torch.zeros(4, 4, dtype=torch.int32) for n in ("qweight", "qzeros", "scales")
        },
        "GPTQ",
        PLAIN_WAY,
    ),
    "bitsandbytes nf4": (
        lambda layer, w: {
            f"{layer}.weight": torch.zeros(w.numel() // 2, 1, dtype=torch.uint8),
            f"{layer}.weight.absmax": torch.zeros(w.numel() // 64, dtype=torch.uint8),
            f"{layer}.weight.quant_map": torch.zeros(16),
            f"{layer}.weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
        },
        "bitsandbytes",
        PLAIN_WAY,
    ),
    "bitsandbytes int8": (
        lambda layer, w: {f"{layer}.weight": w.sign().to(torch.int8), f"{layer}.SCB": torch.ones(w.shape[0])},
        "bitsandbytes",
        PLAIN_WAY,
    ),
    "optimum-quanto": (
        lambda layer, w: {
            f"{layer}.weight._data": w.sign().to(torch.int8),
            f"{layer}.weight._scale": torch.ones(w.shape[0], 1),
        },
        "quanto",
        PLAIN_WAY,
    ),
    "torchao": (
        lambda layer, w: {
            f"{layer}._weight_qdata": w.to(E4M3),
            f"{layer}._weight_scale": torch.ones(w.shape[0], 1),
        },
        "torchao",
        PLAIN_WAY,
    ),
    "SDNQ": (
        lambda layer, w: {f"{layer}.weight": packed(w), f"{layer}.scale": torch.ones(w.shape[0], 1, 1)},
        "SDNQ",
        PLAIN_WAY,
    ),
    "ModelOpt": (
        lambda layer, w: {f"{layer}.weight": w.to(E4M3), f"{layer}.weight_quantizer._scale": torch.ones(())},
        "ModelOpt",
        PLAIN_WAY,
    ),
    "compressed-tensors": (
        lambda layer, w: {
            f"{layer}.weight_packed": torch.zeros(4, 4, dtype=torch.int32),
            f"{layer}.weight_shape": torch.ones(2),
        },
        "compressed-tensors",
        PLAIN_WAY,
    ),
    "MLX": (
        lambda layer, w: (
            {f"{layer}.weight": torch.zeros(4, 4, dtype=torch.int32)}
            | {f"{layer}.{n}": torch.ones(4, 4) for n in ("scales", "biases")}
        ),
        "MLX",
        PLAIN_WAY,
    ),
    "scales under a name that nobody knows": (
        lambda layer, w: {f"{layer}.weight": w.to(E4M3), f"{layer}.fancy_scale": torch.ones(())},
        r"fancy_scale",
        "Choose another file",
    ),
    "bf16 with scales": (
        lambda layer, w: {f"{layer}.weight": w, f"{layer}.weight_scale": torch.tensor(0.5)},
        "has scales beside .* in bfloat16",
        PLAIN_WAY,
    ),
    "two scales": (
        lambda layer, w: {
            f"{layer}.weight": w.to(E4M3),
            f"{layer}.weight_scale": torch.ones(()),
            f"{layer}.scale_weight": torch.ones(()),
        },
        "two scales for one layer",
        "another file",
    ),
    "scales of no known shape": (
        lambda layer, w: {f"{layer}.weight": w.to(E4M3), f"{layer}.weight_scale": torch.ones(7, 3)},
        r"scales of shape \(7, 3\), expected one value, one per row",
        "bf16 file",
    ),
    "rotated fp8": (
        lambda layer, w: {
            f"{layer}.weight": w.to(E4M3),
            f"{layer}.weight_scale": torch.ones(()),
            f"{layer}.comfy_quant": mark('{"format": "float8_e4m3fn", "convrot": true}'),
        },
        "with convrot",
        "bf16 file",
    ),
    "marked as another type": (
        lambda layer, w: {
            f"{layer}.weight": w.to(E5M2),
            f"{layer}.weight_scale": torch.ones(()),
            f"{layer}.comfy_quant": mark('{"format": "float8_e4m3fn"}'),
        },
        "said to be float8_e4m3fn and is stored as float8_e5m2",
        "another file",
    ),
    "marked and not quantised": (
        lambda layer, w: {
            f"{layer}.weight": w,
            f"{layer}.weight_scale": torch.ones(()),
            f"{layer}.comfy_quant": mark('{"format": "float8_e4m3fn"}'),
        },
        "is float8_e4m3fn and stores it as bfloat16",
        PLAIN_WAY,
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("names", ["ComfyUI's names", "diffusers' names", "under a prefix"])
def test_other_quantisations_are_refused_by_name(
    other: str, names: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Whether values are read or not, and with the quantised layers anywhere in the file."""
    make, named, way_out = OTHERS[other]
    source = transformer_to_diffusers(state) if names == "diffusers' names" else state
    prefix = "model.diffusion_model." if names == "under a prefix" else ""
    tensors = {prefix + k: v.contiguous() for k, v in replaced(source, make).items()}
    tensors = dict(random.Random(9).sample(sorted(tensors.items()), len(tensors)))
    path = tmp_path / "their_model.safetensors"
    save_file(tensors, path)
    for values in (True, False):
        with pytest.raises(WeightsError, match=named) as error:
            read_transformer(path, values)
        message = str(error.value)
        assert "their_model.safetensors" in message
        with pytest.raises(WeightsError, match=way_out):
            raise error.value


def test_quantised_embedders_hide_no_quantiser(state: dict[str, Tensor]) -> None:
    """Where even the layer that tells a transformer is packed, the quantiser is still named."""
    tensors = {}
    for key, value in state.items():
        layer = key.removesuffix(".weight")
        if value.ndim == 2 and key.endswith(".weight"):
            tensors |= {
                f"{layer}.weight._data": value.sign().to(torch.int8),
                f"{layer}.weight._scale": value[:, :1],
            }
        else:
            tensors[key] = value
    with pytest.raises(WeightsError, match="quanto"):
        load_transformer(tensors)


def test_a_quantised_text_encoder_names_the_hosts_own_loader() -> None:
    state = randomise(Qwen3TextEncoder(SMALL_TE), 3).state_dict()
    state["model.layers.0.mlp.up_proj.comfy_quant"] = mark('{"format": "awq_w4a16"}')
    with pytest.raises(WeightsError, match="'awq_w4a16'.*Load CLIP, type lumina2"):
        load_text_encoder(state)


@pytest.mark.parametrize("marker", MARKERS)
def test_lost_scales_are_missed(marker: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """One scale of many, with and without markers: the layer would be wrong by a factor of thousands."""
    out, _ = scaled(state, "weight_scale", "[]", E4M3, 11)
    del out["layers.1.feed_forward.w2.weight_scale"]
    tensors, metadata = marked(out, block_linears(state), marker, "float8_e4m3fn")
    save_file(tensors, tmp_path / "file.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match=r"layers\.1\.feed_forward\.w2.*[Dd]ownload it again"):
        load_transformer(tmp_path / "file.safetensors")


@pytest.mark.parametrize("dtype", FP8)
def test_all_scales_lost(dtype: torch.dtype, state: dict[str, Tensor]) -> None:
    """No weight of a model is as large as fp8 goes: without any scale left, its values tell."""
    out, _ = scaled(state, "weight_scale", "[]", dtype, 14)
    with pytest.raises(WeightsError, match="no scales, expected weights below 100.*Download"):
        load_transformer({k: v for k, v in out.items() if not k.endswith("weight_scale")})


def test_lost_weights_are_missed(state: dict[str, Tensor]) -> None:
    """A weight that was renamed beside its scale and its marker."""
    for marker in ("none", "comfy_quant", "scaled_fp8"):
        out, _ = scaled(state, "weight_scale", "[]", E4M3, 12)
        out["layers.1.feed_forward.w2.kernel"] = out.pop("layers.1.feed_forward.w2.weight")
        tensors, _ = marked(out, block_linears(state), marker, "float8_e4m3fn")
        with pytest.raises(WeightsError, match=r"layers\.1\.feed_forward\.w2\.weight .* does not hold it"):
            load_transformer(tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -0.5])
def test_scales_that_are_no_numbers(value: float, state: dict[str, Tensor]) -> None:
    out, _ = scaled(state, "weight_scale", "[rows]", E4M3, 13)
    out["layers.0.attention.out.weight_scale"][3] = value
    with pytest.raises(WeightsError, match=r"layers\.0\.attention\.out\.weight_scale holds .*above 0"):
        load_transformer(out)
