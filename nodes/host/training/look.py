"""What is in a data set, for the node that chooses it."""

from __future__ import annotations

from collections import Counter

import comfy.model_management as management
import torch

from ....zimage_core.train.data.picture_files import LIMITS, PictureError, flattened, open_picture
from ..page.training import MOST_PICTURES, contact_sheet
from .data_folders import TrainingData

MOST_LINES = 20  # of problems
SIZES_NAMED = 6
FEW = 8  # pictures, of which a LoRA learns well
SMALL = 512  # pixels: a square of it has fewer than the smallest size that people train in


def report(data: TrainingData) -> str:
    """How many pictures of which sizes, which have no captions, and what is wrong."""
    records, pictures = data.data.records, data.data.pictures
    out = len(records) - len(pictures)
    said = [f"{data.name}: {len(pictures)} pictures" + (f", {out} left out" if out else "") + "."]
    sizes = Counter(f"{width}x{height}" for width, height in (picture.size for picture in pictures))
    named = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(SIZES_NAMED))
    more = len(sizes) - SIZES_NAMED
    said.append(f"Sizes: {named}" + (f" and {more} more" if more > 0 else "") + ".")
    if small := sum(width * height < SMALL**2 for width, height in (picture.size for picture in pictures)):
        said.append(f"{small} have fewer pixels than {SMALL}x{SMALL}: a higher resolution enlarges them.")
    missing = sum(not picture.captions for picture in pictures)
    said.append(f"Captions: {len(pictures) - missing} of {len(pictures)} pictures have one.")
    if missing:
        said.append("Those without are trained with the trigger alone: write a .txt file beside each.")
    if len(pictures) < FEW:
        said.append(f"{FEW} pictures and more are better: of few, a LoRA learns the pictures themselves.")
    problems = data.data.problems
    said += [f"- {line}" for line in problems[:MOST_LINES]]
    if len(problems) > MOST_LINES:
        said.append(f"- and {len(problems) - MOST_LINES} more")
    return "\n".join(said)


def pictures(data: TrainingData) -> torch.Tensor:
    """The first pictures on a contact sheet."""
    shown = []
    for record in data.data.pictures[:MOST_PICTURES]:
        management.throw_exception_if_processing_interrupted()
        try:
            picture = flattened(open_picture(record.path, LIMITS))
        except PictureError:
            continue  # a broken one is among the problems when it is trained on
        shown.append((picture, record.captions[0] if record.captions else record.path.name))
    return contact_sheet(shown)
