"""The fused kernels become machine code of real cards, which an interpreter says nothing about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {"_norm_scale", "_norm_gate_add", "_norm_rotate", "_swiglu"}
REGISTERS = 65536 // (4 * 128)  # of a thread, with four programs of 128 threads on a multiprocessor
SHARED = 48 << 10  # bytes that every card gives a program


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.core.builds"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_all_kernels_build_for_all_cards(built: list[dict]) -> None:
    cards = {(row["capability"], row["dtype"]) for row in built}
    assert {capability for capability, _ in cards} == {75, 80, 89, 90, 100, 120}
    for card in cards:
        assert {row["kernel"] for row in built if (row["capability"], row["dtype"]) == card} == KERNELS, card


def test_values_stay_in_registers(built: list[dict]) -> None:
    """Nothing is spilled to memory, and a multiprocessor has room for several programs."""
    for row in built:
        assert row["STACK"] == row["LOCAL"] == 0 and row["REG"] <= REGISTERS and row["shared"] <= SHARED, row


def test_tokens_move_sixteen_bytes_at_a_time(built: list[dict]) -> None:
    """A table's entries and the weight of heads are small; all else is as wide as a card can move it."""
    for row in built:
        narrow = [move for move in row["moves"] if ".v4.b32" not in move]
        assert len(narrow) < len(row["moves"]), row
        if row["kernel"] != "_norm_rotate":
            assert not narrow, row
        assert not [move for move in narrow if move.startswith("st")], row
