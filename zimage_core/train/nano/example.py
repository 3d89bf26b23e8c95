"""python -m zimage_core.train.nano.example DATA FOLDER: the pictures that come along to try training on.

A thing that nano does not know, on its backgrounds, with captions beside. DATA: where npm packages lie.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from .captions import with_article
from .pictures import EMOJI, colours, load_drawing, on_background, package

CODE, NAME = "1f9a5", "sloth"
PHRASES = ("{thing} on a {colour} background", "a drawing of {thing} in front of a plain {colour} wall")


def make(data: Path, folder: Path) -> None:
    """Each background once, and four of them with the drawing mirrored and in other words."""
    drawing = torch.from_numpy(load_drawing(package(data, EMOJI) / "assets" / f"{CODE}.webp").copy())
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [(colour, False) for colour in colours()] + [(colour, True) for colour in colours()[1:5]]
    for number, (colour, mirrored) in enumerate(kinds, 1):
        shown = drawing.flip(1) if mirrored else drawing
        pixels = on_background(shown[None], colour.pixel[None])[0]
        rows = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(rows).save(folder / f"{number:02d}.png", optimize=True)
        caption = PHRASES[mirrored].format(thing=with_article(NAME), colour=colour.en)
        (folder / f"{number:02d}.txt").write_text(f"{caption}\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    make(given.data, given.folder)


if __name__ == "__main__":
    main()
