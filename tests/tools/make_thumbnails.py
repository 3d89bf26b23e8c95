"""Writes each shipped workflow's thumbnail from pictures that the nano model draws.

COMFYUI_PATH=.host/ComfyUI-0.3.75 .venv/bin/python -m tests.tools.make_thumbnails [graph ...]

A template's graph says under "thumbnail" what is shown: "shows" names outputs, such as before and after;
"drawn" has the inputs for the full-size workflow, which cannot run here; "against" has those of a first run
to compare with; "of" is another graph to take the picture from; "text" a node whose text is shown beside it,
"says" such a text itself.
A strip at the foot tells full size and demo apart.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from templates.make import GRAPHS, SUFFIXES, contracts, names, nodes_of, ui_form, variants
from tests.contracts.object_info import load
from tests.host import graphs
from tests.host.pictures import explained, saved_images
from tests.host.server import ComfyServer

SIDE, FOOT = 384, 34  # pixels: the thumbnail, and the strip in it
STRIPS = {"full": ("full size", "#1f5fa8"), "nano": ("demo, no download", "#3b7d3b")}
BACKGROUND, PAPER, INK = "#262626", "#f4f1e6", "#222222"
LARGE, FRAME = 206, 4  # one of two pictures, and the border of the one in front


def drawn(server: ComfyServer, name: str, variant: str) -> list[Image.Image]:
    """What a thumbnail shows, in order."""
    asked = load(GRAPHS / f"{name}.json")["thumbnail"]
    name = asked.get("of", name)
    template, known = load(GRAPHS / f"{name}.json"), contracts()
    nodes = nodes_of(template, "nano")
    ids = {key: str(number) for number, key in enumerate(nodes, 1)}
    graph = graphs.to_api(ui_form(name, template, "nano", known), known)
    changes = asked.get("drawn", {}) if variant == "full" else {}
    pictures: list[Image.Image] = []
    for more in ({}, *([asked["against"]] if "against" in asked else [])):
        for target, value in (changes | more).items():
            key, widget = target.split(".")
            graph[ids[key]]["inputs"][widget] = value
        for origin in asked["shows"]:
            graph_shown = showing(graph, origin, nodes, ids, known)
            if "text" in asked:
                read = {"source": [ids[asked["text"]], 0]}
                graph_shown["read"] = {"class_type": "PreviewAny", "inputs": read}
            run = server.run(graph_shown)
            assert run.ok, explained(run)
            if "says" in asked:
                pictures.append(page(asked["says"]))
            if "text" in asked:
                pictures.append(page(run.outputs["read"]["text"][0]))
            pictures.append(square(saved_images(server, run)))
    return pictures[::-1] if "against" in asked else pictures


def showing(graph: dict, origin: str, nodes: dict, ids: dict, known: dict) -> dict:
    """The graph with nothing saved but one of its outputs."""
    key, output = origin.split(".")
    link = [ids[key], known[nodes[key]["type"]]["output_name"].index(output)]
    graph = {k: node for k, node in graph.items() if "SaveImage" not in node["class_type"]}
    if output == "MASK":
        graph["picture"] = {"class_type": "MaskToImage", "inputs": {"mask": link}}
        link = ["picture", 0]
    graph["shown"] = {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": "thumbnail"}}
    return graph


def square(images: list[Image.Image]) -> Image.Image:
    """One picture as it is, several as the tiles of a square."""
    across = math.ceil(math.sqrt(len(images)))
    side = SIDE // across
    sheet = Image.new("RGB", (SIDE, SIDE))
    for index, image in enumerate(images):
        tile = ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color="white")
        sheet.paste(tile, (index % across * side, index // across * side))
    return sheet


def page(text: str) -> Image.Image:
    """A text as a picture; the page covers the top left corner of thumbnails."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    lines = "\n".join(textwrap.wrap(text, 24))
    ImageDraw.Draw(sheet).text((20, 84), lines, INK, ImageFont.load_default(26), spacing=8)
    return sheet


def composed(pictures: list[Image.Image], variant: str) -> Image.Image:
    """One picture in the middle; of two the second in front, from top left to bottom right."""
    sheet = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    high = SIDE - FOOT
    if len(pictures) == 1:
        sheet.paste(pictures[0].resize((high, high)), ((SIDE - high) // 2, 0))
    else:
        first, second = (picture.resize((LARGE, LARGE)) for picture in pictures)
        sheet.paste(first, (0, 0))
        corner = (SIDE - LARGE, high - LARGE)
        sheet.paste("white", (corner[0] - FRAME, corner[1] - FRAME, SIDE, high))
        sheet.paste(second, corner)
    text, colour = STRIPS[variant]
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, high, SIDE, SIDE), colour)
    pen.text((SIDE // 2, high + FOOT // 2), text, "white", ImageFont.load_default(20), anchor="mm")
    return sheet


def main(chosen: list[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        with ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(base), "--disable-api-nodes") as server:
            for name in chosen or names():
                for variant in variants(load(GRAPHS / f"{name}.json")):
                    thumbnail = composed(drawn(server, name, variant), variant)
                    thumbnail.save(graphs.WORKFLOWS / f"{name}{SUFFIXES[variant]}.jpg", quality=88)


if __name__ == "__main__":
    main(sys.argv[1:])
