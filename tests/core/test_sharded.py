"""Folders of weight files, the names in a header, and parts that do not fit together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.core.peers import diffusers_of
from tests.core.random_models import TINY, random_s3dit, randomise
from tests.core.test_control_weights import as_published
from tests.core.test_weights import SMALL_AE, SMALL_TE, prefixed, same
from zimage_core import AutoencoderKL, Qwen3TextEncoder
from zimage_core.weights import WeightsError, describe, load_text_encoder, load_transformer
from zimage_core.weights.keys import transformer_to_diffusers
from zimage_core.weights.readers import parts_of

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def state() -> dict[str, Tensor]:
    return random_s3dit(TINY, 31).state_dict()


def sharded(state: dict[str, Tensor], folder: Path, count: int = 3) -> dict[str, str]:
    """Writes the tensors into so many files with an index; returns tensor -> file."""
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {key: names[i % count] for i, key in enumerate(sorted(state))}
    for name in names:
        save_file({k: v for k, v in state.items() if where[k] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_a_folder_is_read_by_its_index_or_its_only_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    sharded(state, tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "unlisted.safetensors")
    assert same(load_transformer(tmp_path).state_dict(), state)
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file(state, alone / "any.safetensors")
    assert same(load_transformer(alone).state_dict(), state)


def test_folders_that_are_not_whole_say_what_they_lack(state: dict[str, Tensor], tmp_path: Path) -> None:
    where = sharded(state, tmp_path)
    first, second, third = sorted(set(where.values()))
    with pytest.raises(WeightsError, match=f"{first} .* one of several shards: choose the folder"):
        load_transformer(tmp_path / first)
    (tmp_path / third).rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=f"lacks 1 of 3 shards: {third}. Download them"):
        load_transformer(tmp_path)
    index = tmp_path / INDEX
    index.write_text(json.dumps({"weight_map": where | {"x": "../elsewhere"}}))
    with pytest.raises(WeightsError, match="names files outside its folder: ../elsewhere"):
        load_transformer(tmp_path)
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(WeightsError, match="lacks 0 of 0 shards"):
        load_transformer(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(text)
        with pytest.raises(WeightsError, match="expected JSON with a weight_map"):
            load_transformer(tmp_path)
    index.unlink()
    with pytest.raises(WeightsError, match="holds 2 .safetensors files and no index: choose one"):
        load_transformer(tmp_path)
    (tmp_path / second).unlink()
    (tmp_path / first).unlink()
    with pytest.raises(WeightsError, match="holds 0 .safetensors files"):
        load_transformer(tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="is no file and no folder"):
        load_transformer(tmp_path / "pipe.safetensors")


def test_the_parts_of_a_file_by_its_names(state: dict[str, Tensor], tmp_path: Path) -> None:
    text = randomise(Qwen3TextEncoder(SMALL_TE), 1).state_dict()
    pixels = randomise(AutoencoderKL(SMALL_AE), 1).state_dict()
    every = prefixed(state, "model.diffusion_model.") | prefixed(pixels, "vae.")
    every |= prefixed(text, "text_encoders.qwen3_4b.transformer.")
    files = {
        "all": (every, "transformer text_encoder autoencoder"),
        "transformer": (state, "transformer"),
        "diffusers": (transformer_to_diffusers(state), "transformer"),
        "text": (text, "text_encoder"),
        "pixels": (pixels, "autoencoder"),
        "control": (as_published("2.1"), "control"),
        "lumina": ({k: v for k, v in state.items() if k != "cap_pad_token"}, ""),
        "nothing": ({"a": torch.zeros(1)}, ""),
    }
    for name, (tensors, parts) in files.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / f"{name}.safetensors")
        assert parts_of(tmp_path / f"{name}.safetensors") == set(parts.split()), name
    (tmp_path / "damaged.safetensors").write_bytes(bytes(100))
    for name in ("damaged.safetensors", "gone.safetensors"):
        assert parts_of(tmp_path / name) == set()


def test_attention_that_does_not_fit_together_is_refused(state: dict[str, Tensor]) -> None:
    split = transformer_to_diffusers(state)
    base = "layers.1.attention"
    for change, message in (
        ({f"{base}.qkv.weight": state[f"{base}.qkv.weight"]}, "holds .*qkv twice or misshapen"),
        ({f"{base}.to_k.weight": torch.zeros(256)}, "holds .*qkv twice or misshapen"),
        ({f"{base}.to_k.weight": torch.zeros(256, 255)}, "of shapes .*as many columns in each"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_transformer(split | change)


@pytest.mark.parametrize("width", [96, 100])
def test_sizes_that_contradict_each_other_are_refused(width: int, state: dict[str, Tensor]) -> None:
    change = {f"layers.{i}.attention.q_norm.weight": torch.ones(width) for i in range(2)}
    with pytest.raises(WeightsError, match="sizes that do not fit together"):
        load_transformer(state | change)


def test_a_text_encoder_cut_to_what_prompts_need_cannot_write() -> None:
    whole = randomise(Qwen3TextEncoder(SMALL_TE, language_model=True), 2).state_dict()
    cut = {k: v for k, v in whole.items() if k != "model.norm.weight"}
    ids = torch.arange(9)[None]
    assert torch.equal(load_text_encoder(cut)(ids), load_text_encoder(whole)(ids))
    with pytest.raises(WeightsError, match="no model.norm.weight: it was cut .* whole Qwen3-4B"):
        load_text_encoder(cut, language_model=True)


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_variant_is_read_where_it_is_alone(state: dict[str, Tensor], tmp_path: Path, variant: str) -> None:
    """As diffusers names them: the index of a variant has it before the last ending."""
    sharded(state, tmp_path)
    index = tmp_path / INDEX
    index.rename(tmp_path / f"diffusion_pytorch_model.safetensors.index{variant}.json")
    assert same(load_transformer(tmp_path).state_dict(), state)
    single = tmp_path / "single"
    single.mkdir()
    save_file(state, single / f"diffusion_pytorch_model{variant}.safetensors")
    assert same(load_transformer(single).state_dict(), state)


def test_of_a_model_and_its_variant_the_model_is_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert same(load_transformer(tmp_path).state_dict(), state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds 2 .safetensors files and no index: choose one file"):
        load_transformer(tmp_path)


def test_the_model_is_read_beside_a_variant_in_shards(state: dict[str, Tensor], tmp_path: Path) -> None:
    """As diffusers writes both; the variant alone, and without all of its shards, is no model."""
    peer = diffusers_of(load_transformer(state, dtype=torch.float32))
    peer.save_pretrained(tmp_path)
    peer.half().save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same(load_transformer(tmp_path).state_dict(), state)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    halves = {key: value.half() for key, value in state.items()}
    assert same(load_transformer(tmp_path).state_dict(), halves)
    for path in sorted(tmp_path.glob("*.safetensors"))[1:]:
        path.unlink()
    with pytest.raises(WeightsError, match=r"lacks \d+ of \d+ shards: diffusion_pytorch_model.fp16-00002"):
        load_transformer(tmp_path)


def test_a_folder_of_pickles_is_told(state: dict[str, Tensor], tmp_path: Path) -> None:
    diffusers_of(load_transformer(state)).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(WeightsError, match="holds diffusion_pytorch_model.bin, .* Pickles are never opened"):
        load_transformer(tmp_path)


@pytest.mark.parametrize("place", ["transformer", "Z-Image-Turbo/transformer"])
def test_a_whole_model_is_a_folder_of_each_part(state: dict[str, Tensor], tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    sharded(state, folder)
    text = randomise(Qwen3TextEncoder(SMALL_TE, language_model=True), 3)
    (folder.parent / "text_encoder").mkdir()
    save_file(text.state_dict(), folder.parent / "text_encoder" / "model.safetensors")
    assert same(load_transformer(tmp_path).state_dict(), state)
    assert same(load_text_encoder(tmp_path, language_model=True).state_dict(), text.state_dict())
    found = describe(tmp_path)
    assert set(found) == {"transformer", "text_encoder"}
    assert found["transformer"]["variant"] == "Turbo" and "variant" not in found["text_encoder"]
