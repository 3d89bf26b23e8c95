"""A file that is damaged or strange ends in a load that is right, or in an error that says what is wrong."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import re
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.damage import DAMAGES, Source, sources
from tests.core.damage_formats import (
    BYTES,
    GGUF_DAMAGES,
    GGUF_TYPES,
    MARKER_DAMAGES,
    GGUFDraft,
    gguf_source,
    kitchen_sources,
)
from tests.core.random_models import relative
from tests.long import size
from zimage_core.weights import READERS, WeightsError, describe

SEED = int(os.environ.get("ZIMAGE_SEED", "4711"))
# 20,000 in a long run, and the undamaged among them
FORMAT_FILES = size(short=130, long=5850)
FILES = size(short=9, long=470) * len(DAMAGES)
SECONDS, MEMORY = 20, 2**30  # that a file may take, the small ones that they all are; bytes of address space
TO_DO = re.compile(r"[Dd]ownload|[Cc]hoose|[Uu]se |Load it|Run git|check the name")


@pytest.fixture(scope="module")
def good() -> dict[str, Source]:
    return sources()


def same(found: dict[str, Tensor], truth: dict[str, Tensor]) -> bool:
    """Every weight as the undamaged file means it; of fused attention in bf16, when it was dequantised.

    A text encoder without its last norm is one without the output head.
    """
    truth = {k: v for k, v in truth.items() if k != "model.norm.weight" or k in found}
    return all(k in found and relative(found[k], truth[k]) <= (4e-3 if ".qkv." in k else 1e-6) for k in truth)


@contextlib.contextmanager
def capped() -> Iterator[None]:
    """Whatever takes too long or too much memory fails, in place of the whole run."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@capped()
def outcome(source: Source, path: Path) -> str:
    """ "right" or "refused"; anything else is an error that the test must not meet."""
    results = []
    for values in (True, False):
        try:
            checkpoint = READERS[source.kind](path, values)
            if values:
                assert same(checkpoint.plain(torch.float32), source.truth), "loaded, and wrong"
            results.append("right")
        except WeightsError as error:
            message = str(error)
            assert path.name in message or path.stem in message, f"names no file: {message}"
            assert TO_DO.search(message), f"says nothing to do: {message}"
            assert len(message) < 1200, message
            results.append("refused")
    assert results != ["right", "refused"], "read as a whole, and refused by its header"
    try:
        describe(path)
    except WeightsError:
        pass
    return results[0]


@pytest.mark.parametrize("values", [True, False])
def test_undamaged_files_are_read(good: dict[str, Source], tmp_path: Path, values: bool) -> None:
    """The controls: each file that is damaged below, as it was before."""
    for name, source in good.items():
        path = tmp_path / "good.safetensors"
        path.write_bytes(source.draft.written())
        checkpoint = READERS[source.kind](path, values)
        if values:
            assert same(checkpoint.plain(torch.float32), source.truth), name
        assert describe(path)[source.kind]["parameters"] == checkpoint.parameters, name


@pytest.mark.sampled
def test_damaged_files(good: dict[str, Source], tmp_path: Path, record_property) -> None:
    """Each kind of damage on files drawn at random; every tenth file is an undamaged control."""
    names = list(good)
    counts: dict[str, Counter] = {kind: Counter() for kind in (*DAMAGES, "none")}
    failures = []
    for number in range(FILES):
        kind = list(DAMAGES)[number % len(DAMAGES)]
        rng = random.Random(SEED + number)
        name = rng.choice(names)
        source = good[name]
        path = tmp_path / "file.safetensors"
        if number % 10 == 9:
            path.write_bytes(source.draft.written())
            found = outcome(source, path)
            counts["none"][found] += 1
            path.unlink()
        try:
            DAMAGES[kind](rng, copy.deepcopy(source.draft), path)
            counts[kind][outcome(source, path)] += 1
        except Exception as error:
            failures.append(
                f"ZIMAGE_SEED={SEED}, file {number}: {kind} of {name}: {type(error).__name__}: {error}"
            )
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    table = {kind: dict(count) for kind, count in counts.items()}
    record_property("outcomes", table)
    assert not failures, "\n".join([f"{len(failures)} of {FILES}", *failures[:40]])
    assert table["none"] == {"right": FILES // 10}, table
    assert all(count["refused"] for kind, count in counts.items() if kind != "none"), table


def test_the_caps_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError), capped():
        torch.empty(2 * MEMORY, dtype=torch.uint8)
    monkeypatch.setitem(globals(), "SECONDS", 0.05)
    with pytest.raises(TimeoutError, match="more than 0.05 s"), capped():
        time.sleep(30)
    assert torch.empty(2 * MEMORY, dtype=torch.uint8).numel() == 2 * MEMORY


def tried(kinds: list[str], files: int, make: Callable, path: Path) -> dict[str, Counter]:
    """The outcomes of files by kind of damage. make(rng, kind) -> (source, content, what it is)."""
    counts: dict[str, Counter] = {kind: Counter() for kind in kinds}
    failures = []
    for number in range(files):
        kind, rng = kinds[number % len(kinds)], random.Random(SEED + number)
        what = kind
        try:
            source, content, what = make(rng, kind)
            path.write_bytes(content)
            counts[kind][outcome(source, path)] += 1
        except Exception as error:
            failures.append(
                f"ZIMAGE_SEED={SEED}, file {number}: {kind} of {what}: {type(error).__name__}: {error!s:.300}"
            )
    assert not failures, "\n".join([f"{len(failures)} of {files}", *failures[:40]])
    return counts


@pytest.mark.sampled
def test_damaged_files_of_comfyui_formats(tmp_path: Path, record_property) -> None:
    """Markers with odd values, and layers whose tensors are not those of their format."""
    good = kitchen_sources()

    def make(rng: random.Random, kind: str) -> tuple[Source, bytes, str]:
        name = rng.choice(list(good))
        draft = copy.deepcopy(good[name].draft)
        if kind != "none":
            MARKER_DAMAGES[kind](rng, draft)
        return good[name], draft.written(), name

    counts = tried([*MARKER_DAMAGES, "none"], FORMAT_FILES, make, tmp_path / "file.safetensors")
    record_property("outcomes", {kind: dict(count) for kind, count in counts.items()})
    assert list(counts.pop("none")) == ["right"]
    assert all(count["refused"] for count in counts.values()), counts


@pytest.mark.sampled
def test_damaged_gguf_files(tmp_path: Path, record_property) -> None:
    """Counts, sizes, places, types and names in the header that are wrong, huge or odd."""
    good = {name: gguf_source(name) for name in GGUF_TYPES}

    def make(rng: random.Random, kind: str) -> tuple[Source, bytes, str]:
        name = rng.choice(list(good))
        draft: GGUFDraft = copy.deepcopy(good[name][0])
        if kind in GGUF_DAMAGES:
            GGUF_DAMAGES[kind](rng, draft)
        content = draft.written()
        if kind in BYTES:
            content = BYTES[kind](rng, content, len(draft.header()))
        return Source("transformer", draft, good[name][1]), content, name

    counts = tried([*GGUF_DAMAGES, *BYTES, "none"], FORMAT_FILES, make, tmp_path / "file.gguf")
    record_property("outcomes", {kind: dict(count) for kind, count in counts.items()})
    assert list(counts.pop("none")) == ["right"]
    assert all(count["refused"] for count in counts.values()), counts
