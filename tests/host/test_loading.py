"""What `bench loading` measures, on a small file: counts alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench import loading, loading_file
from zimage_core import S3DiTConfig

CONFIG = S3DiTConfig(dim=512, n_layers=4, n_heads=4, cap_feat_dim=512)
ELSEWHERE = 16e6  # bytes of Python's and the host's objects


def test_a_file_is_read_once_and_held_once(tmp_path: Path, host_path: Path) -> None:
    path = loading_file.write(tmp_path / "file.safetensors", CONFIG)
    found = loading.measured("ours", path)
    assert found["tensors"] == loading_file.size(CONFIG) and found["dtypes"] == ["torch.bfloat16"]
    assert max(found["read"], found["called"]) <= 1.02 * path.stat().st_size
    assert found["anonymous"] <= found["tensors"] + ELSEWHERE


def test_a_planted_copy_is_seen() -> None:
    size, tensors = 4_000_000_000, 4_000_000_000
    good = {"read": size, "called": 1000, "anonymous": tensors, "tensors": tensors, "seconds": 2.0}
    native = good | {"seconds": 2.5}
    broken = {
        "bytes read / file": {"read": 2 * size},
        "memory beside the tensors": {"anonymous": 2 * tensors},
        "our time / the host's": {"seconds": 3.0},
    }
    for name, change in {"": {}, **broken}.items():
        rows = loading.rows({"ours": [good | change] * 3, "native": [native] * 3}, size, 30)
        assert [row["name"].endswith(name) for row in rows if row["holds"] is False] == [True] * bool(name)


def test_the_file_has_as_many_layers_as_there_is_room_for() -> None:
    whole = loading_file.size(S3DiTConfig())
    assert loading.fitting(S3DiTConfig(), 2 * whole, 2 * whole).n_layers == 30
    for memory, disk in ((whole - 1, whole), (whole, whole - 1)):
        assert loading.fitting(S3DiTConfig(), memory, disk).n_layers == 29
    less = loading.fitting(S3DiTConfig(), whole // 2, whole)
    more = dataclasses.replace(less, n_layers=less.n_layers + 1)
    assert loading_file.size(less) <= whole // 2 < loading_file.size(more)
