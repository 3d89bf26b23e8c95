"""Where the host streams weights from disk, ours know their places in the file as its own do.

That needs an NVIDIA card. So here the file is mapped by Python in the place of the host's library; on a host
that has no such loader at all, all of it is a stand-in.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import comfy
import comfy.model_patcher
import comfy.utils
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.random_models import random_s3dit
from tests.host.inside import extension_module
from tests.host.weight_files import TRANSFORMER
from tests.inside.sampling import SEED
from zimage_core.weights.keys import transformer_to_diffusers

STATE = {k: v.bfloat16() for k, v in random_s3dit(TRANSFORMER, SEED).state_dict().items()}
SLICE = "_comfy_tensor_file_slice"

mapped = extension_module("nodes.host.loading.mapped")
model = extension_module("nodes.host.loading.model")
read_transformer = extension_module("zimage_core.weights").read_transformer
WeightsError = extension_module("zimage_core.weights").WeightsError


class Slice(NamedTuple):
    file_ref: object
    lock: object
    offset: int
    size: int


def place(tensor: Tensor) -> tuple[int, int]:
    """(offset, bytes) in its file, as the host looks it up."""
    info = getattr(tensor.untyped_storage(), SLICE)
    return info.offset, info.size


def places_in(path: Path) -> dict[str, tuple[int, int]]:
    """By the file's own header."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    offsets = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (8 + length + start, end - start) for name, (start, end) in offsets.items()}


class Mapped:
    """A file in memory, in the place of the host's own."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115  (as long as its tensors)
        self.bytes = np.frombuffer(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def get(self) -> int:
        return self.bytes.ctypes.data

    def get_file_handle(self) -> object:
        return self.file


def marked(path: str, **options: bool) -> dict[str, Tensor]:
    """A loader as newer hosts have it."""
    tensors = load_file(path)
    for name, at in places_in(Path(path)).items():
        setattr(tensors[name].untyped_storage(), SLICE, Slice(path, None, *at))
    return tensors


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Tensor]]:
    """The host streams from disk; its own loader."""
    if hasattr(comfy, "memory_management"):
        import comfy_aimdo.model_mmap

        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
        monkeypatch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", Mapped)
    else:
        monkeypatch.setattr(comfy, "memory_management", SimpleNamespace(aimdo_enabled=True), raising=False)
        monkeypatch.setattr(comfy.utils, "load_torch_file", marked)
    return lambda path: comfy.utils.load_torch_file(str(path))


def written(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_tensors_carry_what_the_hosts_own_carry(streaming, tmp_path: Path) -> None:
    """Under the prefix that other tools leave as well; the values are those of the file."""
    path = written(tmp_path / "file.safetensors", {f"model.diffusion_model.{k}": v for k, v in STATE.items()})
    theirs = {k.removeprefix("model.diffusion_model."): v for k, v in streaming(path).items()}
    ours = read_transformer(mapped.mapped(path)).tensors
    assert ours.keys() == theirs.keys() == STATE.keys()
    assert {k: place(v) for k, v in ours.items()} == {k: place(v) for k, v in theirs.items()}
    in_file = {k.removeprefix("model.diffusion_model."): at for k, at in places_in(path).items()}
    assert {k: place(v) for k, v in ours.items()} == in_file
    assert all(torch.equal(value, STATE[name]) for name, value in ours.items())


def test_what_is_made_of_several_tensors_has_no_place(streaming, tmp_path: Path) -> None:
    """q, k and v of a diffusers folder become one matrix, which no file holds; the rest is where it was."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    written(folder / "diffusion_pytorch_model.safetensors", transformer_to_diffusers(STATE))
    ours = read_transformer(mapped.mapped(folder)).tensors
    assert all(torch.equal(value, STATE[name]) for name, value in ours.items())
    placed = {name for name, value in ours.items() if hasattr(value.untyped_storage(), SLICE)}
    assert {name for name in ours if name not in placed} == {name for name in ours if "qkv" in name}


def test_a_model_that_streams_has_them_as_its_weights(streaming, tmp_path: Path) -> None:
    """As the host assigns them, without a copy."""
    path = written(tmp_path / "file.safetensors", STATE)
    tensors = read_transformer(mapped.mapped(path)).tensors
    with torch.device("meta"):
        network = model.build(operations=torch.nn, **vars(TRANSFORMER))
    network.load_state_dict(tensors, assign=True)
    assert {name: place(value) for name, value in network.named_parameters()} == places_in(path)


def test_a_damaged_file_is_named_as_ever(streaming, tmp_path: Path) -> None:
    path = written(tmp_path / "file.safetensors", STATE)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="file.safetensors is truncated"):
        read_transformer(mapped.mapped(path))


def test_without_streaming_files_are_opened_by_us(tmp_path: Path) -> None:
    path = written(tmp_path / "file.safetensors", STATE)
    assert mapped.mapped(path) is path


def test_hosts_that_ask_are_told_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI 0.38 reads weights again from a fast one; a stand-in for its patcher and its look at disks."""
    path, asked = written(tmp_path / "file.safetensors", STATE), []

    class Patcher(comfy.model_patcher.ModelPatcher):
        def __init__(self, *args, fast_disk: bool = False, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.fast_disk = fast_disk

    storage = SimpleNamespace(model_fast_disk=lambda paths: asked.append(list(paths)) or True)
    monkeypatch.setattr(mapped, "storage", storage)
    assert not hasattr(model.load_patcher(path), "fast_disk") and not asked
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Patcher, raising=False)
    assert model.load_patcher(path).fast_disk
    assert asked == [[str(path)]]
