"""The parts of a model in files, as a run needs them: the transformer frozen, encoders for the caches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ..acceleration.small_card import FOR_LIBRARIES, SmallCard, resident_blocks, said, size_of
from ..acceleration.streaming import RUN_STACKS, STEP_STACKS, Key, Streaming, blocks_of, bytes_of, still
from ..model.arithmetic import compute_dtype
from ..model.s3dit import S3DiT
from ..weights import load_transformer, read_transformer
from ..weights.checkpoint import Checkpoint
from .cache import digest
from .encoders import Encoders
from .frozen import Stored, from_checkpoint
from .run import Parts

# What a step takes in bytes, measured by tests, which hold these from both sides.
PER_TOKEN = 42  # of one block on its way back: times width and the size of its type
PER_TRAINED = 20  # a float32 value: itself, its gradient, AdamW's two moments, its average
COUNTED = 64  # values of a tensor that say which it is
PER_MADE = 10  # a value of the largest matrix that is stored in fewer bits, while it is made again


@dataclass(frozen=True)
class Files:
    """Where the parts of a model are."""

    transformer: Path
    text_encoder: Path
    autoencoder: Path
    tokenizer: Path


LAYOUTS = (  # names of the parts in a model's folder: of diffusers, of this project's own models
    ("transformer", "text_encoder", "vae", "tokenizer"),
    ("transformer.safetensors", "text_encoder.safetensors", "autoencoder.safetensors", "tokenizer"),
)


def files_in(folder: Path) -> Files:
    """Of a model's folder. Raises FileNotFoundError where it is none."""
    for names in LAYOUTS:
        if all((folder / name).exists() for name in names):
            return Files(*(folder / name for name in names))
    raise FileNotFoundError(
        f"{folder} is no model's folder: expected {', '.join(LAYOUTS[0])} or {', '.join(LAYOUTS[1])} in it"
    )


def name_of(path: Path) -> str:
    """Of a file or folder of weights, for caches: another one of that name differs in size or time."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in found if f.is_file()]
    return digest(json.dumps(facts))


def from_files(
    files: Files, device: torch.device | str = "cpu", whole: bool = False, vram: str | int | None = None
) -> tuple[Parts, str]:
    """The parts, and which variant the transformer is: Turbo, Base or omni.

    whole: the transformer's own layers, to be trained themselves, in bfloat16 or as they compute here.
    vram: what may be used of the device; the transformer then stays in the computer's memory, for `stream`.
    The transformer comes to the device by `place`, when the encoders leave it.
    """
    device = torch.device(device)
    checkpoint = read_transformer(files.transformer)
    if whole:
        dtype = compute_dtype(torch.bfloat16, device)
        model = load_transformer(files.transformer, "cpu", dtype)
    else:
        model = from_checkpoint(checkpoint, "cpu", compute_dtype(checkpoint.dtype, device))
    encoders = Encoders(files, device, None if vram is None else SmallCard(vram, device))

    def place() -> None:
        encoders.leave()
        if vram is None:
            model.to(device)

    names = name_of(files.autoencoder), name_of(files.text_encoder)
    made = Parts(model, encoders.encode, encoders.features, encoders.decode, names, base=base_of(checkpoint))
    made.place = place
    return made, checkpoint.variant


def base_of(checkpoint: Checkpoint) -> str:
    """A name of the weights, by some values of each tensor, wherever the file lies."""
    some = {name: value.reshape(-1)[:COUNTED].contiguous() for name, value in checkpoint.tensors.items()}
    raw = {name: value.view(torch.uint8).numpy().tobytes() for name, value in some.items()}
    return digest(*(part for name in sorted(raw) for part in (name, raw[name])))


def bytes_of_step(model: S3DiT, tokens: int, trains: int) -> int:
    """What a step with checkpoints takes of a card beside the model.

    tokens: of all samples, captions included; trains: how many values do.
    """
    blocks = [b for stack in (*STEP_STACKS, *RUN_STACKS) for b in getattr(model, stack, ())]
    inputs = PER_TOKEN + len(blocks)  # the input of each block is kept
    stored = [layer for layer in model.modules() if isinstance(layer, Stored) and layer.spec]
    made = max((layer.out_features * layer.in_features for layer in stored), default=0)
    like = model.x_pad_token
    return inputs * tokens * like.shape[-1] * like.element_size() + PER_TRAINED * trains + PER_MADE * made


def streamed(
    model: S3DiT, vram: str | int, device: torch.device | str = "cuda", activations: int = 0
) -> Streaming:
    """Weights come to the device block by block, as far as they do not fit into so much of it.

    The model is in the computer's memory; what is not streamed is moved. activations: bytes for the rest,
    see `bytes_of_step`. Raises ValueError where nothing is left for two blocks.
    """
    device = torch.device(device)
    resident = _resident(model, vram, device, activations)
    blocks = blocks_of(model, (*STEP_STACKS, *RUN_STACKS), still)
    away = {id(weight) for key in blocks.keys() - resident for weight in blocks[key]}
    for weight in model.parameters():
        if id(weight) not in away:
            weight.data = weight.data.to(device)
    return Streaming(model, device, resident, training=True)


def stream(made: Parts, vram: str | int, device: torch.device | str = "cuda", activations: int = 0) -> None:
    """As `streamed`, from `place` on: until then the device is the encoders'. Raises ValueError at once."""
    device, encoders_leave = torch.device(device), made.place
    _resident(made.model, vram, device, activations)

    def place() -> None:
        encoders_leave()
        made.streaming = streamed(made.model, vram, device, activations)

    made.place = place


def _resident(model: S3DiT, vram: str | int, device: torch.device, activations: int) -> set[Key]:
    """Which blocks of a step stay on the device."""
    steps, runs = (blocks_of(model, stacks, still) for stacks in (STEP_STACKS, RUN_STACKS))
    sizes = {key: bytes_of(weights) for key, weights in (steps | runs).items()}
    rest = bytes_of(list(model.parameters())) - sum(sizes.values()) + activations
    rest += FOR_LIBRARIES if device.type == "cuda" else 0
    room = size_of(vram) - rest
    if 2 * max(sizes.values()) > room:
        raise ValueError(
            f"a step needs {said(rest + 2 * max(sizes.values()))} of the card at this resolution, batch and "
            f"rank, and {vram} are given: lower one of them, or give it more"
        )
    return resident_blocks({key: sizes[key] for key in steps}, room)
