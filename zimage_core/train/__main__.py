"""Train a LoRA of Z-Image or the model itself, or look at the pictures first.

python -m zimage_core.train lora --data DIR --model DIR --out FILE.safetensors
python -m zimage_core.train full --data DIR --model DIR --out FILE.safetensors --parts visual layers
python -m zimage_core.train data DIR
torchrun --nproc-per-node 4 -m zimage_core.train lora --batch 4 ...   on several cards
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..weights import WeightsError
from . import distributed, full, lora, parts
from .arguments import files_of, full_settings, lora_settings, parser
from .data import store
from .data.records import DataSet
from .distributed import Processes
from .full import FullRun
from .run import LoraRun, Settings, Watch
from .terminal import Terminal

log = logging.getLogger("zimage_core.train")

ENDS = ("SIGTERM", "SIGHUP")
NO_ADAPTER = (
    "this is Turbo, and it is trained without its training adapter: it unlearns to draw in few steps. "
    "Give the adapter's file with --adapter (zimage_turbo_training_adapter), or train Base"
)

TURBO = "this is Turbo: trained on plain noise it unlearns to draw in few steps. Train Base where you can"


def train_lora(given: argparse.Namespace, group: Processes) -> None:
    data, files, run = begun(given), files_of(given), run_folder(given)
    vram = getattr(given, "vram", None)
    made, variant = parts.from_files(files, group.device, vram=vram)
    settings = lora_settings(given, made, variant, len(data.pictures))
    if vram is not None:
        needed = parts.bytes_of_step(made.model, settings.tokens, lora.values_of(made.model, settings.lora))
        parts.stream(made, vram, group.device, needed)
    if variant == "Turbo" and not hasattr(given, "adapter") and made.model.config.full_size:
        log.warning("%s", NO_ADAPTER)
    said(data, settings, run)
    changes = LoraRun(made, data.pictures, settings, run, data.hash, group=group).train(watch(run, group))
    if group.first:
        facts = described(settings, files, variant, data)
        lora.write(given.out, changes, lora.described(settings.lora, **facts), given.names)


def train_full(given: argparse.Namespace, group: Processes) -> None:
    data, files, run = begun(given), files_of(given), run_folder(given)
    made, variant = parts.from_files(files, group.device, whole=True)
    if variant == "Turbo" and made.model.config.full_size:
        log.warning("%s", TURBO)
    settings = full_settings(given, made, variant, len(data.pictures))
    said(data, settings, run)
    FullRun(made, data.pictures, settings, run, data.hash, group=group).train(watch(run, group))
    facts = {**described(settings, files, variant, data), "zimage_parts": " ".join(settings.parts)}
    full.write(given.out, made.model, {name: str(value) for name, value in facts.items() if value}, group)


COMMANDS = {"lora": train_lora, "full": train_full}


def begun(given: argparse.Namespace) -> DataSet:
    """The data. Raises FileExistsError or ValueError where the result has no place."""
    if given.out.suffix != ".safetensors":
        raise ValueError(f"--out is {given.out}: expected a name that ends in .safetensors")
    if given.out.exists():
        raise FileExistsError(f"{given.out} exists already, and nothing is written over: choose another name")
    if given.data.is_dir() and run_folder(given).resolve().is_relative_to(given.data.resolve()):
        raise ValueError(
            f"the run's folder {run_folder(given)} lies in the data, where its samples would be trained on: "
            "choose another place by --run or --out"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    data = store.load(given.data)
    for problem in data.problems:
        log.warning("%s", problem)
    return data


def run_folder(given: argparse.Namespace) -> Path:
    return getattr(given, "run", given.out.with_suffix(""))


def watch(run: Path, group: Processes) -> Watch:
    return Terminal(run / "samples") if group.first else Watch()


def said(data: DataSet, settings: Settings, run: Path) -> None:
    log.info("%d pictures, %d steps, %s", len(data.pictures), settings.plan.steps, run)


def described(settings: Settings, files: parts.Files, variant: str, data: DataSet) -> dict[str, Any]:
    """Of what a result was made, for its metadata."""
    return {
        "ss_base_model_version": f"z-image {variant.lower()}",
        "ss_sd_model_name": files.transformer.name,
        "ss_steps": settings.plan.steps,
        "ss_learning_rate": settings.plan.lr,
        "ss_num_train_images": len(data.pictures),
        "modelspec.trigger_phrase": settings.trigger,
        "zimage_data_hash": data.hash,
    }


def stop_at_signals(group: Processes) -> None:
    """One process stops as at Ctrl-C; several agree on it when their step is done."""

    def ask(number: int, frame: Any) -> None:
        group.asked = True

    handler = signal.default_int_handler if group.size == 1 else ask
    for name in ENDS if group.size == 1 else ("SIGINT", *ENDS):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if arguments and arguments[0] == "data":  # it has a parser of its own
        from .data.__main__ import main as look

        return look(arguments[1:])
    given = parser(__doc__).parse_args(arguments)
    group = distributed.join(given.device)
    if not group.first:
        logging.getLogger().setLevel(logging.ERROR)  # the first says it for all
    stop_at_signals(group)
    try:
        COMMANDS[given.command](given, group)
    except (WeightsError, SafetensorError, ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        if group.first:
            sys.stderr.write("stopped: the same command goes on from the last state\n")
        return 130
    finally:
        distributed.leave()
    log.info("%s", given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
