"""All that has a row for a GPU, in parts of a few minutes each; tiny, the same on a CPU in seconds.

Needs the interpreter's torch and what bench.carried finds; nothing is installed. A part that has used its
time adds no more rows and says so.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.rows import row
from bench.scale import CARD, TINY, Scale
from tests.host import inside

Rows = Callable[[Scale, float], Iterator[dict]]  # until: a time of time.monotonic
LAUNCH = Path(inside.__file__).with_name("launch.py")
CAPPED = Path(__file__).with_name("capped_in_host.py")


# The groups import what they need themselves: what one of them lacks is there for the others all the same.


def has_host() -> bool:
    return bool(os.environ.get("COMFYUI_PATH"))


def distances(scale: Scale, until: float) -> Iterator[dict]:
    """From float64 and diffusers; at a tiny scale one of them, as the tests have all on the CPU."""
    from bench import parity

    rows = parity.library_rows if scale is CARD else parity.eight_steps
    yield from rows(scale.device)


def rates(scale: Scale, until: float) -> Iterator[dict]:
    from bench import card_rates

    yield from card_rates.rows(scale)


def forwards(scale: Scale, until: float) -> Iterator[dict]:
    from bench.forwards import forward_rows

    yield from forward_rows(scale, has_host(), until)


def text(scale: Scale, until: float) -> Iterator[dict]:
    from bench import generation

    yield from generation.rows(scale.writer, scale.device, until=until)


def expected(scale: Scale, until: float) -> Iterator[dict]:
    """What the host sets aside and what is needed; the tests have it on the CPU."""
    from bench import memory

    if scale is CARD and has_host():
        yield from memory.run()


def capped(scale: Scale, until: float) -> Iterator[dict]:
    """Rows of a process of the host's own, as they come."""
    if not has_host():
        yield row("forwards with little memory left", None, "ms", None, "there is no ComfyUI here")
        return
    name = "CARD" if scale is CARD else "TINY"
    command = [sys.executable, LAUNCH, CAPPED, os.environ["COMFYUI_PATH"], name]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        end = threading.Timer(max(0.0, until - time.monotonic()), process.kill)
        end.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
            if process.wait() > 0:
                raise RuntimeError("the process with little memory left failed; what it said is above")
        finally:
            end.cancel()
            process.kill()


def streaming(scale: Scale, until: float) -> Iterator[dict]:
    from bench import streamed

    yield from streamed.on_card(scale, until)


def training(scale: Scale, until: float) -> Iterator[dict]:
    from bench import training_on_card

    yield from training_on_card.training_rows(scale, until)


def nano(scale: Scale, until: float) -> Iterator[dict]:
    from bench import nano_on_card

    yield from nano_on_card.rows(scale)


@dataclass(frozen=True)
class Part:
    seconds: float
    groups: dict[str, Rows]


PARTS = {
    "speed": Part(200, {"distances": distances, "rates": rates, "forwards": forwards, "text": text}),
    "memory": Part(130, {"expected": expected, "capped": capped, "streamed": streaming}),
    "nano": Part(60, {"pictures": nano}),
    "train": Part(90, {"steps": training}),
}


def within(name: str, part: Part, scale: Scale) -> Iterator[dict]:
    """The part's rows, while its time lasts; a group that fails does not end the others."""
    until = time.monotonic() + part.seconds
    left = list(part.groups)
    while left:
        group = left.pop(0)
        try:
            for fact in part.groups[group](scale, until):
                yield fact
                if time.monotonic() > until:
                    out = ", ".join([f"what follows in {group}", *left])
                    yield row(f"{name}: {part.seconds:.0f} s are used", None, against=f"left out: {out}")
                    return
        except Exception as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            yield {**row(f"{name}: {group} failed", None, against=said), "holds": False}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run(part: str | None = None, tiny: bool = False) -> Iterator[dict]:
    for name in [part] if part else PARTS:
        for fact in within(name, PARTS[name], TINY if tiny else CARD):
            yield without_bar(fact) if tiny and fact["value"] is not None else fact


def without_bar(fact: dict) -> dict:
    """Times at a tiny scale say nothing about cards."""
    return {**fact, "bar": None, "holds": None}
