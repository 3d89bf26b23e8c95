"""One picture by several processes equals that of one; see split.py for the forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.core.processes import ended, start
from tests.core.split import CASES
from tests.long import LONG
from zimage_core.acceleration.parallel import parts

CLOSE = 1e-6  # relative L2 in float32; sums over parts of another size may be rounded otherwise
COUNTS = (2, 4) if LONG else (2,)


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """Of each process's velocity, by how many there were."""
    folder = tmp_path_factory.mktemp("split")
    found = {}
    for count in COUNTS:
        done = ended(start(count, "tests.core.split", str(folder)))
        assert [code for code, _ in done] == [0] * count, done
        found[count] = [load_file(Path(folder, f"{count} {rank}.safetensors")) for rank in range(count)]
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_several_processes_draw_what_one_draws(errors, name: str, count: int) -> None:
    assert all(float(each[name]) <= CLOSE for each in errors[count])


@pytest.mark.parametrize(
    ("count", "size", "wanted"),
    [(30, 2, [15, 15]), (30, 4, [7, 8, 7, 8]), (7, 3, [2, 2, 3]), (3, 3, [1, 1, 1])],
)
def test_parts_are_as_even_as_can_be(count: int, size: int, wanted: list[int]) -> None:
    assert parts(count, size) == wanted
