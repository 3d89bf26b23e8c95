"""LoRAs trained on the model that ships: what they learn, what they keep, and beside the host's own node."""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch import Tensor

from bench import lora_on_nano, training_in_host
from bench.judge import nearest_concept
from bench.lora_on_nano import Judge
from bench.nano import ROOT, data_folder
from bench.paired import interval
from bench.rows import row
from tests.host import inside

STEPS = 160
THING = 0  # of NEW, the one that the example pictures show


def host_rows(known: Judge, work: Path) -> list[dict]:
    """One MODEL, the same pictures, steps and rank; of each maker's rates the better one counts."""
    work.mkdir(parents=True, exist_ok=True)
    found = inside.run(training_in_host.__file__, str(work), str(STEPS), timeout=3600)
    pictures: dict[str, Tensor] = torch.load(work / "samples.pt", weights_only=True)

    def share(maker: str) -> float:
        wanted = len(known.known) + THING
        return sum(nearest_concept(i, known.drawings) == wanted for i in pictures[maker]) / len(
            pictures[maker]
        )

    best = {
        maker: min((name for name in found["loss"] if name.startswith(maker)), key=found["loss"].get)
        for maker in ("ours", "theirs")
    }
    losses = {maker: found["loss"][name] for maker, name in best.items()}
    shares = {maker: share(name) for maker, name in best.items()}
    about = f"{STEPS} steps of {training_in_host.BATCH}, rank {training_in_host.RANK}"
    about += "; " + ", ".join(f"{best[maker]}: {losses[maker]:.3f}" for maker in best)
    ratios = [ours / theirs for ours, theirs in found["seconds"]]
    low, high = interval(ratios) or (min(ratios), max(ratios))
    timed = f"checkpointing in both, {len(ratios)} turns; 90 % interval {low:.3f} to {high:.3f}"
    return [
        row("held-out velocity loss, ours / theirs", losses["ours"] / losses["theirs"], "x", "<= 1", about),
        row(
            "samples nearest to the thing, ours",
            shares["ours"],
            "share",
            f">= {shares['theirs']:.3f}",
            "theirs",
        ),
        row("seconds a step at batch 1, ours / theirs", statistics.median(ratios), "x", "<= 1.0", timed),
    ]


def run() -> list[dict]:
    """Takes half an hour on two cores."""
    work, known = ROOT / ".cache" / "lora", lora_on_nano.judge(data_folder())
    return lora_on_nano.rows(work, known) + host_rows(known, work / "host")
