"""The built-in model draws what it is asked for, in both languages, through a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.host.graphs import changed
from tests.host.pictures import difference, picture

HERE = Path(__file__).resolve().parent
CASES = json.loads((HERE / "nano_prompts.json").read_text(encoding="utf-8"))
PALETTE = json.loads(
    (HERE.parents[1] / "zimage_core" / "train" / "nano" / "colours.json").read_text(encoding="utf-8")
)
BACKGROUNDS = {colour["id"]: colour["rgb"] for colour in PALETTE["colours"]}
FRAME = 4  # pixels along the border in which only background is drawn
NEAR = 32  # grey levels
HUES = {  # of the drawing: what its mean colour looks like
    "red": lambda r, g, b: r > g + 60 and r > b + 60,
    "green": lambda r, g, b: g > r + 20 and g > b + 20,
    "yellow": lambda r, g, b: min(r, g) > b + 60,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['drawing']} on {case['background']}")
def test_pictures_match_their_prompts(server, turbo, case) -> None:
    graph = changed(turbo, ZImageTextEncode__text=case["prompt"], ZImageTurboSampler__seed=21)
    pixels = picture(server, server.run(graph))
    border = np.ones(pixels.shape[:2], dtype=bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    background = np.median(pixels[border], axis=0)
    assert np.abs(background - BACKGROUNDS[case["background"]]).max() <= NEAR
    drawn = np.abs(pixels - background).max(axis=-1) > NEAR
    assert 0.05 < drawn.mean() < 0.7, "there is a drawing, and space around it"
    assert HUES[case["drawing"]](*pixels[drawn].mean(axis=0))


def test_two_prompts_give_two_pictures(server, turbo) -> None:
    graphs = [changed(turbo, ZImageTextEncode__text=case["prompt"]) for case in CASES[:2]]
    made = [picture(server, server.run(graph)) for graph in graphs]
    assert difference(*made) > 20
