"""Training of a transformer's own weights, of all or of parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..model.arithmetic import compute_dtype
from ..weights.file_writers import new_file
from .distributed import Processes, whole
from .run import PictureRun, Settings, Watch

# What only pictures, both, and only captions or seen pictures pass. Tokens of a caption and of the picture
# are one sequence in `layers`, so these belong to neither side. The timestep is told by what is visual.
PARTS = {
    "visual": ("x_embedder", "x_pad_token", "noise_refiner", "t_embedder", "final_layer"),
    "layers": ("layers",),
    "text": (
        "cap_embedder", "cap_pad_token", "context_refiner",
        "siglip_embedder", "siglip_pad_token", "siglip_refiner",
    ),
}  # fmt: skip
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class FullSettings(Settings):
    """parts: keys of PARTS; without "text" the text side stays as it is, as for a new domain of pictures.

    weights: the type in which they train; in bfloat16 a change below a 256th of a weight is lost.
    """

    parts: tuple[str, ...] = tuple(PARTS)
    weights: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts are {list(self.parts)}, expected some of {', '.join(PARTS)}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights are {self.weights!r}, expected one of {', '.join(WEIGHTS)}")


def choose(model: nn.Module, parts: Sequence[str]) -> None:
    """Only these parts train."""
    chosen = {name for part in parts for name in PARTS[part]}
    for name, p in model.named_parameters():
        p.requires_grad_(name.partition(".")[0] in chosen)


class FullRun(PictureRun):
    """The model of its parts is trained itself. settings: FullSettings."""

    settings: FullSettings

    def begin(self) -> None:
        model, group = self.parts.model, self.group
        if group.size > 1 and self.settings.plan.optimizer != "adamw":
            raise ValueError(
                f"{self.settings.plan.optimizer} needs whole matrices, and {group.size} processes hold parts "
                "of them: choose adamw, or train in one process"
            )
        self.computes = compute_dtype(torch.bfloat16, model.x_pad_token.device)
        choose(model, self.settings.parts)
        for p in model.parameters():
            if p.requires_grad or group.size > 1:  # what is sharded together is of one type
                p.data = p.data.to(WEIGHTS[self.settings.weights], copy=True)
        group.shard(model, self.computes)

    def train(self, watch: Watch | None = None, stop_at: int | None = None) -> None:
        """Train, and leave the averaged weights in the model. A stopped run goes on."""
        self.fit(watch, stop_at)


def write(path: Path, model: nn.Module, metadata: Mapping[str, str], group: Processes) -> None:
    """Write a transformer under ComfyUI's names, in bfloat16; all processes call it, the first one writes.

    Raises WeightsError where a file of that name exists.
    """
    found = {}
    for name, p in model.state_dict().items():
        value = whole(p)
        if group.first:
            found[name] = value.detach().to("cpu", torch.bfloat16, copy=True).contiguous()
    if group.first:
        with new_file(path) as partial:
            save_file(found, partial, {"format": "pt", "modelspec.architecture": "z-image", **metadata})
