"""How much more the pictures of one prompt differ with ZImageDiversity, and what that costs in following it.

Every strength draws the same prompts from the same noise with the model that ships. Also rewrites the tables
and the curve of docs/diversity.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.judge import nearest_concept, shows_colour
from bench.nano import CACHE, NANO, ROOT, data_folder
from bench.rows import row
from zimage_core import ZImagePipeline
from zimage_core.config import TURBO_STEPS
from zimage_core.sampling.diversity import UNTIL, varied
from zimage_core.sampling.schedule import euler_step, turbo_sigmas
from zimage_core.train.nano import pictures
from zimage_core.train.nano.captions import LANGUAGES, fill, held_out_colour, load_concepts, phrasings

PAGE = ROOT / "docs" / "diversity.md"
CURVE = PAGE.with_suffix(".png")
SEEDS = 16
CONCEPTS_PER_LANGUAGE = 2
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT = 0.5
EARLY = sum(step < UNTIL * TURBO_STEPS for step in range(TURBO_STEPS))  # steps that read the varied caption
LATENT = 16  # cells of a side

Vary = Callable[[Tensor, list[int]], Tensor]  # features of one prompt, a seed each -> features of each


@dataclass(frozen=True)
class Asked:
    prompt: str
    concept: int
    colour: int


@dataclass(frozen=True)
class Method:
    """What the early steps do: read a varied caption, or get fresh noise (`renew`) with the plain one."""

    vary: Vary = lambda features, seeds: features.expand(len(seeds), -1, -1)
    steps: int = EARLY
    renew: bool = False


def on_half_of_the_tokens(features: Tensor, seeds: list[int]) -> Tensor:
    chosen = [torch.rand(features.shape[1], generator=torch.Generator().manual_seed(s)) < 0.5 for s in seeds]
    return torch.where(torch.stack(chosen)[..., None], varied(features, None, 1.0, seeds), features)


def towards_their_mean(features: Tensor, seeds: list[int]) -> Tensor:
    """A weaker prompt, the same for every seed."""
    return features.lerp(features.mean(dim=1, keepdim=True), 0.5).expand(len(seeds), -1, -1)


def strength(value: float) -> Method:
    return Method(lambda features, seeds: varied(features, None, value, seeds))


ALTERNATIVES = {
    "the same noise at 1, on half of the tokens": Method(on_half_of_the_tokens),
    "a weaker prompt, without noise": Method(towards_their_mean),
    "fresh noise in the picture after each of these steps": Method(renew=True),
}


def requests(data: Path) -> list[Asked]:
    """Prompts that name a drawing and a background that the model was trained on."""
    concepts, palette = load_concepts(data), pictures.colours()
    count, found = CONCEPTS_PER_LANGUAGE * len(LANGUAGES), []
    for k in range(count):
        language, concept = LANGUAGES[k % len(LANGUAGES)], k * len(concepts) // count
        colour = (held_out_colour(concept) + 1 + k) % len(palette)
        template = phrasings(language, "held_out")[0]
        name = concepts[concept].names[language][0]
        found.append(Asked(fill(template, name, palette[colour], language), concept, colour))
    return found


@torch.no_grad()
def draw(pipe: ZImagePipeline, prompt: str, method: Method) -> Tensor:
    """SEEDS pictures [N,3,H,W] in [0,1] of one prompt."""
    seeds = list(range(SEEDS))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise() -> Tensor:
        return torch.stack([torch.randn(16, LATENT, LATENT, generator=g) for g in generators])

    caption = pipe.encode_prompts([prompt])
    mask = caption.mask.expand(SEEDS, -1)
    plain, early = caption.features.expand(SEEDS, -1, -1), method.vary(caption.features, seeds)
    x, sigmas = noise(), turbo_sigmas().tolist()
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        is_early = step < method.steps
        velocity = pipe.transformer(x, torch.full((SEEDS,), sigma), early if is_early else plain, None, mask)
        if is_early and method.renew:
            x = torch.lerp(x - sigma * velocity, noise(), following)
        else:
            x = euler_step(x, velocity, sigma, following)
    return pipe._output(x, "pt")


def pairwise(images: Tensor) -> float:
    """Mean absolute difference in grey levels over all pairs; images [N,3,...] in [0,1]."""
    first, second = torch.triu_indices(len(images), len(images), 1)
    return float((images[first] - images[second]).abs().mean()) * 255


def measure(pipe: ZImagePipeline, asked: list[Asked], drawings: Tensor, method: Method) -> dict[str, float]:
    """Means over the prompts: distances between seeds, and shares of pictures that show what was asked."""
    totals = {"distance": 0.0, "drawing": 0.0, "concept": 0.0, "both": 0.0}
    for wanted in asked:
        images = draw(pipe, wanted.prompt, method)
        inside = drawings[wanted.concept][..., 3] > 127
        shown = [nearest_concept(image, drawings) == wanted.concept for image in images]
        coloured = [shows_colour(image, wanted.colour) for image in images]
        totals["distance"] += pairwise(images)
        totals["drawing"] += pairwise(images[:, :, inside])
        totals["concept"] += sum(shown) / SEEDS
        totals["both"] += sum(a and b for a, b in zip(shown, coloured, strict=True)) / SEEDS
    return {name: total / len(asked) for name, total in totals.items()}


def table(head: str, measured: dict[str, dict[str, float]]) -> str:
    lines = [
        f"| {head} | distance between seeds | ... inside the drawing | shows the asked drawing | ... and the "
        "asked background |",
        "|---|---|---|---|---|",
    ]
    for name, found in measured.items():
        distances = f"{found['distance']:.1f} | {found['drawing']:.1f}"
        lines.append(f"| {name} | {distances} | {found['concept']:.0%} | {found['both']:.0%} |")
    return "\n".join(lines)


def write_page(curve: dict[str, dict[str, float]], alternatives: dict[str, dict[str, float]]) -> None:
    """Put the tables between their marks."""
    page = PAGE.read_text("utf-8")
    for mark, text in (
        ("curve", table("strength", curve)),
        ("alternatives", table("first two steps", alternatives)),
    ):
        begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
        before, rest = page.split(begin)
        page = f"{before}{begin}{text}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(page, "utf-8")


def draw_curve(curve: dict[str, dict[str, float]], path: Path, size: tuple[int, int] = (560, 320)) -> None:
    """Distance over that at strength 0, and the share of right pictures, against strength."""
    base = curve["0"]["distance"]
    most = max(found["distance"] / base for found in curve.values())
    lines = {
        f"distance between seeds (top: {most:.1f} times)": ("#c03020", lambda f: f["distance"] / base / most),
        "asked drawing on the asked background (top: 100%)": ("#2060b0", lambda f: f["both"]),
    }
    scale, (width, height), edge = 2, size, 36
    sheet = Image.new("RGB", (width * scale, height * scale), "white")
    pen = ImageDraw.Draw(sheet)

    def point(x: float, y: float) -> tuple[float, float]:
        bottom = height - edge
        return (edge + x * (width - 2 * edge)) * scale, (bottom - y * (bottom - 2 * edge)) * scale

    pen.line([point(0, 1), point(0, 0), point(1, 0)], fill="black", width=scale)
    for name in curve:
        x, y = point(float(name), 0)
        pen.text((x, y + 6 * scale), name, fill="black", anchor="ma", font_size=11 * scale)
    pen.text(
        (point(0.5, 0)[0], (height - 4) * scale), "strength", fill="black", anchor="md", font_size=11 * scale
    )
    for index, (title, (colour, value)) in enumerate(lines.items()):
        points = [point(float(name), value(found)) for name, found in curve.items()]
        pen.line(points, fill=colour, width=2 * scale)
        for x, y in points:
            pen.ellipse((x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale), fill=colour)
        pen.text((edge * scale, (8 + 15 * index) * scale), title, fill=colour, font_size=12 * scale)
    sheet.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def run(json_path: Path | None = None) -> list[dict]:
    data = data_folder()
    stems, drawings = pictures.load_drawings(data, CACHE / f"drawings-{pictures.DRAWING}.npy")
    indices = [pictures.stem_index(stems, concept.code) for concept in load_concepts(data)]
    drawings = torch.from_numpy(drawings[indices].copy())
    pipe = ZImagePipeline.from_files(
        *(NANO / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder")),
        NANO / "tokenizer",
        torch_dtype=torch.float32,
    )
    asked = requests(data)
    curve = {f"{value:g}": measure(pipe, asked, drawings, strength(value)) for value in STRENGTHS}
    default = curve[f"{DEFAULT:g}"]
    alternatives = {f"noise on every token, at {DEFAULT:g} (the node)": default}
    alternatives |= {name: measure(pipe, asked, drawings, method) for name, method in ALTERNATIVES.items()}
    write_page(curve, alternatives)
    draw_curve(curve, CURVE)
    against = f"{len(asked)} prompts in {len(LANGUAGES)} languages, {SEEDS} seeds"
    rows = []
    for name, found in curve.items():
        rows += [
            row(f"distance between seeds, strength {name}", found["distance"], "of 255", None, against),
            row(f"asked drawing and background, strength {name}", found["both"], "share", None, against),
        ]
    gain = default["distance"] / curve["0"]["distance"]
    rows.append(row(f"distance at {DEFAULT:g} over that at 0", gain, "", ">= 1.2", against))
    rows.append(row(f"asked drawing at {DEFAULT:g}", default["concept"], "share", ">= 0.9", against))
    if json_path:
        Path(json_path).write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return rows
