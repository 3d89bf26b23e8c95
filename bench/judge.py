"""What a picture of the nano model shows, by plain pixel arithmetic.

The nearest drawing: mean squared difference of colours over the pixels that belong to the drawing or to what
was generated, among all concepts, on the background that was generated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zimage_core.train.nano import pictures

FOREGROUND = 0.12  # largest colour difference, of 1, that still counts as background
FRAME = 4  # pixels along the border in which only background is drawn
COLOUR_TOLERANCE = 0.12  # of 1: how far the background may be from the asked colour


def background_of(image: Tensor) -> Tensor:
    """The median colour [3] of the picture's frame."""
    inside = torch.zeros(image.shape[1:], dtype=torch.bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    return image[:, ~inside].median(dim=1).values


def nearest_concept(image: Tensor, drawings: Tensor) -> int:
    """Which drawing [N,H,W,4] a picture [3,H,W] in [0,1] is nearest to.

    Pixels that are background in both do not count.
    """
    background = background_of(image)
    rgba = drawings.permute(0, 3, 1, 2).float() / 255
    references = rgba[:, :3] + (1 - rgba[:, 3:]) * background.view(1, 3, 1, 1)
    drawn = (image - background.view(3, 1, 1)).abs().amax(0) > FOREGROUND
    foreground = (rgba[:, 3] > 0.5) | drawn  # [N,H,W]
    error = (references - image).square().sum(1) * foreground
    return int((error.sum((1, 2)) / foreground.sum((1, 2))).argmin())


def shows_colour(image: Tensor, colour: int) -> bool:
    """Whether the background is the asked colour: nearest of all named ones, and close to it."""
    palette = torch.tensor([c.rgb for c in pictures.colours()]) / 255
    distance = (palette - background_of(image)).abs().amax(1)
    return int(distance.argmin()) == colour and float(distance[colour]) <= COLOUR_TOLERANCE
