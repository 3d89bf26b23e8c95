"""The model that ships, end to end on a card: the same pictures and words as on the CPU, and how fast."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.forwards import device_name
from bench.rows import row
from bench.scale import Scale
from bench.timing import clock
from zimage_core import ZImagePipeline
from zimage_core.prompt.template import apply_template
from zimage_core.prompt.writing import Sampling, generate, steps
from zimage_core.weights import load_text_encoder

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "models" / "nano"
WRITTEN = 24  # tokens
EDIT = "make the background blue"
CASES = json.loads((ROOT / "tests" / "host" / "nano_prompts.json").read_text(encoding="utf-8"))
BARS = {  # of what is measured: unit and bar
    "pictures against the CPU's": ("relative L2", "<= 1e-2"),
    "edited pictures against the CPU's": ("relative L2", "<= 1e-2"),
    "written tokens as on the CPU": ("share", "== 1"),
    "prompt to picture": ("ms, median", None),
}


def rows(scale: Scale, folder: Path = NANO) -> Iterator[dict]:
    """Open where the model is not there."""
    found = iter(())
    here = (folder / "transformer.safetensors").is_file()
    if here:
        found = measured(folder, scale)
    for name, (unit, bar) in BARS.items():
        against = f"{len(CASES)} prompts, 8 steps, fp32" if here else f"{folder.name} is not here"
        yield row(f"{device_name(scale.device)}, nano: {name}", next(found, None), unit, bar, against)


def pipeline(folder: Path) -> ZImagePipeline:
    parts = (folder / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder"))
    vision = folder / "vision.safetensors"
    return ZImagePipeline.from_files(*parts, folder / "tokenizer", torch_dtype=torch.float32, vision=vision)


@torch.no_grad()
def measured(folder: Path, scale: Scale) -> Iterator[float]:
    """The values of BARS, in their order."""
    pipe, size = pipeline(folder), json.loads((folder / "config.json").read_text("utf-8"))["resolution"]
    writer = load_text_encoder(folder / "text_encoder.safetensors", dtype=torch.float32, language_model=True)

    def pictures(prompts: list[str], reference: Tensor | None = None) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        options = {"height": size, "width": size, "generator": generators, "output_type": "pt"}
        if reference is not None:
            options["image"] = reference
        return pipe(prompts, **options).images.float().cpu()

    def written(device: str) -> list[int]:
        ids = pipe.tokenizer(apply_template(CASES[0]["prompt"]), add_special_tokens=False)["input_ids"]
        step = steps(writer, len(ids) + WRITTEN, torch.device(device), torch.float32)
        return generate(step, ids, Sampling(temperature=0), (), WRITTEN, device=device).tokens

    prompts = [case["prompt"] for case in CASES]
    on_cpu = pictures(prompts)
    reference = on_cpu[0].movedim(0, -1)
    edited_on_cpu, words_on_cpu = pictures([EDIT], reference), written("cpu")
    pipe.to(scale.device)
    writer.to(scale.device)
    yield distance(pictures(prompts), on_cpu)
    yield distance(pictures([EDIT], reference), edited_on_cpu)
    words = written(scale.device)
    yield sum(a == b for a, b in zip(words, words_on_cpu, strict=True)) / len(words_on_cpu)
    yield 1000 * statistics.median(
        clock(scale.device, lambda: pictures(prompts[:1])) for _ in range(scale.rounds)
    )


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
