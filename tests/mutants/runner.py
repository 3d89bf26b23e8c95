"""Runs tests in a copy of the tree, a forked process each time: libraries are imported once.

    python tests/mutants/runner.py          in the copy's root

Reads a line of JSON per run: {"tests": [node ids in their order] or null for all of tests/core,
"seconds": limit, "coverage": file or null}. Answers with one: {"code": exit code or null when stopped,
"failed": node id or null, "durations": {node id: seconds}}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "tests/core"
LEFT_OUT = ("tests/core/test_long.py",)  # tests of the tests


class Chosen:
    """A pytest plugin: these tests in this order, how long each took, and which lines each ran."""

    def __init__(self, tests: list[str] | None, coverage: str | None) -> None:
        self.order = None if tests is None else {test: place for place, test in enumerate(tests)}
        self.failed: str | None = None
        self.durations: dict[str, float] = {}
        self.coverage = None
        if coverage:
            from coverage import Coverage

            self.coverage = Coverage(data_file=coverage, source=[str(ROOT / "zimage_core")])
            self.coverage.start()

    def place(self, item) -> int | None:
        """By its own id, or by that of all its cases."""
        return self.order.get(item.nodeid, self.order.get(item.nodeid.split("[")[0]))

    def pytest_collection_modifyitems(self, items: list) -> None:
        if self.order is not None:
            items[:] = sorted(
                (item for item in items if self.place(item) is not None),
                key=self.place,
            )

    def pytest_runtest_protocol(self, item) -> None:
        if self.coverage:
            self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        self.durations[report.nodeid] = self.durations.get(report.nodeid, 0.0) + report.duration
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_sessionfinish(self) -> None:
        if self.coverage:
            self.coverage.stop()
            self.coverage.save()


def run(order: dict, answer: Path) -> int:
    """In the forked process: pytest, and what it found into `answer`."""
    import pytest

    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    tests = order["tests"]
    chosen = Chosen(tests, order["coverage"])
    files = [FOLDER] if tests is None else dict.fromkeys(test.split("::")[0] for test in tests)
    options = ["-x", "-q", "-p", "no:cacheprovider", *(f"--ignore={name}" for name in LEFT_OUT)]
    code = int(pytest.main([*options, *files], plugins=[chosen]))
    found = {"code": code, "failed": chosen.failed, "durations": chosen.durations}
    answer.write_text(json.dumps(found))
    return 0


def limited(order: dict, answer: Path) -> dict:
    """Forks, waits at most so long, and stops what the tests may have left behind."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            run(order, answer)
        finally:
            os._exit(0)
    deadline = time.monotonic() + order["seconds"]
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            stop(child)
            os.waitpid(child, 0)
            return {"code": None, "failed": None, "durations": {}}
        time.sleep(0.02)
    stop(child)
    if not answer.exists():  # the process itself went down
        return {"code": -1, "failed": None, "durations": {}}
    return json.loads(answer.read_text())


def stop(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main() -> None:
    sys.path[0] = str(ROOT)
    from tests.host.launch import stand_in_for_missing_ops

    stand_in_for_missing_ops()
    # Nothing of zimage_core: it differs from run to run. The rest is most of what a run would wait for.
    from diffusers import (  # noqa: F401
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImageControlNetModel,
        ZImageOmniPipeline,
        ZImageTransformer2DModel,
    )
    from transformers import Qwen2Tokenizer, Qwen3ForCausalLM, Siglip2VisionModel  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(limited(json.loads(line), ROOT / "answer.json")) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
