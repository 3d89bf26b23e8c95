"""What the command line takes, and the settings that it means."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from . import lora, parts
from .flow import DRAWN, Noise
from .full import PARTS, WEIGHTS, FullSettings
from .plan import OPTIMIZERS, SCHEDULES, Plan
from .presets import EMA, PRESETS, WARMUP, learning_rate, sampling, steps_for
from .run import Settings

FULL_RATE = 0.1  # of a LoRA's: all weights move


def parser(about: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m zimage_core.train",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = found.add_subparsers(dest="command", required=True)
    one = commands.add_parser("lora", help="train a LoRA", argument_default=argparse.SUPPRESS)
    _common(one, "the LoRA's file; none is written over")
    one.add_argument("--lr", type=float, help="learning rate (default: 1e-4 for the 6B)")
    one.add_argument("--kind", choices=lora.KINDS, default="lora")
    one.add_argument("--rank", type=int)
    one.add_argument("--alpha", type=float, help="(default: as the rank)")
    one.add_argument("--dropout", type=float, default=0.0)
    one.add_argument("--targets", choices=lora.TARGETS)
    one.add_argument(
        "--adapter", type=Path, help="training adapter of Turbo, under the model while it trains"
    )
    one.add_argument(
        "--names", choices=lora.WRITTEN, default="comfyui",
        help="whose names the file has; every ComfyUI reads comfyui, older ones nothing else",
    )  # fmt: skip
    one.add_argument("--vram", help='stream the weights through so much of the card, such as "6GB"')
    all_of_it = commands.add_parser(
        "full", help="train the transformer itself", argument_default=argparse.SUPPRESS
    )
    _common(all_of_it, "the transformer's file; none is written over")
    all_of_it.add_argument("--lr", type=float, help="learning rate (default: 1e-5 for the 6B)")
    all_of_it.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[*PARTS],
        help='what trains; "visual layers" leaves the text side as it is (default: all)',
    )  # fmt: skip
    all_of_it.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="float32",
        help="bfloat16 takes half the memory and loses small steps",
    )
    all_of_it.add_argument("--ema", type=float, default=0.0, help="of the weights' average (default: none)")
    commands.add_parser("data", help="what is in a folder of pictures")
    return found


def _common(one: argparse.ArgumentParser, out: str) -> None:
    one.add_argument(
        "--data", type=Path, required=True, help="folder with .txt files, .jsonl or musubi's .toml"
    )
    one.add_argument("--out", type=Path, required=True, help=out)
    add_files(one)
    one.add_argument("--run", type=Path, help="folder of state, cache and samples (default: beside --out)")
    one.add_argument("--preset", choices=PRESETS, default="concept")
    one.add_argument("--steps", type=int, help="(default: by preset and pictures)")
    one.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    one.add_argument("--schedule", choices=SCHEDULES, default="linear")
    one.add_argument("--accumulate", type=int, default=1, help="batches to a step")
    one.add_argument("--batch", type=int, default=1, help="pictures of a batch, of all processes together")
    one.add_argument("--resolution", type=int, default=1024, help="side of a square picture in pixels")
    one.add_argument("--noise", choices=DRAWN)
    one.add_argument("--trigger", default="", help="a word put in front of captions that lack it")
    one.add_argument("--prior", type=Path, help="captions of what shall stay as it is, a line each")
    one.add_argument("--prior-share", type=float, default=0.5, help="of each batch")
    one.add_argument("--sample", action="append", default=[], metavar="PROMPT", help="drawn on the way")
    one.add_argument("--sample-every", type=int, default=250, help="steps")
    one.add_argument("--save-every", type=int, default=250, help="steps between states that are kept")
    one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    one.add_argument("--no-checkpointing", action="store_true", default=False, help="faster, in more memory")
    one.add_argument("--seed", type=int, default=0)


def add_files(one: argparse.ArgumentParser) -> None:
    """Where the model is, for `files_of`."""
    one.add_argument("--model", type=Path, help="a model's folder, for the parts that are not named")
    for part in ("transformer", "text-encoder", "autoencoder", "tokenizer"):
        one.add_argument(f"--{part}", type=Path, help=f"file or folder of the {part.replace('-', ' ')}")


def files_of(given: argparse.Namespace) -> parts.Files:
    """Raises FileNotFoundError where a part is not named and no folder has it."""
    named = {
        name: getattr(given, name)
        for name in ("transformer", "text_encoder", "autoencoder", "tokenizer")
        if hasattr(given, name)
    }
    if hasattr(given, "model"):
        found = parts.files_in(given.model)
        return parts.Files(**{**vars(found), **named})
    missing = [name for name in parts.Files.__dataclass_fields__ if name not in named]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise FileNotFoundError(f"parts of the model are missing: give --model, or {options}")
    return parts.Files(**named)


def lora_settings(given: argparse.Namespace, made: parts.Parts, variant: str, pictures: int) -> Settings:
    preset = PRESETS[given.preset]
    if given.kind != "lora" and given.names == "diffusers":
        raise ValueError(lora.LORA_ALONE)
    return Settings(
        plan=_plan(given, pictures, learning_rate(made.model.config), ema=EMA),
        lora=lora.Settings(
            kind=given.kind,
            rank=getattr(given, "rank", preset.rank),
            alpha=getattr(given, "alpha", None),
            dropout=given.dropout,
            targets=getattr(given, "targets", preset.targets),
        ),
        adapter=str(getattr(given, "adapter", "")),
        **_shared(given, variant),
    )


def full_settings(given: argparse.Namespace, made: parts.Parts, variant: str, pictures: int) -> FullSettings:
    rate = FULL_RATE * learning_rate(made.model.config)
    return FullSettings(
        plan=_plan(given, pictures, rate, ema=given.ema),
        parts=tuple(given.parts),
        weights=given.weights,
        **_shared(given, variant),
    )


def _plan(given: argparse.Namespace, pictures: int, rate: float, ema: float) -> Plan:
    return Plan(
        steps=getattr(given, "steps", steps_for(given.preset, pictures)),
        lr=getattr(given, "lr", rate),
        warmup=WARMUP,
        schedule=given.schedule,
        ema=ema,
        optimizer=given.optimizer,
        accumulate=given.accumulate,
        seed=given.seed,
        save_steps=given.save_every,
    )


def captions_in(file: Path) -> tuple[str, ...]:
    """A line each. Raises ValueError where there is none."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no UTF-8 text: save it as UTF-8") from None
    if not (found := tuple(line.strip() for line in lines if line.strip())):
        raise ValueError(f"{file} holds no caption: expected one a line")
    return found


def _shared(given: argparse.Namespace, variant: str) -> dict[str, Any]:
    preset = PRESETS[given.preset]
    prior = captions_in(given.prior) if hasattr(given, "prior") else ()
    return {
        "noise": Noise(getattr(given, "noise", preset.noise)),
        "sampling": sampling(variant),
        "resolution": given.resolution,
        "batch": given.batch,
        "caption_dropout": preset.caption_dropout,
        "trigger": given.trigger,
        "prior": prior,
        "prior_share": given.prior_share,
        "checkpointing": not given.no_checkpointing,
        "sample_every": given.sample_every,
        "sample_prompts": tuple(given.sample),
    }
