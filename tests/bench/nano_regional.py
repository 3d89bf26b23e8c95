"""Does a region's prompt draw its thing where the mask is, and leave the rest to the prompt of the picture? A
large thing in that prompt, a small one in the corner's, 8 steps; judged by plain pixel arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.bench.nano_edits import paint
from tests.bench.rows import row
from zimage_core import ZImagePipeline
from zimage_core.train.captions import Concept, fill, phrasings
from zimage_core.train.edits import TABLES, Edit, Edits, Picture
from zimage_core.train.pictures import SIZE, SMALL_BOX, colours

EACH = 16  # couples that training may bring together, and couples that it never does


def requests(concepts: list[Concept], seed: int = 0) -> list[Edit]:
    """Of each, `before` is what the picture's prompt says, `after` also what the region's does."""
    edits, generator = Edits(concepts), torch.Generator().manual_seed(seed)
    return [edits.draw("add", generator, held_out) for held_out in (False, True) for _ in range(EACH)]


def nearest(image: Tensor, candidates: list[Picture], drawings: Tensor, where: Tensor) -> Picture:
    """The picture that is nearest to image [3,H,W] at the pixels `where` [H,W]."""
    errors = [(image - paint(one, drawings))[:, where].square().mean() for one in candidates]
    return candidates[int(torch.stack(errors).argmin())]


def regional_rows(pipe: ZImagePipeline, concepts: list[Concept], drawings: Tensor, batch: int = 16) -> list:
    """drawings: the concepts' own, premultiplied [N,128,128,4] uint8."""
    asked = requests(concepts)
    numbers = range(len(concepts))
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

    def share(prompts: list[str], regional: bool) -> tuple[float, float]:
        """Of pictures with the second thing nearest in the box, and with the first nearest outside."""
        inside = outside = 0
        for start in range(0, len(asked), batch):
            part = slice(start, start + batch)
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(asked[part]))]
            regions = [(little[part], box.float())] if regional else []
            options = {"height": SIZE, "width": SIZE, "output_type": "pt", "regions": regions}
            images = pipe(prompts[part], generator=generators, **options).images
            for image, wanted in zip(images, asked[part], strict=True):
                first, colour, second = wanted.after.concept, wanted.after.colour, wanted.after.second
                seconds = [Picture(first, colour, i) for i in (*numbers, None)]  # None: nothing is there
                inside += nearest(image, seconds, drawings, box).second == second
                firsts = [Picture(i, colour, second) for i in numbers]
                outside += nearest(image, firsts, drawings, ~box).concept == first
        return inside / len(asked), outside / len(asked)

    inside, outside = share(large, True)
    against = f"{len(asked)} couples, en and zh, 8 steps"
    return [
        row("region: its thing is nearest in its box", inside, "share", None, against),
        row("... the picture's thing is nearest outside", outside, "share", None, against),
        row("... in the box without the region", share(large, False)[0], "share", None, "the same prompt"),
        row("... in the box, one prompt for both", share(both, False)[0], "share", None, "no region"),
    ]
