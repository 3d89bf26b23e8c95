"""A training seen on its node while it runs: its losses, samples and time left, and a bar of its steps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

from ....zimage_core.train.run import Watch
from ..training.run_folder import RUNS, RunFolder
from .sheet import sheet

EVENT = "zimage.training"  # for web/training.js
PAUSE = 0.5  # seconds between two of them
MOST_POINTS = 200  # of the curve
MOST_SHOWN = 12  # steps on the sheet
LARGEST_SHOWN = 512  # pixels of a side of a sample on it


class Live(Watch):
    """Raises the host's own error where somebody pressed Cancel."""

    def __init__(self, node_id: str | None, folder: RunFolder, prompts: tuple[str, ...], steps: int) -> None:
        self.node_id, self.folder, self.prompts = node_id, folder, prompts
        self.bar, self.last, self.points = comfy.utils.ProgressBar(steps), 0.0, _logged(folder.path)
        self.begun: int | None = None  # the step that this run went on from, known at its first

    def stage(self, name: str, done: int, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        self._send({"stage": name, "done": done, "total": total}, at_once=done == total)

    def step(self, progress: Any) -> None:
        while self.points and self.points[-1][0] >= progress.step:  # of a run that broke off later
            self.points.pop()
        if self.begun is None:
            self.begun = progress.step - 1
        self.points.append((progress.step, progress.smooth))
        self.bar.update_absolute(progress.step, progress.steps)
        said = {name: getattr(progress, name) for name in ("step", "steps", "smooth", "left")}
        self._send({**said, "begun": self.begun}, at_once=progress.step == progress.steps)
        management.throw_exception_if_processing_interrupted()

    def sample(self, step: int, prompt: str, pixels: Tensor) -> None:
        self.folder.samples.mkdir(parents=True, exist_ok=True)
        rows = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        path = self.folder.samples / f"{step:06d}-{self.prompts.index(prompt)}.png"
        partial = path.with_suffix(".part")  # a host that is killed leaves no half a picture
        Image.fromarray(rows).save(partial, "PNG")
        partial.replace(path)
        self._send({}, at_once=True)

    def _send(self, said: dict[str, Any], at_once: bool) -> None:
        server = getattr(PromptServer, "instance", None)
        if server is None or self.node_id is None or not (at_once or time.monotonic() >= self.last + PAUSE):
            return
        self.last = time.monotonic()
        shown = shown_of(self.folder, self.points)
        server.send_sync(EVENT, {"node": self.node_id, **said, **shown}, server.client_id)


def shown_of(folder: RunFolder, points: list[tuple[int, float]] | None = None) -> dict[str, Any]:
    """The curve, thinned, and the latest samples, as the page finds them."""
    points = _logged(folder.path) if points is None else points
    apart = max(1, -(-len(points) // MOST_POINTS))
    curve = points[::apart] + (points[-1:] if (len(points) - 1) % apart else [])
    pictures = _samples(folder.samples)
    latest = pictures[max(pictures)] if pictures else []
    place = {"subfolder": f"{RUNS}/{folder.name}/samples", "type": "output"}
    samples = [{"filename": path.name, **place, "changed": path.stat().st_mtime_ns} for path in latest]
    return {"curve": curve, "samples": samples, "sampled": max(pictures, default=0)}


def _logged(folder: Path) -> list[tuple[int, float]]:
    """Of the steps before, where a run goes on."""
    found = []
    try:
        for line in (folder / "state" / "log.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            found.append((row["step"], row["smooth"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or cut off when the host was killed
        pass
    return found


def _samples(folder: Path) -> dict[int, list[Path]]:
    """{step: its pictures, in the order of the prompts}"""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*-*.png")):
        step = path.name.partition("-")[0]
        if step.isdecimal():
            found.setdefault(int(step), []).append(path)
    return found


def sample_sheet(folder: RunFolder, prompts: tuple[str, ...]) -> Tensor:
    """[1,H,W,3]: a row a prompt, from before to after; white where there are none."""
    found = _samples(folder.samples)
    steps = [step for step in sorted(found) if len(found[step]) >= len(prompts)]
    if not steps or not prompts:
        return torch.ones(1, 64, 64, 3)
    shown = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(len(steps), MOST_SHOWN))})
    when = ", ".join(f"step {step}" if step else "before" for step in shown)
    rows = [_batch([found[step][number] for step in shown]) for number in range(len(prompts))]
    return sheet(rows, [f"{when}: {prompt}" for prompt in prompts], 1)


def _batch(paths: list[Path]) -> Tensor:
    pictures = [Image.open(path).convert("RGB") for path in paths]
    scale = min(1, LARGEST_SHOWN / max(pictures[0].size))
    size = tuple(round(side * scale) for side in pictures[0].size)
    return torch.from_numpy(np.stack([np.asarray(p.resize(size), np.float32) / 255 for p in pictures]))
