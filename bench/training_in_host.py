"""A LoRA by the host's own training node and by ours: one MODEL, the same pictures, steps and rank.

python tests/host/launch.py bench/training_in_host.py ComfyUI_FOLDER OUT_FOLDER STEPS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.host.inside import enter, extension_module

RANK, BATCH, SIDE = 8, 4, 128
RATES = (5e-4, 3e-3)  # the host's by default, and one that fits the small model
TIMED, ROUNDS = 8, 5  # steps of a run that is timed, and runs of each by turns
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
HELD_OUT = (8, 9)  # pictures of the example that are not trained on
PROMPTS = ("{} on a {} background", "a picture of {} on plain {}", "an illustration of {} on {}")
COLOURS = ("white", "red", "blue", "green", "yellow")
SEED = 1
NEWER = {  # inputs of the host's node that older ones lack
    "checkpoint_depth": 1,
    "offloading": False,
    "quantized_backward": False,
    "bucket_mode": False,
    "bypass_mode": False,
}


class Setting:
    """The model that ships, in the host, and the example's pictures."""

    def __init__(self, out: Path) -> None:
        from comfy_extras import nodes_train

        self.node, self.out = nodes_train.TrainLoraNode, out
        self.run = extension_module("zimage_core.train.run")
        self.plan = extension_module("zimage_core.train.plan")
        self.lora = extension_module("zimage_core.train.lora")
        self.flow = extension_module("zimage_core.train.flow")
        self.batch = extension_module("zimage_core.train.batch")
        self.parts_of = extension_module("nodes.host.training.parts").parts_of
        nano = extension_module("nodes.host.built_in").NANO
        self.model = extension_module("nodes.host.loading.model").load_patcher(
            nano / "transformer.safetensors"
        )
        self.clip = extension_module("nodes.host.loading.clip").load_clip(nano / "text_encoder.safetensors")
        self.vae = extension_module("nodes.host.loading.vae").load_vae(nano / "autoencoder.safetensors")
        folders = extension_module("nodes.host.training.data_folders")
        pictures = folders.load(folders.BUILT_IN).data.pictures
        self.shown = [p for at, p in enumerate(pictures) if at not in HELD_OUT]
        self.unseen = [pictures[at] for at in HELD_OUT]
        self.examples = {p.path: self.example(p) for p in pictures}

    def example(self, picture: Any) -> tuple[Tensor, Tensor]:
        """A picture's latent as the model takes it [1,C,h,w], and its caption's features [L,width]."""
        parts, _ = self.parts_of(self.model, self.clip, self.vae)
        files = extension_module("zimage_core.train.data.picture_files")
        pixels = self.batch.resized(files.flattened(files.open_picture(picture.path)), (SIDE, SIDE))
        return parts.encode(pixels[None]), parts.features(picture.captions[0])

    def ours(self, name: str, rate: float, steps: int, batch: int = BATCH) -> dict[str, Tensor]:
        """The LoRA's tensors."""
        parts, _ = self.parts_of(self.model, self.clip, self.vae)
        settings = self.run.Settings(
            plan=self.plan.Plan(steps, rate, warmup=20, ema=0.97, seed=SEED, save_seconds=1e9),
            lora=self.lora.Settings(rank=RANK),
            resolution=SIDE,
            batch=batch,
            caption_dropout=0.0,
        )
        return self.lora.tensors(self.run.LoraRun(parts, self.shown, settings, self.out / name).train())

    def theirs(self, rate: float, steps: int, batch: int = BATCH) -> dict[str, Tensor]:
        examples = [self.examples[p.path] for p in self.shown]
        wanted = {
            "model": self.model,
            "batch_size": batch,
            "steps": steps,
            "grad_accumulation_steps": 1,
            "learning_rate": rate,
            "rank": RANK,
            "optimizer": "AdamW",
            "loss_function": "MSE",
            "seed": SEED,
            "training_dtype": "bf16",
            "lora_dtype": "fp32",
            "algorithm": "LoRA",
            "gradient_checkpointing": True,
            "existing_lora": "[None]",
        }
        schema = {given.id for given in self.node.define_schema().inputs}
        extra = {
            "checkpoint_depth": 1,
            "offloading": False,
            "quantized_backward": False,
            "bucket_mode": False,
        }
        wanted |= {name: value for name, value in (extra | {"bypass_mode": False}).items() if name in schema}
        lists = {name: [value] for name, value in wanted.items()}
        scaled = self.model.model.process_latent_out
        lists["latents"] = [{"samples": scaled(latent)} for latent, _ in examples]
        lists["positive"] = [[[features[None], {}]] for _, features in examples]
        found = self.node.execute(**lists)
        return next(value for value in found.args if isinstance(value, dict) and "loss" not in value)

    def with_lora(self, tensors: dict[str, Tensor]) -> Any:
        """By the host's own loader."""
        import comfy.sd

        return comfy.sd.load_lora_for_models(self.model, None, tensors, 1.0, 0.0)[0]

    @torch.inference_mode()
    def held_out_loss(self, patcher: Any) -> float:
        """Of the velocity, over pictures that were not trained on, some sigmas and seeds."""
        network = loaded(patcher)
        errors = []
        for picture in self.unseen:
            latent, features = self.examples[picture.path]
            for number, sigma in enumerate(SIGMAS):
                generator = torch.Generator().manual_seed(number)
                at = torch.tensor([sigma])
                noisy, wanted = self.flow.noised(latent, at, generator)
                found = network(noisy.to(network.x_pad_token), at, features[None].to(network.x_pad_token))
                errors.append(float(self.flow.velocity_error(found, wanted)))
        return sum(errors) / len(errors)

    @torch.inference_mode()
    def samples(self, patcher: Any) -> Tensor:
        """Pictures [N,3,H,W] in [0,1] of the thing on all colours, 8 steps of the host's sampler."""
        import comfy.sample

        rows = []
        for template in PROMPTS:
            for number, colour in enumerate(COLOURS):
                tokens = self.clip.tokenize(template.format("a sloth", colour))
                positive = self.clip.encode_from_tokens_scheduled(tokens)
                latent = torch.zeros(1, 16, SIDE // 8, SIDE // 8)
                noise = comfy.sample.prepare_noise(latent, number)
                given = (8, 1.0, "euler", "simple", positive, positive, latent)
                x = comfy.sample.sample(patcher, noise, *given, disable_pbar=True, seed=number)
                rows.append(self.vae.decode(x).movedim(-1, 1))
        return torch.cat(rows)


def loaded(patcher: Any) -> Any:
    """The network of a MODEL with its patches in its weights."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    return patcher.model.diffusion_model


def seconds(call: Callable[[], Any], steps: int) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) / steps


def measure(out: Path, steps: int) -> dict:
    """Losses by rate and maker, seconds a step by turns; samples lie in the folder."""
    setting = Setting(out)
    found: dict[str, Any] = {"before": setting.held_out_loss(setting.model), "loss": {}, "seconds": []}
    pictures = {"before": setting.samples(setting.model)}
    for rate in RATES:
        made = {
            "ours": setting.ours(f"ours-{rate}", rate, steps),
            "theirs": setting.theirs(rate, steps),
        }
        for maker, tensors in made.items():
            patcher = setting.with_lora(tensors)
            found["loss"][f"{maker} at {rate:g}"] = setting.held_out_loss(patcher)
            pictures[f"{maker} at {rate:g}"] = setting.samples(patcher)
            patcher.detach()
    for number in range(ROUNDS):
        ours = seconds(lambda n=number: setting.ours(f"timed-{n}", RATES[0], TIMED, 1), TIMED)
        found["seconds"].append((ours, seconds(lambda: setting.theirs(RATES[0], TIMED, 1), TIMED)))
    torch.save(pictures, out / "samples.pt")
    return found


if __name__ == "__main__":
    enter(Path(sys.argv[1]).resolve())
    answer = measure(Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(answer) + "\n")
