"""What takes long: which tests run, what need not run again, and the record of the last run.

`python dev.py test` leaves out the marker `long` and gives tests marked `sampled` a small size;
`python dev.py test --long` sets ZIMAGE_LONG and runs these two kinds alone, at full size.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

LONG = bool(os.environ.get("ZIMAGE_LONG"))
STATE = Path(".cache/long")  # a file per state of the tree: a line of JSON per test that passed
RESULT = Path("tests/results/long.json")
INSIDE = "tests/inside"


def size(short: int, long: int) -> int:
    """How many cases a test marked `sampled` takes."""
    return long if LONG else short


def tree_key(root: Path) -> str | None:
    """A digest of every file that git knows or would add, results apart; None outside of git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True)
    if listed.returncode:
        return None
    digest = hashlib.sha256(os.environ.get("COMFYUI_PATH", "").encode())
    for name in sorted(set(listed.stdout.split(b"\0"))):
        path = root / os.fsdecode(name)
        if path.is_file() and RESULT.parent not in path.relative_to(root).parents:
            digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def commit(root: Path) -> str:
    """The commit that was tested, "+" behind it when files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", f":!{RESULT.parent.as_posix()}")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


class LongRun:
    """Remembers what passed as soon as it passed, so that a run that broke off goes on from there."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.root = config, config.rootpath
        key = tree_key(self.root)
        self.state = self.root / STATE / f"{key}.jsonl" if key else None
        self.commit = commit(self.root)
        lines = self.state.read_text().splitlines() if self.state and self.state.exists() else []
        self.passed: dict[str, dict] = {line["test"]: line for line in map(json.loads, lines)}
        self.failed: set[str] = set()
        self.running: dict[str, dict] = {}
        self.asked: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        marked = [item for item in items if marks(item) & {"long", "sampled"}]
        self.asked = [item.nodeid for item in marked]
        choose(self.config, items, [item for item in marked if item.nodeid not in self.passed])

    def pytest_report_collectionfinish(self) -> str:
        done = sum(test in self.passed for test in self.asked)
        return f"long: {len(self.asked)} tests, {done} of them passed before in this state of the tree"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = self.running.setdefault(report.nodeid, {"test": report.nodeid, "seconds": 0.0})
        line["seconds"] = round(line["seconds"] + report.duration, 1)
        if report.failed:
            self.failed.add(report.nodeid)
        if report.when != "teardown" or report.nodeid in self.failed:
            return
        line["facts"] = dict(report.user_properties)
        self.passed[report.nodeid] = line
        if self.state:
            self.state.parent.mkdir(parents=True, exist_ok=True)
            with self.state.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.asked:
            session.exitstatus = pytest.ExitCode.OK  # all of it passed before
        part = self.part()
        if not part or not self.asked or set(self.asked) - set(self.passed) - self.failed:
            return  # not all of it was asked for, or it broke off: no result
        lines = [self.passed.get(test) or self.running[test] for test in self.asked]
        slowest = sorted(lines, key=lambda line: -line["seconds"])[:10]
        result = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": self.commit,
            "host": Path(os.environ.get("COMFYUI_PATH", "")).name,
            "passed": len(self.asked) - len(self.failed),
            "failed": sorted(self.failed),
            "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
            "slowest": {line["test"]: line["seconds"] for line in slowest},
            "facts": {line["test"]: line["facts"] for line in lines if line.get("facts")},
        }
        path = self.root / RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        text = json.dumps(known | {part: result}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    def part(self) -> str | None:
        """Which of the command's two runs this is: the tests, or those inside a host's process."""
        if self.config.option.keyword or self.config.option.markexpr:
            return None
        if self.config.args_source == pytest.Config.ArgsSource.TESTPATHS:
            return "tests"
        return INSIDE if self.config.args == [INSIDE] else None


class ShortRun:
    """Everything but what is marked `long`."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        choose(self.config, items, [item for item in items if "long" not in marks(item)])


def marks(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}


def choose(config: pytest.Config, items: list[pytest.Item], chosen: list[pytest.Item]) -> None:
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes long; only `dev.py test --long` runs it")
    config.addinivalue_line("markers", "sampled: small in `dev.py test`, of full size with `--long`")
    config.pluginmanager.register((LongRun if LONG else ShortRun)(config))
