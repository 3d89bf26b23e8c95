"""`bench gpu` runs at tiny sizes from a packed folder, with every row that it has on a card."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import carried, nano_on_card
from bench.scale import TINY
from bench.training_on_card import FORMS

FORWARDS = ("ours", "ours again", "ours, nothing kept", "native", "diffusers", "limit")
LINEARS, COPIES, TEXTS, CAPPED, STREAMED, COMPARED = 4, 3, 6, 4, 5, 3


def rows(folder: Path, json_path: Path, *options: str) -> list[dict]:
    """Of a run that has no ComfyUI but the one that it finds itself."""
    command = [sys.executable, "dev.py", "bench", "gpu", "--tiny", "--json", json_path, *options]
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(json_path.read_text(encoding="utf-8"))
    assert all(fact["name"] in done.stdout for fact in found)
    return found


@pytest.fixture(scope="module")
def packed(host_path, tmp_path_factory) -> Path:
    """As `--pack` makes it, without the wheels: the interpreter that runs the tests has those packages."""
    folder = tmp_path_factory.mktemp("packed")
    carried.copy_tree(folder)
    wheels = folder / "bench" / "wheels"
    wheels.mkdir()
    carried.archive_host(host_path, wheels)
    assert not (folder / "models").exists()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 6e6
    return folder


def test_every_row_has_a_value(packed, tmp_path) -> None:
    found = rows(packed, tmp_path / "rows.json")
    per_size = len(TINY.kernels) + 2 * len(FORWARDS) - 1
    count = 1 + LINEARS + COPIES + per_size * len(TINY.sizes) + TEXTS
    count += CAPPED * len(TINY.caps) + 1 + STREAMED * len(TINY.caps)
    count += (COMPARED + 2 * len(FORMS)) * len(TINY.sizes[:2])
    assert len(found) == count + len(nano_on_card.BARS)
    assert len({fact["name"] for fact in found}) == len(found)
    nano = [fact for fact in found if any(fact["name"].endswith(name) for name in nano_on_card.BARS)]
    measured = [fact for fact in found if fact not in nano]
    assert all(fact["value"] is not None and math.isfinite(fact["value"]) for fact in measured), measured
    assert all(fact["value"] is None and fact["holds"] is None for fact in nano)  # it is not packed


def test_the_nano_model_where_it_is(tmp_path) -> None:
    root = Path(__file__).resolve().parents[2]
    found = rows(root, tmp_path / "rows.json", "--part", "nano")
    assert len(found) == len(nano_on_card.BARS)
    assert all(math.isfinite(fact["value"]) for fact in found), found
