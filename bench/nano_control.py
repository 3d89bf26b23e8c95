"""Does the control network that ships steer?

The model alone draws each thing in one way: here it gets the edges of the mirrored drawing. 8 steps; judged
by plain pixel arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.judge import nearest_concept
from bench.rows import row
from zimage_core import ZImagePipeline
from zimage_core.conditions.control import Control, ControlNet
from zimage_core.train.nano.captions import LANGUAGES, Concept, fill, phrasings
from zimage_core.train.nano.control import edges, mirrored
from zimage_core.train.nano.pictures import colours, on_background

LOPSIDED = 0.02  # mean square difference of a drawing and its mirror image: below, nothing could be told


def control_rows(
    pipe: ZImagePipeline, network: ControlNet, concepts: list[Concept], drawings: Tensor, batch: int = 16
) -> list[dict]:
    """drawings: the concepts' own [N,128,128,4] uint8."""
    palette = colours()
    asked = [(index, index % len(palette), LANGUAGES[index % 2]) for index in range(len(concepts))]
    as_drawn = torch.cat([on_background(drawings[index, None], palette[c].pixel) for index, c, _ in asked])
    tells = (as_drawn - mirrored(as_drawn)).square().mean((1, 2, 3)) > LOPSIDED
    chosen = [wanted for wanted, lopsided in zip(asked, tells.tolist(), strict=True) if lopsided]
    as_drawn = as_drawn[tells]
    prompts = [
        fill(phrasings(language, "held_out")[0], concepts[index].names[language][0], palette[c], language)
        for index, c, language in chosen
    ]

    def drawn(steered: bool) -> Tensor:
        rows = []
        for start in range(0, len(chosen), batch):
            part = slice(start, start + batch)
            found = pipe.autoencoder.encode(edges(mirrored(as_drawn[part]))).mode()
            controls = [Control(network, pipe.autoencoder.to_model(found))] if steered else []
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts[part]))]
            options = {"height": as_drawn.shape[-2], "width": as_drawn.shape[-1], "output_type": "pt"}
            rows.append(pipe(prompts[part], generator=generators, controls=controls, **options).images)
        return torch.cat(rows)

    def shares(images: Tensor) -> tuple[float, float]:
        """Nearer to the mirrored drawing than to the drawing; and, mirrored back, the right thing."""
        pixels = 2 * images - 1
        far, near = ((pixels - target).square().mean((1, 2, 3)) for target in (as_drawn, mirrored(as_drawn)))
        right = [
            nearest_concept(mirrored(image), drawings) == index
            for image, (index, _, _) in zip(images, chosen, strict=True)
        ]
        return float((near < far).float().mean()), sum(right) / len(right)

    against = f"{len(chosen)} lopsided things, edges of the mirrored drawing, 8 steps, en and zh"
    follows, right = shares(drawn(True))
    return [
        row("control: the picture follows its edges", follows, "share", ">= 0.97", against),
        row("... and shows the asked thing", right, "share", ">= 0.97", against),
        row("... follows them without the control", shares(drawn(False))[0], "share", None, against),
    ]
