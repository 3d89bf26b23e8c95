"""Does looking at many pictures stay small? Generated ones are profiled and compared in a process of its own.

python -m bench.data_memory FOLDER COUNT: writes them, looks at them, and prints what that took.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from zimage_core.train.data.inspection import Plan, inspect
from zimage_core.train.data.profile import Thresholds
from zimage_core.train.data.store import load

SIDE = 64  # pixels
FIELDS = 7  # of a side: colours that run into each other
COPY_EVERY = 50  # one in so many is a re-encoded copy of the one before it
ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, count: int) -> None:
    """In folders of a thousand, as jpg; goes on where it was broken off."""
    for start in range(0, count, 1000):
        part = folder / f"{start:07}"
        if (part / "done").exists():
            continue
        part.mkdir(parents=True, exist_ok=True)
        dice = np.random.default_rng(start)
        for number in range(start, min(start + 1000, count)):
            is_copy = number % COPY_EVERY == 1
            if not is_copy:
                fields = dice.integers(0, 256, (FIELDS, FIELDS, 3), dtype=np.uint8)
                image = Image.fromarray(fields).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(part / f"{number:07}.jpg", quality=70 if is_copy else 90)
            (part / f"{number:07}.txt").write_text(f"picture {number}")
        (part / "done").touch()


def measure(folder: Path, count: int) -> dict[str, float]:
    """What looking at them takes, without text: that takes a second each, and no memory of its own."""
    begun = time.monotonic()
    data = load(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = Plan(Thresholds(side=16, sharpness=0, cast=1), skip={"text"})
    _, report = inspect(data, plan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "pictures": len(data.pictures),
        "copies": report.counts().get("duplicate", 0),
        "planted": len(range(1, count, COPY_EVERY)),
        "GB": peak * 1024 / 1e9,
        "bytes per picture": (peak - before) * 1024 / count,
        "minutes": (time.monotonic() - begun) / 60,
    }


def in_a_process(folder: Path, count: int) -> dict[str, float]:
    """In one of its own, whose peak is only this."""
    command = [sys.executable, "-m", "bench.data_memory", str(folder), str(count)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), int(sys.argv[2])
    write(place, number)
    sys.stdout.write(json.dumps(measure(place, number)) + "\n")
