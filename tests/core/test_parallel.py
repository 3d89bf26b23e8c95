"""One picture by several processes equals that of one; see split.py for the forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.core.processes import ended, start
from tests.core.random_models import TINY
from tests.core.split import CASES
from tests.long import LONG
from zimage_core import S3DiT
from zimage_core.acceleration.parallel import Parallel, parts

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


def test_a_picture_by_the_pipeline_is_the_same(errors) -> None:
    """With guidance, streamed weights, and tiles shared out."""
    assert all(float(each["picture"]) <= CLOSE for each in errors[2])


def test_a_model_in_parts_draws_the_same(errors) -> None:
    """Each process holds about half of the transformer; see `split.in_parts`."""
    assert all(float(each["in parts"]) <= CLOSE for each in errors[2])


def test_without_seeds_all_draw_the_picture_of_the_first(errors) -> None:
    assert all(float(each["of the first"]) <= CLOSE for each in errors[2])


def test_without_a_group_of_processes_it_says_how_to_start_them() -> None:
    with pytest.raises(ValueError, match="torchrun .*init_process_group"):
        Parallel()


def test_more_processes_than_heads_are_refused() -> None:
    parallel = Parallel.__new__(Parallel)
    parallel.size = 4
    with pytest.raises(ValueError, match="4 processes for 2 heads.*at most 2"):
        parallel.check(S3DiT(TINY, device="meta"))


@pytest.mark.parametrize(
    ("count", "size", "wanted"),
    [(30, 2, [15, 15]), (30, 4, [7, 8, 7, 8]), (7, 3, [2, 2, 3]), (3, 3, [1, 1, 1])],
)
def test_parts_are_as_even_as_can_be(count: int, size: int, wanted: list[int]) -> None:
    assert parts(count, size) == wanted
