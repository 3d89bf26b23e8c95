"""What a run says on the command line."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path

from torch import Tensor

from .run import Watch
from .trainer import Progress

log = logging.getLogger("zimage_core.train")


ENDS = ("SIGTERM", "SIGHUP")


def end_as_by_keys() -> None:
    """Signals that end a process raise KeyboardInterrupt, as Ctrl-C does."""
    for name in ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)


class Line:
    """One that is written anew on a terminal, else a line of the log now and then."""

    def __init__(self) -> None:
        self.last = 0.0

    def say(self, text: str, end: bool) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<78}" + ("\n" if end else ""))
        elif end or time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            log.info("%s", text)


class Terminal(Watch):
    """Says how far a run is; samples go into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.line = folder, Line()

    def stage(self, name: str, done: int, total: int) -> None:
        self.line.say(f"{name}: {done} of {total}", done == total)

    def step(self, progress: Progress) -> None:
        left = time.strftime("%H:%M:%S", time.gmtime(progress.left))
        text = f"step {progress.step} of {progress.steps}, loss {progress.smooth:.4f}, {left} left"
        self.line.say(text, progress.step == progress.steps)

    def sample(self, step: int, prompt: str, pixels: Tensor) -> None:
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(list(self.folder.glob(f"{step:06d}-*.png")))
        rows = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(rows).save(self.folder / f"{step:06d}-{number}.png")
