"""Does the model that ships edit what it is asked to, and nothing else?

Instructions in both languages, one reference picture, 8 steps; judged by plain pixel arithmetic, as
`bench.nano` judges pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.judge import nearest_concept, shows_colour
from bench.rows import row
from zimage_core.train.nano.captions import Concept
from zimage_core.train.nano.edits import KINDS, Edit, Edits, Picture
from zimage_core.train.nano.pictures import SMALL_BOX, colours, on_background, with_small

EACH = 32  # edits of every kind, trained pairs and held-out ones
GROWN = 5  # pixels around a changed thing that may change with it

# references [B,3,H,W] in [0,1] and instructions -> pictures [B,3,H,W] in [0,1]
Editor = Callable[[Tensor, list[str]], Tensor]


def requests(concepts: list[Concept], seed: int = 0) -> list[Edit]:
    edits, generator = Edits(concepts), torch.Generator().manual_seed(seed)
    return [
        edits.draw(kind, generator, held_out)
        for held_out in (False, True)
        for kind in KINDS
        for _ in range(EACH)
    ]


def drawing(picture: Picture, drawings: Tensor) -> Tensor:
    """What a picture shows without its background: premultiplied [H,W,4] uint8."""
    if picture.second is None:
        return drawings[picture.concept]
    return with_small(drawings[[picture.concept]], drawings[[picture.second]])[0]


def paint(pictures: list[Picture], drawings: Tensor) -> Tensor:
    """The pictures themselves [N,3,H,W] in [0,1]."""
    things = drawings[[picture.concept for picture in pictures]].clone()
    pairs = [i for i, picture in enumerate(pictures) if picture.second is not None]
    if pairs:
        things[pairs] = with_small(things[pairs], drawings[[pictures[i].second for i in pairs]])
    backgrounds = torch.stack([colours()[picture.colour].pixel for picture in pictures])
    return (on_background(things, backgrounds) + 1) / 2


def alpha(picture: Picture, drawings: Tensor, grow: int) -> Tensor:
    """Bool [H,W]: where the things are, grown by some pixels, or shrunk where negative."""
    covered = (drawing(picture, drawings)[..., 3] > 16).float()[None, None]
    size = 2 * abs(grow) + 1
    if grow < 0:
        covered = 1 - torch.nn.functional.max_pool2d(1 - covered, size, 1, size // 2)
    else:
        covered = torch.nn.functional.max_pool2d(covered, size, 1, size // 2)
    return covered[0, 0] > 0


def is_right(edit: Edit, image: Tensor, drawings: Tensor) -> bool:
    """Whether the edited attribute is what was asked for."""
    if edit.kind == "background":
        return shows_colour(image, edit.after.colour)
    if edit.kind in ("swap", "recolour"):
        return nearest_concept(image, drawings) == edit.after.concept
    before = edit.before
    others = [Picture(before.concept, before.colour, i) for i in (*range(len(drawings)), None)]  # or nothing
    corner = (..., SMALL_BOX, SMALL_BOX)
    errors = (paint(others, drawings)[corner] - image[corner]).square().mean((1, 2, 3))
    return int(errors.argmin()) == edit.after.second


def kept(edit: Edit, drawings: Tensor) -> Tensor:
    """Bool [H,W]: what the instruction leaves as it is."""
    if edit.kind == "background":
        return alpha(edit.before, drawings, -GROWN)
    if edit.kind == "add":
        outside = torch.ones(drawings.shape[1:3], dtype=torch.bool)
        outside[SMALL_BOX, SMALL_BOX] = False
        return outside
    return ~(alpha(edit.before, drawings, GROWN) | alpha(edit.after, drawings, GROWN))


def psnr(image: Tensor, reference: Tensor, where: Tensor) -> float:
    """Over the pixels `where` [H,W]."""
    return float(-10 * (image - reference)[:, where].square().mean().clamp(min=1e-8).log10())


def edit_rows(
    editor: Editor, concepts: list[Concept], drawings: Tensor, batch: int = 16
) -> tuple[list, tuple]:
    """Rows, and (edits, references, pictures, which are right) for the contact sheet."""
    asked = requests(concepts)
    before = paint([edit.before for edit in asked], drawings)
    images = torch.cat(
        [
            editor(before[i : i + batch], [edit.instruction for edit in asked[i : i + batch]])
            for i in range(0, len(asked), batch)
        ]
    )
    right = [is_right(edit, image, drawings) for edit, image in zip(asked, images, strict=True)]
    same = [
        psnr(image, reference, kept(edit, drawings))
        for edit, reference, image in zip(asked, before, images, strict=True)
    ]

    def mean(values: list, **wanted: object) -> float:
        chosen = [
            float(v)
            for v, e in zip(values, asked, strict=True)
            if all(getattr(e, k) == w for k, w in wanted.items())
        ]
        return sum(chosen) / len(chosen)

    against = f"{EACH} edits of each kind, en and zh, 8 steps"
    rows = [
        row("edited attribute is right", mean(right, held_out=False), "share", ">= 0.99", against),
        row("... pairs held out", mean(right, held_out=True), "share", ">= 0.96", against),
        row(
            "PSNR of what an edit leaves alone",
            mean(same),
            "dB",
            ">= 32.5",
            "mean, against the reference picture",
        ),
    ]
    for kind in KINDS:
        rows.append(row(f"edit right: {kind}", mean(right, kind=kind), "share", None, "trained and held out"))
        rows.append(row(f"PSNR outside: {kind}", mean(same, kind=kind), "dB", None, "trained and held out"))
    for language in ("en", "zh"):
        rows.append(
            row(f"edit right, in {language}", mean(right, language=language), "share", None, "all kinds")
        )
    return rows, (asked, before, images, right)


def edit_sheet(
    asked: list[Edit], before: Tensor, images: Tensor, right: list[bool], path: Path, columns: int = 16
) -> None:
    """Every reference above its edit, with the instruction where it is written in English.

    Wrong ones are framed in red.
    """
    size, label = images.shape[-1], 14
    height = 2 * size + label + 6
    sheet = Image.new("RGB", (columns * (size + 4), -(-len(asked) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, edit in enumerate(asked):
        x, y = (i % columns) * (size + 4) + 2, (i // columns) * height + 2
        if not right[i]:
            draw.rectangle((x - 2, y - 2, x + size + 1, y + 2 * size + 1), fill="red")
        both = torch.cat((before[i], images[i]), dim=1)
        pixels = (both.permute(1, 2, 0) * 255).round().byte().numpy()
        sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (x, y))
        words = edit.instruction if edit.language == "en" else f"({edit.kind}, zh)"
        draw.text((x, y + 2 * size + 1), words[:21] + (" *" if edit.held_out else ""), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
