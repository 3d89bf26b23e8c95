"""A run of the trainer in the host: its memory, its folder, and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as management
import torch

from ....zimage_core.config import S3DiTConfig
from ....zimage_core.model.s3dit import S3DiT
from ....zimage_core.train import lora
from ....zimage_core.train.batch import MULTIPLE, bucket_of
from ....zimage_core.train.flow import Noise
from ....zimage_core.train.parts import PER_MADE, bytes_of_step
from ....zimage_core.train.plan import Plan
from ....zimage_core.train.presets import EMA, PRESETS, WARMUP, learning_rate, sampling, steps_for
from ....zimage_core.train.run import LoraRun, Settings, Watch
from ....zimage_core.weights import read_lora
from ..running.lora import LoraUse, with_loras
from ..running.merged import not_merged, readable
from .data_folders import TrainingData
from .layers import HostLayer
from .parts import parts_of, variant_and_name
from .run_folder import RUNS, RunError, RunFolder

NO_ADAPTER = (
    "This is Turbo, and it was trained without its training adapter: it unlearns to draw in few steps. "
    "Choose zimage_turbo_training_adapter as adapter, or train Base."
)
FEW = 3  # pictures of which a LoRA learns little else than these


@dataclass(frozen=True)
class Wanted:
    """What the node was asked for; 0 of steps, rate and rank: by preset and model."""

    name: str
    preset: str
    steps: int = 0
    learning_rate: float = 0.0
    rank: int = 0
    batch: int = 1
    resolution: int = 1024
    trigger: str = ""
    prior: tuple[str, ...] = ()
    prior_share: float = 0.5
    sample_prompts: tuple[str, ...] = ()
    sample_every: int = 250
    save_every: int = 250
    seed: int = 0
    save: bool = False
    adapter: Path | None = None

    def settings(self, config: S3DiTConfig, variant: str, pictures: int) -> Settings:
        """Raises RunError for an unknown preset or a side that no picture can have."""
        if self.preset not in PRESETS:
            raise RunError(f"preset is {self.preset!r}, expected one of {', '.join(PRESETS)}.")
        if self.resolution % MULTIPLE:
            near = self.resolution // MULTIPLE * MULTIPLE
            raise RunError(
                f"resolution is {self.resolution}, expected a multiple of {MULTIPLE} pixels, such as "
                f"{near or MULTIPLE} or {near + MULTIPLE}."
            )
        preset = PRESETS[self.preset]
        plan = Plan(
            steps=self.steps or steps_for(self.preset, pictures),
            lr=self.learning_rate or learning_rate(config),
            warmup=WARMUP,
            ema=EMA,
            seed=self.seed,
            save_steps=self.save_every or None,
        )
        return Settings(
            plan=plan,
            lora=lora.Settings(rank=self.rank or preset.rank, targets=preset.targets),
            noise=Noise(preset.noise),
            sampling=sampling(variant),
            resolution=self.resolution,
            batch=self.batch,
            caption_dropout=preset.caption_dropout,
            trigger=self.trigger,
            prior=self.prior,
            prior_share=self.prior_share,
            checkpointing=config.full_size,  # a small model has room for all of a step
            sample_every=self.sample_every,
            sample_prompts=self.sample_prompts,
            adapter=str(self.adapter or ""),
        )


@dataclass(frozen=True)
class Trained:
    """model: with the LoRA on it. file: the LoRA; listed: its name. said: the report, line by line."""

    model: Any
    file: Path
    listed: str
    said: tuple[str, ...]


def train(model: Any, clip: Any, vae: Any, data: TrainingData, wanted: Wanted, watch: Watch) -> Trained:
    """Train, or take what a finished run of the same settings has made.

    Raises RunError and ValueError for settings that cannot be, RuntimeError where memory is too small.
    """
    folder = RunFolder(wanted.name)
    if wanted.save:
        folder.check_saved()
    variant, base = variant_and_name(model)
    settings = wanted.settings(readable(model).config, variant, len(data.data.pictures))
    facts = {"settings": dataclasses.asdict(settings), "data": data.data.hash, "base": base}
    before = folder.result(facts)
    said = before["said"] if before else None
    if said is None:
        with torch.inference_mode(False), torch.enable_grad():
            said = _run(model, clip, vae, data, settings, folder, facts, variant, watch)
        folder.finish(facts, said)
    else:
        said = ["This run was finished before: nothing was trained.", *said]
    if wanted.save:
        folder.save()
    place = folder.saved if wanted.save else folder.lora
    listed = place.name if wanted.save else f"{RUNS}/{folder.name}/{place.name}"
    use = LoraUse(place.name, read_lora(folder.lora), 1.0, 0.0)
    changed, _, used = with_loras(model, None, [use])
    where = f"models/loras/{listed}" if wanted.save else f"output/{listed}"
    return Trained(changed, place, listed, (*said, f"The LoRA is in {where}.", *used))


def _run(
    model: Any,
    clip: Any,
    vae: Any,
    data: TrainingData,
    settings: Settings,
    folder: RunFolder,
    facts: dict[str, Any],
    variant: str,
    watch: Watch,
) -> list[str]:
    """The run itself; what is to be said of it."""
    failed = ""
    try:
        parts, resident = parts_of(model, clip, vae)
        config = parts.model.config
        resident.room = room(parts.model, settings)
        run = LoraRun(parts, data.data.pictures, settings, folder.path, facts["data"], facts["base"])
        changes = run.train(watch)
        about = {
            "ss_base_model_version": f"z-image {variant.lower()}",
            "ss_output_name": folder.name,
            "ss_steps": settings.plan.steps,
            "ss_learning_rate": settings.plan.lr,
            "ss_num_train_images": len(data.data.pictures),
            "modelspec.trigger_phrase": settings.trigger,
            "zimage_data_hash": facts["data"],
        }
        folder.lora.unlink(missing_ok=True)
        lora.write(folder.lora, changes, lora.described(settings.lora, **about))
        last_samples(run, watch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = str(error).split("\n")[0]
    if failed:  # here the pictures of the failed step are gone with its frames
        management.unload_all_models()
        management.soft_empty_cache()
        raise RuntimeError(
            f"the memory is too small for this run ({failed}). What it had learned is kept, and the next run "
            f"goes on from there. Lower batch (now {settings.batch}), resolution ({settings.resolution}) or "
            f"rank ({settings.lora.rank}), or load the model in fp8."
        )
    return report(data, settings, config, variant, model)


def is_out_of_memory(error: Exception) -> bool:
    asked = getattr(management, "is_oom", None)  # newer hosts know more kinds of it
    return asked(error) if asked else isinstance(error, management.OOM_EXCEPTION)


def last_samples(run: LoraRun, watch: Watch) -> None:
    """The prompts without and with what was learned."""
    total = run.settings.plan.steps
    for number, prompt in enumerate(run.settings.sample_prompts):
        features = run.features(prompt)
        with torch.no_grad(), run.without(run.changes.values()):
            watch.sample(0, prompt, run.picture(features, number))
        watch.sample(total, prompt, run.picture(features, number))


def report(
    data: TrainingData, settings: Settings, config: S3DiTConfig, variant: str, model: Any
) -> list[str]:
    pixels, count = settings.resolution**2, len(data.data.pictures)
    sizes = Counter(bucket_of(*picture.size, pixels) for picture in data.data.pictures)
    listed = ", ".join(f"{number} at {width}x{height}" for (width, height), number in sizes.most_common(8))
    more = f" and {len(sizes) - 8} more sizes" if len(sizes) > 8 else ""
    said = [
        f"{data.name}: {count} pictures, {listed}{more}.",
        f"{settings.plan.steps} steps of {settings.batch}, rank {settings.lora.rank}, learning rate "
        f"{settings.plan.lr:.2g}.",
    ]
    if count <= FEW:
        said.append(f"{count} pictures are few: expect copies of them. 8 and more are better.")
    if variant == "Turbo" and config.full_size and not settings.adapter:
        said.append(NO_ADAPTER)
    return [*said, *not_merged(model)]


def room(model: S3DiT, settings: Settings) -> int:
    """Bytes that a step takes beside the weights, which may become matrices one at a time."""
    layers = [layer for layer in model.modules() if isinstance(layer, HostLayer)]
    largest = max(layer.in_features * layer.out_features for layer in layers)
    trained = lora.values_of(model, settings.lora)
    return bytes_of_step(model, settings.tokens, trained) + PER_MADE * largest
