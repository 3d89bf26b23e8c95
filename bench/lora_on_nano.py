"""LoRAs of things and of a style that the nano model does not know: are they learned, is the rest kept?

Trained from a dozen pictures as a user would, through `zimage_core.train.run`; pictures are judged by the
pixel arithmetic of `bench.judge`.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bench.judge import nearest_concept
from bench.nano import CACHE, NANO
from bench.rows import row
from zimage_core.train import lora, parts
from zimage_core.train.data import store
from zimage_core.train.nano import pictures
from zimage_core.train.nano.captions import Concept, fill, held_out_colour, load_concepts, phrasings
from zimage_core.train.plan import Plan
from zimage_core.train.presets import learning_rate
from zimage_core.train.run import LoraRun, Settings
from zimage_core.train.samples import Sampling, draw

NEW = {"1f9a5": "sloth", "1f3b7": "saxophone", "1f6f9": "skateboard"}  # code point: name
STEPS, BATCH, RANK = 240, 8, 8
STYLE_STEPS, STYLE_RANK = 120, 4
MOST_LOST = 2  # points of the known things
PICTURES = 12
AT_ONCE = 16


@dataclass
class Judge:
    """The known things and the new ones, as drawings to be nearest to."""

    concepts: list[Concept]
    known: Tensor  # [N,128,128,4]
    new: Tensor

    @property
    def drawings(self) -> Tensor:
        return torch.cat((self.known, self.new))


def judge(data: Path) -> Judge:
    concepts = load_concepts(data)
    stems, stored = pictures.load_drawings(data, CACHE / f"drawings-{pictures.DRAWING}.npy")
    codes = [concept.code for concept in concepts]
    assert not set(NEW) & set(codes)
    known, new = (
        torch.stack([torch.from_numpy(stored[pictures.stem_index(stems, code)].copy()) for code in found])
        for found in (codes, NEW)
    )
    return Judge(concepts, known, new)


def sepia(pixels: Tensor) -> Tensor:
    """Pictures [B,3,H,W] in [-1,1] -> brown where they are dark, cream where they are light."""
    light = (pixels / 2 + 0.5).mean(dim=1, keepdim=True)
    brown, cream = (torch.tensor(rgb).view(1, 3, 1, 1) for rgb in ((-0.6, -0.8, -0.9), (1.0, 0.9, 0.5)))
    return torch.lerp(brown.expand_as(pixels), cream.expand_as(pixels), light)


def write(folder: Path, shown: list[tuple[Tensor, str]]) -> None:
    """Pictures [3,H,W] in [-1,1], each with its caption beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, (pixels, caption) in enumerate(shown):
        rows = ((pixels / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(rows).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(caption, "utf-8")


def of_thing(drawing: Tensor, name: str) -> list[tuple[Tensor, str]]:
    """A dozen pictures of a drawing, moved a little, on all colours but one, in trained phrasings."""
    palette, found = pictures.colours(), []
    seen = [at for at in range(len(palette)) if at != held_out_colour(0)]
    templates = phrasings("en", "trained")
    for number in range(PICTURES):
        colour = palette[seen[number % len(seen)]]
        moved = drawing.roll(((number % 3 - 1) * 3, (number % 5 - 2) * 2), dims=(0, 1))
        pixels = pictures.on_background(moved[None], colour.pixel[None])[0]
        found.append((pixels, fill(templates[number % len(templates)], name, colour, "en")))
    return found


def in_style(known: Judge) -> list[tuple[Tensor, str]]:
    """A dozen known things, one in ten, in the style, of which their captions say nothing."""
    palette, found, templates = pictures.colours(), [], phrasings("en", "trained")
    for number in range(PICTURES):
        at = number * (len(known.concepts) // PICTURES)
        colour = palette[number % len(palette)]
        pixels = pictures.on_background(known.known[at : at + 1], colour.pixel[None])
        name = known.concepts[at].names["en"][0]
        found.append((sepia(pixels)[0], fill(templates[number % len(templates)], name, colour, "en")))
    return found


class Trained:
    """The nano model with a LoRA of a folder."""

    def __init__(
        self, folder: Path, data: Path, known: Judge, steps: int = STEPS, rank: int = RANK, prior: bool = True
    ) -> None:
        self.parts, _ = parts.from_files(parts.files_in(NANO))
        names = [concept.names["en"][0] for concept in known.concepts]
        palette = pictures.colours()
        captions = tuple(
            fill(phrasings("en", "trained")[at % 5], name, palette[at % len(palette)], "en")
            for at, name in enumerate(names)
        )
        settings = Settings(
            plan=Plan(steps, learning_rate(self.parts.model.config), warmup=20, ema=0.97),
            lora=lora.Settings(rank=rank),
            sampling=Sampling(),
            resolution=128,
            batch=BATCH,
            prior=captions if prior else (),
            checkpointing=False,
        )
        shutil.rmtree(folder / "state", ignore_errors=True)
        found = store.load(data)
        start = time.monotonic()
        self.run = LoraRun(self.parts, found.pictures, settings, folder)
        self.run.train()
        self.seconds = time.monotonic() - start

    def draw(self, prompts: list[str], changed: bool = True) -> Tensor:
        """Pictures [N,3,128,128] in [0,1], each with a seed of its own."""
        rows = []
        with self.run.without([] if changed else list(self.run.changes.values())):
            for start in range(0, len(prompts), AT_ONCE):
                features = [self.run.features(text) for text in prompts[start : start + AT_ONCE]]
                seeds = range(1000 + start, 1000 + start + len(features))
                latents = draw(self.parts.model, features, (16, 16), Sampling(), seeds)
                rows.append(self.parts.decode(latents))
        return torch.cat(rows)


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def asked(name: str) -> list[str]:
    """Held-out phrasings of a new thing, on all colours."""
    templates = phrasings("en", "held_out")
    return [fill(template, name, colour, "en") for template in templates for colour in pictures.colours()]


def known_prompts(known: Judge) -> list[str]:
    palette, templates = pictures.colours(), phrasings("en", "held_out")
    return [
        fill(templates[at % 3], concept.names["en"][0], palette[at % len(palette)], "en")
        for at, concept in enumerate(known.concepts)
    ]


def known_share(model: Trained, known: Judge, changed: bool) -> float:
    images = model.draw(known_prompts(known), changed)
    return share([nearest_concept(image, known.drawings) == at for at, image in enumerate(images)])


def thing_rows(work: Path, known: Judge, number: int) -> list[dict]:
    name = list(NEW.values())[number]
    write(work / name / "pictures", of_thing(known.new[number], name))
    model = Trained(work / name, work / name / "pictures", known)
    images = model.draw(asked(name))
    learned = share([nearest_concept(i, known.drawings) == len(known.known) + number for i in images])
    before, after = (known_share(model, known, changed) for changed in (False, True))
    about = f"{PICTURES} pictures, {STEPS} steps of {BATCH}, rank {RANK}; {model.seconds:.0f} s"
    return [
        row(f"{name}: nearest in held-out phrasings", learned, "share", ">= 0.9", about),
        row(f"{name}: known things before", before, "share", None, f"{len(known.known)} things"),
        row(f"{name}: known things lose", 100 * (before - after), "points", f"<= {MOST_LOST}", "by the LoRA"),
    ]


def style_rows(work: Path, known: Judge) -> list[dict]:
    """In the style a picture is nearer to what the style makes of the plain one than to that itself."""
    write(work / "style" / "pictures", in_style(known))
    plan = {"steps": STYLE_STEPS, "rank": STYLE_RANK, "prior": False}
    model = Trained(work / "style", work / "style" / "pictures", known, **plan)
    held_out = [at for at in range(len(known.concepts)) if at % (len(known.concepts) // PICTURES)]
    wanted = [known_prompts(known)[at] for at in held_out]
    plain, styled = model.draw(wanted, changed=False), model.draw(wanted)
    goal = (sepia(plain * 2 - 1) + 1) / 2

    def nearer(image: Tensor, goal: Tensor, plain: Tensor) -> bool:
        return float((image - goal).square().mean()) < float((image - plain).square().mean())

    found = [nearer(*three) for three in zip(styled, goal, plain, strict=True)]
    drawings = styled_drawings(known.drawings)
    shown, could = (
        share([nearest_concept(image, drawings) == at for image, at in zip(images, held_out, strict=True)])
        for images in (styled, goal)  # without colours some things look alike
    )
    about = (
        f"{len(held_out)} things not shown in it; {STYLE_STEPS} steps, rank {STYLE_RANK}, no prior pictures"
    )
    return [
        row("style: nearer to it than to the plain picture", share(found), "share", ">= 0.9", about),
        row(
            "style: shows the thing that was asked for",
            shown,
            "share",
            f">= {could - MOST_LOST / 100:.3f}",
            f"plain pictures put into the style: {could:.3f}",
        ),
    ]


def styled_drawings(drawings: Tensor) -> Tensor:
    """Premultiplied RGBA [N,H,W,4] uint8 in the style."""
    rgba = drawings.permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:]
    plain = rgba[:, :3] / alpha.clamp(min=1e-3)
    styled = (sepia(plain * 2 - 1) + 1) / 2 * alpha
    return (torch.cat((styled, alpha), dim=1) * 255).round().byte().permute(0, 2, 3, 1)


def rows(work: Path, known: Judge) -> list[dict]:
    found = [r for number in range(len(NEW)) for r in thing_rows(work, known, number)]
    return found + style_rows(work, known)
