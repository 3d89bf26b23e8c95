"""Train a LoRA of Z-Image, or look at its pictures first.

python -m zimage_core.train lora --data DIR --model DIR --out FILE.safetensors
python -m zimage_core.train data DIR
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..acceleration.small_card import size_of
from ..weights import WeightsError
from . import lora, parts
from .data import store
from .flow import DRAWN, Noise
from .plan import OPTIMIZERS, SCHEDULES, Plan
from .presets import EMA, PRESETS, WARMUP, learning_rate, sampling, steps_for
from .run import LoraRun, Settings, Watch
from .trainer import Progress

log = logging.getLogger("zimage_core.train")

ENDS = ("SIGTERM", "SIGHUP")
NO_ADAPTER = (
    "this is Turbo, and it is trained without its training adapter: it unlearns to draw in few steps. "
    "Give the adapter's file with --adapter (zimage_turbo_training_adapter), or train Base"
)


class Terminal(Watch):
    """A line that is written anew on a terminal, else a line now and then; samples go into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.last = folder, 0.0

    def stage(self, name: str, done: int, total: int) -> None:
        self._say(f"{name}: {done} of {total}", done == total)

    def step(self, progress: Progress) -> None:
        left = time.strftime("%H:%M:%S", time.gmtime(progress.left))
        text = f"step {progress.step} of {progress.steps}, loss {progress.smooth:.4f}, {left} left"
        self._say(text, progress.step == progress.steps)

    def sample(self, step: int, prompt: str, pixels: Tensor) -> None:
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(list(self.folder.glob(f"{step:06d}-*.png")))
        rows = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(rows).save(self.folder / f"{step:06d}-{number}.png")

    def _say(self, text: str, end: bool) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<78}" + ("\n" if end else ""))
        elif end or time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            log.info("%s", text)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m zimage_core.train", description=__doc__.split("\n")[0])
    commands = found.add_subparsers(dest="command", required=True)
    one = commands.add_parser("lora", help="train a LoRA", argument_default=argparse.SUPPRESS)
    one.add_argument(
        "--data", type=Path, required=True, help="folder with .txt files, .jsonl or musubi's .toml"
    )
    one.add_argument("--out", type=Path, required=True, help="the LoRA's file; none is written over")
    one.add_argument("--model", type=Path, help="a model's folder, for the parts that are not named")
    for part in ("transformer", "text-encoder", "autoencoder", "tokenizer"):
        one.add_argument(f"--{part}", type=Path, help=f"file or folder of the {part.replace('-', ' ')}")
    one.add_argument("--run", type=Path, help="folder of state, cache and samples (default: beside --out)")
    one.add_argument("--preset", choices=PRESETS, default="concept")
    one.add_argument("--steps", type=int, help="(default: by preset and pictures)")
    one.add_argument("--lr", type=float, help="learning rate (default: 1e-4 for the 6B)")
    one.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    one.add_argument("--schedule", choices=SCHEDULES, default="linear")
    one.add_argument("--accumulate", type=int, default=1, help="batches to a step")
    one.add_argument("--batch", type=int, default=1, help="pictures of a batch")
    one.add_argument("--resolution", type=int, default=1024, help="side of a square picture in pixels")
    one.add_argument("--kind", choices=lora.KINDS, default="lora")
    one.add_argument("--rank", type=int)
    one.add_argument("--alpha", type=float, help="(default: as the rank)")
    one.add_argument("--dropout", type=float, default=0.0)
    one.add_argument("--targets", choices=lora.TARGETS)
    one.add_argument("--noise", choices=DRAWN)
    one.add_argument("--trigger", default="", help="a word put in front of captions that lack it")
    one.add_argument("--prior", type=Path, help="captions of what shall stay as it is, a line each")
    one.add_argument("--prior-share", type=float, default=0.5, help="of each batch")
    one.add_argument(
        "--adapter", type=Path, help="training adapter of Turbo, under the model while it trains"
    )
    one.add_argument("--sample", action="append", default=[], metavar="PROMPT", help="drawn on the way")
    one.add_argument("--sample-every", type=int, default=250, help="steps")
    one.add_argument("--save-every", type=int, default=250, help="steps between states that are kept")
    one.add_argument("--names", choices=lora.WRITTEN, default="comfyui", help="whose names the file has")
    one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    one.add_argument("--vram", help='stream the weights through so much of the card, such as "6GB"')
    one.add_argument("--no-checkpointing", action="store_true", default=False, help="faster, in more memory")
    one.add_argument("--seed", type=int, default=0)
    data = commands.add_parser("data", help="what is in a folder of pictures", add_help=False)
    data.add_argument("rest", nargs=argparse.REMAINDER)
    return found


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


def train_lora(given: argparse.Namespace) -> None:
    lora_file: Path = given.out
    if lora_file.exists():
        raise FileExistsError(f"{lora_file} exists already, and nothing is written over: choose another name")
    data = store.load(given.data)
    for problem in data.problems:
        log.warning("%s", problem)
    run = getattr(given, "run", lora_file.with_suffix(""))
    files, streams = files_of(given), hasattr(given, "vram")
    if streams:
        size_of(given.vram)
    made, variant = parts.from_files(files, "cpu" if streams else given.device)
    if streams:
        made.streaming = parts.streamed(made.model, given.vram, given.device)
    if variant == "Turbo" and not hasattr(given, "adapter") and made.model.config.full_size:
        log.warning("%s", NO_ADAPTER)
    settings = settings_of(given, made, variant, len(data.pictures))
    log.info("%d pictures, %d steps, %s", len(data.pictures), settings.plan.steps, run)
    changes = LoraRun(made, data.pictures, settings, run, data.hash).train(Terminal(run / "samples"))
    facts = {
        "ss_base_model_version": f"z-image {variant.lower()}",
        "ss_sd_model_name": files.transformer.name,
        "ss_steps": settings.plan.steps,
        "ss_learning_rate": settings.plan.lr,
        "ss_num_train_images": len(data.pictures),
        "modelspec.trigger_phrase": settings.trigger,
        "zimage_data_hash": data.hash,
    }
    lora.write(lora_file, changes, lora.described(settings.lora, **facts), given.names)
    log.info("%s", lora_file)


def settings_of(given: argparse.Namespace, made: parts.Parts, variant: str, pictures: int) -> Settings:
    preset = PRESETS[given.preset]
    plan = Plan(
        steps=getattr(given, "steps", steps_for(given.preset, pictures)),
        lr=getattr(given, "lr", learning_rate(made.model.config)),
        warmup=WARMUP,
        schedule=given.schedule,
        ema=EMA,
        optimizer=given.optimizer,
        accumulate=given.accumulate,
        seed=given.seed,
        save_steps=given.save_every,
    )
    prior = given.prior.read_text("utf-8").splitlines() if hasattr(given, "prior") else []
    return Settings(
        plan=plan,
        lora=lora.Settings(
            kind=given.kind,
            rank=getattr(given, "rank", preset.rank),
            alpha=getattr(given, "alpha", None),
            dropout=given.dropout,
            targets=getattr(given, "targets", preset.targets),
        ),
        noise=Noise(getattr(given, "noise", preset.noise)),
        sampling=sampling(variant),
        resolution=given.resolution,
        batch=given.batch,
        caption_dropout=preset.caption_dropout,
        trigger=given.trigger,
        prior=tuple(line.strip() for line in prior if line.strip()),
        prior_share=given.prior_share,
        checkpointing=not given.no_checkpointing,
        sample_every=given.sample_every,
        sample_prompts=tuple(given.sample),
        adapter=str(getattr(given, "adapter", "")),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if given.command == "data":
        from .data.__main__ import main as look

        return look(given.rest)
    for name in ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)
    try:
        train_lora(given)
    except (WeightsError, ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped: the same command goes on from the last state\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
