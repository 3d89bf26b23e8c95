"""Does a region's prompt draw its thing where the mask is, and leave the rest to the picture's prompt?

A large thing in that prompt, a small one in the corner's, 8 steps; judged by plain pixel arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.nano_edits import paint
from bench.rows import row
from zimage_core import ZImagePipeline
from zimage_core.train.nano.captions import Concept, fill, phrasings
from zimage_core.train.nano.edits import TABLES, Edit, Edits, Picture
from zimage_core.train.nano.pictures import SIZE, SMALL_BOX, colours

EACH = 16  # couples that training may bring together, and couples that it never does


def requests(concepts: list[Concept], seed: int = 0) -> list[Edit]:
    """Of each, `before` is what the picture's prompt says, `after` also what the region's does."""
    edits, generator = Edits(concepts), torch.Generator().manual_seed(seed)
    return [edits.draw("add", generator, held_out) for held_out in (False, True) for _ in range(EACH)]


def nearest(image: Tensor, painted: Tensor, where: Tensor) -> int:
    """Which of the pictures painted [N,3,H,W] is nearest to image [3,H,W] at the pixels `where` [H,W]."""
    return int((painted - image)[..., where].square().mean((1, 2)).argmin())


def regional_rows(pipe: ZImagePipeline, concepts: list[Concept], drawings: Tensor, batch: int = 16) -> list:
    """drawings: the concepts' own, premultiplied [N,128,128,4] uint8."""
    asked = requests(concepts)
    box = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    box[SMALL_BOX, SMALL_BOX] = True

    def both_of(picture: Picture, language: str) -> str:
        return Edits(concepts).pair_caption(picture, language, TABLES[language]["pair"][0])

    large, little, both = [], [], []
    for wanted in asked:
        language, after = wanted.language, wanted.after
        name, colour = concepts[after.concept].names[language][0], colours()[after.colour]
        large.append(fill(phrasings(language, "trained")[0], name, colour, language))
        # the model knows a small thing only as the second of two: "an apple and a small apple on ..."
        little.append(both_of(Picture(after.second, after.colour, after.second), language))
        both.append(both_of(after, language))

    def draw(prompts: list[str], regional: bool) -> Tensor:
        rows = []
        for start in range(0, len(asked), batch):
            part = slice(start, start + batch)
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(asked[part]))]
            regions = [(little[part], box.float())] if regional else []
            options = {"height": SIZE, "width": SIZE, "output_type": "pt", "regions": regions}
            rows.append(pipe(prompts[part], generator=generators, **options).images)
        return torch.cat(rows)

    drawn = draw(large, True), draw(large, False), draw(both, False)
    inside, outside = [0] * len(drawn), [0] * len(drawn)
    for number, wanted in enumerate(asked):
        first, colour, second = wanted.after.concept, wanted.after.colour, wanted.after.second
        # the last one: nothing is there
        seconds = paint([Picture(first, colour, i) for i in (*range(len(concepts)), None)], drawings)
        firsts = paint([Picture(i, colour, second) for i in range(len(concepts))], drawings)
        for i, images in enumerate(drawn):
            inside[i] += nearest(images[number], seconds, box) == second
            outside[i] += nearest(images[number], firsts, ~box) == first
    count = len(asked)
    against = f"{count} couples, en and zh, 8 steps"
    return [
        row("region: its thing is nearest in its box", inside[0] / count, "share", ">= 0.8", against),
        row("... the picture's thing is nearest outside", outside[0] / count, "share", ">= 0.97", against),
        row("... in the box without the region", inside[1] / count, "share", None, "the same prompt"),
        row("... in the box, one prompt for both", inside[2] / count, "share", None, "no region"),
    ]
