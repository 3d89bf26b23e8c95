"""Which mutants the tests of `tests/core` see: each is written into a copy of the tree and tested there.

python -m tests.mutants.trial SEED COUNT [start of the paths]     from the root; names those not seen
"""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.long import tree_key

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "mutants"
COPIED = ("zimage_core", "nodes", "tests", "bench", "workflows", "subgraphs", "locales", "web", "docs")
LINKED = ("models",)  # large, and nothing writes into it
CRASH = -1  # of the process that ran the tests
PATIENCE, START = 5.0, 60.0  # a run may take so many times as long as it did before, and so many seconds
log = logging.getLogger(__name__)


class Tree:
    """A copy of the working tree with a process that runs its tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "results")
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith(".git"):
                shutil.copy(path, folder)
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "", "ZIMAGE_LONG": ""}
        self.process = subprocess.Popen(
            [sys.executable, "tests/mutants/runner.py"],
            cwd=folder,
            env={**os.environ, **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tested(self, tests: list[str] | None, seconds: float, coverage: Path | None = None) -> dict[str, Any]:
        """See runner.py; tests: None for all of tests/core."""
        order = {"tests": tests, "seconds": seconds, "coverage": coverage and str(coverage)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that runs the tests ended with {self.process.wait()}")
        return json.loads(answer)

    @contextmanager
    def changed(self, path: str, source: str) -> Iterator[None]:
        """One file of the copy is another for a while."""
        file = self.folder / path
        before = file.read_text(encoding="utf-8")
        file.write_text(source, encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(before, encoding="utf-8")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Coverage:
    """What each test runs, and how long it takes."""

    durations: dict[str, float]
    lines: dict[str, dict[int, list[str]]]  # path -> line -> tests

    @classmethod
    def of(cls, tree: Tree, key: str | None) -> Coverage:
        """Measured once for a state of the tree: all tests pass in the copy as it is."""
        kept = CACHE / f"coverage-{key}.json"
        if key is None or not kept.exists():
            data = tree.folder / "coverage.db"
            found = tree.tested(None, 3600.0, data)
            if found["code"] != 0:
                raise RuntimeError(f"without any mutant {found['failed']} fails, code {found['code']}")
            CACHE.mkdir(parents=True, exist_ok=True)
            row = {"durations": found["durations"], "lines": covered(data, tree.folder)}
            kept.write_text(json.dumps(row))
        row = json.loads(kept.read_text())
        lines = {
            path: {int(line): tests for line, tests in by_line.items()}
            for path, by_line in row["lines"].items()
        }
        return cls(row["durations"], lines)

    def order(self, path: str, line: int, source: str) -> list[str]:
        """The tests that may see a change at a line of a file, the likeliest and shortest first.

        In a function: the tests that ran this statement, then the others of their files, which may share what
        one of these prepared. What runs at the import: the tests that run something of the file, then all.
        """
        first, last, at_import = statement(ast.parse(source), line)
        here = self.lines.get(path, {})
        tests = {test for number, found in here.items() if first <= number <= last for test in found}
        if at_import:
            tests = {test for found in here.values() for test in found}
            others = set(self.durations) - tests
        else:
            files = {test.split("::")[0] for test in tests}
            others = {test for test in self.durations if test.split("::")[0] in files} - tests
        return [*sorted(tests, key=self.durations.get), *sorted(others, key=self.durations.get)]


def statement(tree: ast.Module, line: int) -> tuple[int, int, bool]:
    """First and last line of the statement that holds a line, and whether it runs at the import."""
    body, at_import, found = tree.body, True, None
    while body:
        inside = [node for node in body if first_line(node) <= line <= node.end_lineno]
        if not inside:
            break
        found = inside[-1]
        parts = [part for name in ("body", "orelse", "finalbody") for part in getattr(found, name, [])]
        parts += [part for handler in getattr(found, "handlers", []) for part in handler.body]
        body = parts if any(first_line(part) <= line <= part.end_lineno for part in parts) else []
        if body and isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)):
            at_import = False
    if found is None:
        return line, line, True
    begins = [part.lineno for part in getattr(found, "body", [])]
    last = max(found.lineno, min(begins) - 1) if begins else found.end_lineno
    return first_line(found), last, at_import


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def covered(data: Path, folder: Path) -> dict[str, dict[int, list[str]]]:
    """path -> line -> the tests that ran it; what ran at the import has none."""
    from coverage import CoverageData

    found = CoverageData(str(data))
    found.read()
    lines = {}
    for file in found.measured_files():
        by_line = found.contexts_by_lineno(file)
        lines[Path(file).relative_to(folder).as_posix()] = {
            line: sorted(set(tests) - {""}) for line, tests in by_line.items()
        }
    return lines


def seen_by(tree: Tree, coverage: Coverage, path: str, line: int, source: str) -> str | None:
    """The first test that fails on a changed file, "time" where it never ends, None where all pass."""
    tests = coverage.order(path, line, (tree.folder / path).read_text(encoding="utf-8"))
    if not tests:
        return None
    limit = START + PATIENCE * sum(coverage.durations[test] for test in tests)
    with tree.changed(path, source):
        found = tree.tested(tests, limit)
    if found["code"] == 0:
        return None
    if found["code"] is None:
        return "time"
    if found["code"] == CRASH:
        return "crash"
    if found["code"] not in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"the tests did not run, code {found['code']}")
    if found["failed"] is None:
        return "import"  # a file of tests could not be read
    again = tree.tested([found["failed"]], limit)
    if again["code"] != 0:
        raise RuntimeError(f"{found['failed']} fails at times without any mutant: it cannot judge one")
    return found["failed"]


@contextmanager
def trial() -> Iterator[tuple[Tree, Coverage]]:
    """A copy of the tree in a scratch folder, and what its tests cover."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Tree(Path(scratch))
        try:
            yield tree, Coverage.of(tree, tree_key(ROOT))
        finally:
            tree.close()


def main(seed: int, count: int, only: str = "") -> None:
    from tests.mutants.draw import draw

    mutants, aside = draw(seed, count, only)
    log.info("seed %d: %d mutants, %d drawn and set aside", seed, len(mutants), len(aside))
    seen = 0
    with trial() as (tree, coverage):
        for number, mutant in enumerate(mutants, 1):
            begun = time.monotonic()
            test = seen_by(tree, coverage, mutant.path, mutant.line, mutant.source)
            seen += test is not None
            verdict = f"seen by {test}" if test else f"NOT SEEN\n{mutant}"
            log.info("%d: %.0f s, %s", number, time.monotonic() - begun, verdict)
    log.info("%d of %d seen", seen, count)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
