"""ComfyUI's quantised formats and GGUF: what is loaded is what their own programs read from the files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file
from torch import Tensor

from tests.core.formats import KITCHEN, READ, WIDE, block_matrices, by_kitchen, marker, write_gguf
from tests.core.random_models import random_s3dit, randomise, relative, seeds
from zimage_core import Qwen3Config, Qwen3TextEncoder, S3DiTConfig
from zimage_core.weights import (
    WeightsError,
    describe,
    load_text_encoder,
    load_transformer,
    read_transformer,
)
from zimage_core.weights.keys import TEXT_ENCODER, rename, transformer_to_diffusers

SEED = seeds(1)[0]
QWEN = Qwen3Config(
    vocab_size=32, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=128,
)  # fmt: skip


@pytest.fixture(scope="module", params=[SEED])
def state(request) -> dict[str, Tensor]:
    return random_s3dit(WIDE, request.param).state_dict()


@pytest.fixture(scope="module")
def written(state) -> Callable[[str], tuple[dict, dict, dict]]:
    """What `by_kitchen` makes of a format, made once."""
    return functools.cache(functools.partial(by_kitchen, state))


def worst(loaded: torch.nn.Module, truth: dict[str, Tensor]) -> float:
    found = loaded.state_dict()
    assert found.keys() == truth.keys()
    return max(relative(found[key].double(), truth[key].double()) for key in truth)


@pytest.mark.parametrize("marked", ["by tensors", "by tensors with nested options", "in the metadata"])
@pytest.mark.parametrize("name", KITCHEN)
def test_comfyui_formats(name: str, marked: str, written: Callable, tmp_path: Path) -> None:
    tensors, marks, truth = written(name)
    tensors = dict(tensors)
    prefix = "model.diffusion_model." if marked == "in the metadata" else ""
    metadata = {}
    if marked == "in the metadata":
        layers = {prefix + layer: spec for layer, spec in marks.items()}
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    elif marked == "by tensors with nested options":
        nested = {
            layer: {"format": spec["format"], "params": {k: v for k, v in spec.items() if k != "format"}}
            for layer, spec in marks.items()
        }
        tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in nested.items()}
    else:
        tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    path = tmp_path / "file.safetensors"
    save_file({prefix + key: value for key, value in tensors.items()}, path, metadata=metadata)
    assert worst(load_transformer(path, dtype=torch.float32), truth) <= 1e-6
    told = describe(path)["transformer"]
    assert told["left_over"] == []
    assert told["formats"] == [name.split()[0].strip(",")]
    assert told["quantised_layers"] == len(marks)
    assert told["parameters"] == sum(value.numel() for value in truth.values())


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_ggufs_types(kind: GGMLQuantizationType, state: dict[str, Tensor], tmp_path: Path) -> None:
    truth = write_gguf(tmp_path / "file.gguf", state, kind, "lumina2", SEED)
    assert worst(load_transformer(tmp_path / "file.gguf", dtype=torch.float32), truth) == 0
    told = describe(tmp_path / "file.gguf")["transformer"]
    assert told["left_over"] == []
    assert told["formats"] == [kind.name]
    assert told["dtype"] == "bfloat16"
    assert told["parameters"] == sum(value.numel() for value in truth.values())


def test_all_types_of_gguf_are_tried() -> None:
    """A type that a later gguf dequantises is missed here by name."""
    for kind in gguf.GGML_QUANT_SIZES.keys() - set(READ):
        try:
            gguf.quants.dequantize(torch.zeros(1, 4096, dtype=torch.uint8).numpy(), kind)
        except NotImplementedError:
            continue
        assert kind.name in ("F32", "F16", "BF16"), f"{kind.name} is read by gguf and not tried"


@pytest.mark.parametrize("names", ["no architecture", "under a prefix", "diffusers' names"])
def test_gguf_of_other_writers(names: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """stable-diffusion.cpp writes neither an architecture nor plain names."""
    source = transformer_to_diffusers(state) if names == "diffusers' names" else state
    prefix = "model.diffusion_model." if names == "under a prefix" else ""
    source = {prefix + key: value.contiguous() for key, value in source.items()}
    architecture = None if names == "no architecture" else "lumina2"
    truth = write_gguf(tmp_path / "file.gguf", source, GGMLQuantizationType.Q8_0, architecture, SEED)
    loaded = load_transformer(tmp_path / "file.gguf", dtype=torch.float32).state_dict()
    theirs = transformer_to_diffusers(loaded) if names == "diffusers' names" else loaded
    for key, value in truth.items():
        assert torch.equal(theirs[key.removeprefix(prefix)].double(), value.double()), key


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q5_1, GGMLQuantizationType.Q3_K])
def test_ggml_blocks_in_safetensors(
    kind: GGMLQuantizationType, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """As a model that was loaded from GGUF is saved: each layer in blocks says which."""
    path = tmp_path / "file.gguf"
    truth = write_gguf(path, state, kind, "lumina2", SEED)
    checkpoint = read_transformer(path)
    marks = {f"{layer}.comfy_quant": marker(spec) for layer, spec in checkpoint.formats.items()}
    saved = tmp_path / "saved.safetensors"
    save_file({key: value.contiguous() for key, value in (checkpoint.tensors | marks).items()}, saved)
    assert read_transformer(saved).formats == checkpoint.formats
    assert worst(load_transformer(saved, dtype=torch.float32), {k: v.float() for k, v in truth.items()}) == 0


def test_gguf_text_encoder_of_llama_cpp(tmp_path: Path) -> None:
    encoder = randomise(Qwen3TextEncoder(QWEN, language_model=True), SEED)
    ours = encoder.state_dict()
    theirs = {rename(key, TEXT_ENCODER, reverse=True): value for key, value in ours.items()}
    assert not any(key.startswith("model.") for key in theirs)
    truth = write_gguf(tmp_path / "qwen.gguf", theirs, GGMLQuantizationType.Q8_0, "qwen3", SEED)
    loaded = load_text_encoder(tmp_path / "qwen.gguf", dtype=torch.float32, language_model=True)
    assert worst(loaded, {rename(key, TEXT_ENCODER): value for key, value in truth.items()}) == 0


@pytest.mark.parametrize("said", [[4, 64, 256], [3, 5], ["x"], None])
def test_gguf_shapes_before_reshaping(said: list | None, state: dict[str, Tensor], tmp_path: Path) -> None:
    """A tensor has the shape that the metadata say, where it has as many values."""
    path = tmp_path / "file.gguf"
    writer = gguf.GGUFWriter(path, "lumina2")
    key = "t_embedder.mlp.0.weight"
    for name, value in state.items():
        writer.add_tensor(
            name, value.float().numpy().reshape(1, -1) if name == key else value.float().numpy()
        )
    original = list(state[key].shape)
    if said is not None:
        writer.add_array(f"comfy.gguf.orig_shape.{key}", said)
    else:
        writer.add_array(f"comfy.gguf.orig_shape.{key}", original)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if said is None:
        assert worst(load_transformer(path), state) == 0
    else:
        with pytest.raises(WeightsError, match="file.gguf .*t_embedder.mlp.0.weight"):
            load_transformer(path)


def broken(spec: dict, **tensors: Tensor) -> dict[str, Tensor]:
    """What a layer has when its marker and these tensors take the place of its own."""
    return {"comfy_quant": marker(spec), **tensors}


E4M3 = torch.zeros(256, 256).to(torch.float8_e4m3fn)
INT8, HALF = torch.zeros(256, 256, dtype=torch.int8), torch.zeros(256, 128, dtype=torch.uint8)
WRONG = {
    "block scales that are too few": (
        broken({"format": "mxfp8"}, weight=E4M3, weight_scale=torch.ones(256, dtype=torch.uint8)),
        "256 block scales .* expected 2048",
    ),
    "no second scale": (
        broken({"format": "nvfp4"}, weight=HALF, weight_scale=torch.ones(4096, dtype=torch.uint8)),
        "holds no layers.0.attention.out.weight_scale_2",
    ),
    "rotation by no power of four": (
        broken(
            {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 128},
            weight=INT8, weight_scale=torch.ones(256, 1),
        ),
        "groups of 128, expected a power of 4",
    ),
    "a size that is no number": (
        broken(
            {"format": "convrot_w4a4", "convrot_groupsize": "many"},
            weight=HALF, weight_scale=torch.ones(256),
        ),
        "convrot_groupsize 'many', expected a number",
    ),
    "scales of another matrix": (
        broken({"format": "int8_tensorwise"}, weight=INT8, weight_scale=torch.ones(255)),
        r"with scales \(255,\), expected one scale or one a row",
    ),
    "a scale that is not finite": (
        broken({"format": "int8_tensorwise"}, weight=INT8, weight_scale=torch.full((256, 1), float("nan"))),
        "weight_scale holds nan",
    ),
    "no scale of a channel": (
        broken({"format": "asym_w4a8_int8"}, weight=HALF, weight_s_rel=torch.ones(256, 16)),
        "holds no layers.0.attention.out.weight_s_channel",
    ),
    "a companion of another format": (
        broken(
            {"format": "int8_tensorwise"},
            weight=INT8, weight_scale=torch.ones(1), weight_scale_2=torch.ones(1),
        ),
        "weight_scale_2, which that format has not",
    ),
    "a type that ggml has not": (
        broken({"format": "gguf", "type": "Q9_9"}, weight=HALF),
        "the type 'Q9_9', which is not read here",
    ),
    "blocks without a type": (
        broken({"format": "gguf"}, weight=HALF),
        "the type 'None', which is not read here",
    ),
    "half a block": (
        broken({"format": "gguf", "type": "Q4_0"}, weight=HALF),
        "shape \\(256, 128\\), expected rows of 18 bytes a block",
    ),
    "no marker": (
        {"weight": INT8, "weight_scale": torch.ones(256, 1)},
        "int8 with scales and without a marker",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_layers_that_are_not_what_they_say(what: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    layer, (parts, message) = "layers.0.attention.out", WRONG[what]
    tensors = {key: value for key, value in state.items() if not key.startswith(f"{layer}.")}
    tensors |= {f"{layer}.{name}": value for name, value in parts.items()}
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match=f"file.safetensors.*{message}"):
        load_transformer(tmp_path / "file.safetensors")


def test_a_header_alone_tells(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Without values nothing large is read, and the description is the same."""
    write_gguf(tmp_path / "file.gguf", state, GGMLQuantizationType.Q4_K, "lumina2", SEED)
    whole, header = (read_transformer(tmp_path / "file.gguf", values) for values in (True, False))
    assert header.summary == whole.summary and header.config == whole.config
    large = [value for value in header.tensors.values() if value.numel() > 100_000]
    assert large and all(value.is_meta for value in large)


@pytest.mark.parametrize("settings, said", [
    ({"split_max_tensors": 20}, r"is one of \d+ parts of a GGUF file that was split. Join them"),
    ({"endianess": gguf.GGUFEndian.BIG}, "is a GGUF file for big-endian machines"),
])  # fmt: skip
def test_gguf_that_is_no_whole_file_for_this_machine(
    settings: dict, said: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "file.gguf", "lumina2", **settings)
    for key, value in state.items():
        writer.add_tensor(key, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = list(tmp_path.iterdir())
    assert (len(files) > 1) is ("split_max_tensors" in settings)
    for path in files:
        for read in (read_transformer, describe):
            with pytest.raises(WeightsError, match=rf"^{path.name} {said}"):
                read(path)


def test_gguf_that_is_cut_off(state: dict[str, Tensor], tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", state, GGMLQuantizationType.Q4_0, "lumina2", SEED)
    content = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "file.gguf"
    for length in (4, 20, 100, 5000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="file.gguf is (truncated|a damaged GGUF)"):
            load_transformer(path)


def test_all_matrices_are_tried() -> None:
    assert len(block_matrices(random_s3dit(WIDE, 1).state_dict())) == 3 * 5


def test_a_file_is_named_after_what_most_of_it_is_stored_in(tmp_path: Path) -> None:
    """Not after the few matrices that take more bytes since they are kept."""
    config = S3DiTConfig(
        dim=256, n_layers=2, n_refiner_layers=1, n_heads=2, ffn_dim=512, t_hidden=128, cap_feat_dim=256
    )
    state = random_s3dit(config, SEED).state_dict()
    matrices = {key: value.numel() for key, value in state.items() if value.ndim == 2}
    inside = sum(matrices[f"{layer}.weight"] for layer in block_matrices(state))
    kept = sum(matrices.values()) - inside
    assert inside > kept and 4 * kept > 18 / 32 * inside, "a block of 32 takes 18 bytes"
    write_gguf(tmp_path / "small.gguf", state, GGMLQuantizationType.Q4_0, "lumina2", SEED)
    assert read_transformer(tmp_path / "small.gguf").precision == "Q4_0"
