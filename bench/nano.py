"""The model that ships: does it draw what it is asked for, in both languages, at the 8 Turbo steps?

Pictures are judged by plain pixel arithmetic: see `bench.judge`.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.judge import nearest_concept, shows_colour
from bench.nano_control import control_rows
from bench.nano_edits import edit_rows, edit_sheet
from bench.nano_prompts import prompt_rows
from bench.nano_regional import regional_rows
from bench.rows import row
from zimage_core import ZImagePipeline
from zimage_core.train.nano import autoencoder, pictures, text
from zimage_core.train.nano.captions import (
    LANGUAGES,
    CaptionSet,
    Concept,
    fill,
    held_out_captions,
    held_out_colour,
    load_concepts,
    phrasings,
)
from zimage_core.weights import load_control, load_text_encoder

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "models" / "nano"
CACHE = ROOT / ".cache" / "nano"


def data_folder() -> Path:
    """ZIMAGE_NANO_DATA, or a cache folder into which npm fetches pictures and names, about 40 MB, once."""
    folder = Path(os.environ.get("ZIMAGE_NANO_DATA", CACHE))
    if not (folder / "lobehub-fluent-emoji-3d-1.1.0").is_dir():
        log.warning("fetching the emoji pictures and CLDR's names from npm into %s", folder)
    return folder


def requests(concepts: list[Concept], seed: int = 0) -> list[dict]:
    """Per concept and language, a held-out phrasing on a trained background and on the held-out one."""
    palette, generator = pictures.colours(), torch.Generator().manual_seed(seed)
    found = []
    for language in LANGUAGES:
        templates = phrasings(language, "held_out")
        for index, concept in enumerate(concepts):
            unseen = held_out_colour(index)
            trained = int(torch.randint(len(palette) - 1, (1,), generator=generator))
            for colour in (trained + (trained >= unseen), unseen):
                template = templates[(index + colour) % len(templates)]
                found.append(
                    {
                        "prompt": fill(template, concept.names[language][0], palette[colour], language),
                        "concept": index,
                        "colour": colour,
                        "language": language,
                        "held_out": colour == unseen,
                    }
                )
    return found


def generate(pipe: ZImagePipeline, prompts: list[str], size: int, seed: int = 0, batch: int = 16) -> Tensor:
    """The pipeline's pictures [N,3,size,size] in [0,1]; every prompt has its own seed."""
    rows = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        rows.append(pipe(part, height=size, width=size, generator=generators, output_type="pt").images)
    return torch.cat(rows)


def contact_sheet(
    images: Tensor, asked: list[dict], right: list[bool], path: Path, columns: int = 16
) -> None:
    """All pictures with the concept number and colour they were asked for; wrong ones are framed in red."""
    size, label = images.shape[-1], 14
    palette = pictures.colours()
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (size + 4), rows * (size + label + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, wanted) in enumerate(zip(images, asked, strict=True)):
        x, y = (i % columns) * (size + 4) + 2, (i // columns) * (size + label + 4) + 2
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        if not right[i]:
            draw.rectangle((x - 2, y - 2, x + size + 1, y + size + 1), fill="red")
        sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (x, y))
        name = f"{wanted['name']} / {palette[wanted['colour']].id}{' *' if wanted['held_out'] else ''}"
        draw.text((x, y + size + 1), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


class Nano:
    """The model that ships as a pipeline, and the things that it knows."""

    def __init__(self, data: Path):
        self.concepts = load_concepts(data)
        self.stems, stored = pictures.load_drawings(data, CACHE / f"drawings-{pictures.DRAWING}.npy")
        self.drawings = torch.from_numpy(stored[:].copy())
        self.concept_drawings = self.drawings[
            [pictures.stem_index(self.stems, c.code) for c in self.concepts]
        ]
        self.pipe = ZImagePipeline.from_files(
            *(NANO / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder")),
            NANO / "tokenizer",
            torch_dtype=torch.float32,
            vision=NANO / "vision.safetensors",
        )
        self.control = load_control(NANO / "control.safetensors", dtype=torch.float32)
        self.size = json.loads((NANO / "config.json").read_text("utf-8"))["resolution"]
        self.writer = load_text_encoder(
            NANO / "text_encoder.safetensors", dtype=torch.float32, language_model=True
        )

    def draw(self, prompts: list[str]) -> Tensor:
        return generate(self.pipe, prompts, self.size)

    def edit(self, references: Tensor, instructions: list[str]) -> Tensor:
        """Every reference [3,H,W] with its own instruction; all from the same noise."""
        rows = [
            self.pipe(
                text,
                image=reference.movedim(0, -1),
                height=self.size,
                width=self.size,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
            for reference, text in zip(references, instructions, strict=True)
        ]
        return torch.cat(rows)


def picture_rows(nano: Nano, sheet: Path) -> list[dict]:
    concepts, concept_drawings, pipe = nano.concepts, nano.concept_drawings, nano.pipe
    asked = requests(concepts)
    for wanted in asked:
        wanted["name"] = concepts[wanted["concept"]].names["en"][0]
    images = nano.draw([wanted["prompt"] for wanted in asked])
    matched = [
        nearest_concept(image, concept_drawings) == wanted["concept"]
        for image, wanted in zip(images, asked, strict=True)
    ]
    coloured = [shows_colour(image, wanted["colour"]) for image, wanted in zip(images, asked, strict=True)]
    right = [a and b for a, b in zip(matched, coloured, strict=True)]
    contact_sheet(images, asked, right, sheet)

    def share(values: list[bool], **wanted) -> float:
        chosen = [v for v, a in zip(values, asked, strict=True) if all(a[k] == w for k, w in wanted.items())]
        return sum(chosen) / len(chosen)

    against = f"{len(concepts)} concepts, held-out phrasings, 8 steps; sheet: {sheet.relative_to(ROOT)}"
    rows = [
        row(
            "pictures nearest to the asked concept",
            share(matched, held_out=False),
            "share",
            ">= 0.99",
            against,
        ),
        row(
            "... on backgrounds held out for it",
            share(matched, held_out=True),
            "share",
            ">= 0.99",
            against,
        ),
        row("background is the asked colour", share(coloured), "share", ">= 0.99", "all pictures"),
        row("... on backgrounds held out", share(coloured, held_out=True), "share", None, "all pictures"),
    ]
    for language in LANGUAGES:
        rows.append(
            row(f"nearest, prompts in {language}", share(matched, language=language), "share", None, "all")
        )
    unseen = autoencoder.unseen_pictures(nano.stems, nano.drawings)
    rows.append(
        row(
            "autoencoder PSNR on emoji it never saw",
            float(autoencoder.psnr(pipe.autoencoder, unseen).mean()),
            "dB",
            ">= 33",
            f"mean over {len(unseen)} pictures on plain backgrounds",
        )
    )
    return rows


def text_rows(nano: Nano) -> list[dict]:
    concepts, bpe, model = nano.concepts, nano.pipe.tokenizer, nano.writer
    unseen = text.encode(bpe, [text.plain(pair.caption) for pair in held_out_captions(concepts)])
    trained = text.encode(bpe, [text.plain(pair.caption) for pair in CaptionSet(concepts).all()])
    unigram = text.unigram_perplexity(trained, unseen, len(bpe))
    return [
        row(
            "unigram perplexity on held-out captions",
            unigram,
            "",
            None,
            "token counts of the training captions",
        ),
        row(
            "text encoder perplexity on held-out captions",
            text.perplexity(model, unseen),
            "",
            "<= 10.2",
            f"{len(unseen)} captions",
        ),
    ]


def run(json_path: Path | None = None, sheet: Path | None = None) -> list[dict]:
    """Measured facts of `models/nano`; also writes the contact sheet of every picture."""
    sheet = sheet or ROOT / "output" / "nano-sheet.png"
    with torch.no_grad():
        nano = Nano(data_folder())
        rows = picture_rows(nano, sheet) + text_rows(nano)
        rows += prompt_rows(nano.draw, nano.writer, nano.pipe.tokenizer, nano.concepts, nano.concept_drawings)
        edited, shown = edit_rows(nano.edit, nano.concepts, nano.concept_drawings)
        rows += edited + regional_rows(nano.pipe, nano.concepts, nano.concept_drawings)
        rows += control_rows(nano.pipe, nano.control, nano.concepts, nano.concept_drawings)
    edit_sheet(*shown, sheet.with_name("nano-edits.png"))
    size = sum(f.stat().st_size for f in NANO.rglob("*") if f.is_file()) / 1e6
    rows.append(row("all files of models/nano", size, "MB", "<= 40", "limit of the repository"))
    if json_path:
        Path(json_path).write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return rows
