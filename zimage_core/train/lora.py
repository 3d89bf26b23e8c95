"""LoRA and LoKr beside layers that do not train: put in, written for others, read again, merged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..model.s3dit import S3DiT
from ..weights.errors import WeightsError
from ..weights.file_writers import new_file
from ..weights.keys import FUSED, TRANSFORMER, rename
from ..weights.lora import LoraFit
from ..weights.lora_metadata import ADAPTER

ATTENTION = ("attention.qkv", "attention.out")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
TARGETS = {  # which layers of each block
    "attention": ATTENTION,
    "attention and feed-forward": ATTENTION + FEED_FORWARD,
    "with modulation": ATTENTION + FEED_FORWARD + ("adaLN_modulation.0",),
}
STACKS = ("layers",)  # refiners are named where they shall train


@dataclass(frozen=True)
class Settings:
    """What is put beside which layers.

    alpha: a change counts alpha / rank times; None: once. factor: of LoKr, the size of its small matrix.
    Raises ValueError for what cannot be.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str = "attention and feed-forward"
    stacks: tuple[str, ...] = STACKS
    factor: int = 6

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("targets", self.targets, TARGETS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}: expected a number above 0")
        if self.rank < 1 or not 0 <= self.dropout < 1 or self.factor < 1:
            raise ValueError(
                f"rank {self.rank}, dropout {self.dropout} and factor {self.factor}: expected 1 or more, "
                "0 to below 1, and 1 or more"
            )

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Change(nn.Module):
    """x -> base(x) + scale * change(x). What is trained is float32, and computed in the type of x."""

    def __init__(self, base: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.base, self.scale, self.dropout, self.on = base, settings.scale, settings.dropout, True

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if not self.on:
            return out
        change = self.change(F.dropout(x, self.dropout) if self.dropout and torch.is_grad_enabled() else x)
        return out + (change if self.scale == 1 else change * self.scale)

    def change(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def parts(self) -> dict[str, Tensor]:
        """{name as ComfyUI's adapters have it: tensor}, of a change that counts `scale` times."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """What is added to the weight, in float32."""
        raise NotImplementedError

    @property
    def alpha(self) -> float:
        raise NotImplementedError


class Lora(Change):
    """B A x. A starts random and B at zero: training starts from the base's own pictures."""

    def __init__(self, base: nn.Module, settings: Settings) -> None:
        super().__init__(base, settings)
        self.rank = settings.rank
        self.lora_A = nn.Linear(base.in_features, self.rank, bias=False)
        self.lora_B = nn.Linear(self.rank, base.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=base.in_features**-0.5)
        nn.init.zeros_(self.lora_B.weight)

    def change(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A.weight.to(x.dtype)), self.lora_B.weight.to(x.dtype))

    def parts(self) -> dict[str, Tensor]:
        return {"lora_down.weight": self.lora_A.weight, "lora_up.weight": self.lora_B.weight}

    def matrix(self) -> Tensor:
        return self.scale * self.lora_B.weight @ self.lora_A.weight

    @property
    def alpha(self) -> float:
        return self.scale * self.rank


class Lokr(Change):
    """(w1 x w2) x, a Kronecker product: few values that reach all rows. w2 is of low rank where that is less.

    q, k and v of a fused layer have rows of w1 each, so that a file can hold them apart.
    """

    def __init__(self, base: nn.Module, settings: Settings) -> None:
        super().__init__(base, settings)
        outs, ins, self.rank = base.out_features, base.in_features, settings.rank
        rows, columns = largest_divisor(outs, settings.factor), largest_divisor(ins, settings.factor)
        tall, wide = outs // rows, ins // columns
        self.lokr_w1 = nn.Parameter(torch.randn(rows, columns) * (rows * columns) ** -0.25)
        self.low = self.rank * (tall + wide) < tall * wide
        if self.low:
            self.lokr_w2_a = nn.Parameter(torch.zeros(tall, self.rank))
            self.lokr_w2_b = nn.Parameter(torch.randn(self.rank, wide) * wide**-0.5)
        else:
            self.lokr_w2 = nn.Parameter(torch.zeros(tall, wide))
            self.scale = 1.0  # a file of two whole matrices has no rank, and its alpha is not read

    def second(self) -> Tensor:
        return self.lokr_w2_a @ self.lokr_w2_b if self.low else self.lokr_w2

    def change(self, x: Tensor) -> Tensor:
        w1, w2 = self.lokr_w1.to(x.dtype), self.second().to(x.dtype)
        split = x.unflatten(-1, (w1.shape[1], w2.shape[1]))
        return (w1 @ F.linear(split, w2)).flatten(-2)

    def parts(self) -> dict[str, Tensor]:
        return dict(self.named_parameters(recurse=False))

    def matrix(self) -> Tensor:
        return self.scale * torch.kron(self.lokr_w1, self.second())

    @property
    def alpha(self) -> float:
        return self.scale * self.rank


KINDS: dict[str, type[Change]] = {"lora": Lora, "lokr": Lokr}


def largest_divisor(size: int, most: int) -> int:
    return next(d for d in range(min(most, size), 0, -1) if size % d == 0)


def changes_of(model: nn.Module) -> dict[str, Change]:
    """{path of the layer: what is beside it}."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Change)}


def inject(model: S3DiT, settings: Settings) -> dict[str, Change]:
    """Freeze a model and put a change beside each layer of the targets. Raises ValueError for none."""
    model.requires_grad_(False)
    found: dict[str, Change] = {}
    for path in _paths(model, settings):
        base = model.get_submodule(path)
        change = KINDS[settings.kind](base, settings)
        for part in change.parts().values():  # the base stays where it is, as streamed weights must
            part.data = part.data.to(model.x_pad_token.device)
        model.set_submodule(path, change)
        found[path] = change
    if not found:
        raise ValueError(f"this model has no layers {settings.targets} in {', '.join(settings.stacks)}")
    return found


def _paths(model: S3DiT, settings: Settings) -> Iterator[str]:
    for stack in settings.stacks:
        for index, block in enumerate(getattr(model, stack, ())):
            layers = {path for path, _ in block.named_modules()}
            yield from (f"{stack}.{index}.{path}" for path in TARGETS[settings.targets] if path in layers)


def values_of(model: S3DiT, settings: Settings) -> int:
    """How many values would train."""
    with torch.device("meta"):
        made = [KINDS[settings.kind](model.get_submodule(p), settings) for p in _paths(model, settings)]
    return sum(part.numel() for change in made for part in change.parts().values())


def tensors(
    changes: Mapping[str, Change], names: str = "comfyui", dtype: torch.dtype = torch.bfloat16
) -> dict:
    """What a file holds. names: a key of WRITTEN."""
    out: dict[str, Tensor] = {}
    for path, change in changes.items():
        for layer, parts in WRITTEN[names](path, change):
            for part, value in parts.items():
                out[f"{layer}.{part}"] = value.detach().to("cpu", dtype, copy=True).contiguous()
            if names != "diffusers":
                out[f"{layer}.alpha"] = torch.tensor(float(change.alpha))
    return out


def _whole(path: str, change: Change) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield f"diffusion_model.{path}", change.parts()


def _apart(path: str, change: Change) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Under the names of the official code and diffusers, where q, k and v are three layers."""
    if not path.endswith("attention.qkv"):
        yield rename(path, TRANSFORMER, reverse=True), change.parts()
        return
    rows = change.base.out_features
    queries = change.base.in_features
    sizes = (queries, (rows - queries) // 2, (rows - queries) // 2)
    for name, parts in zip(FUSED, _rows(change, sizes), strict=True):
        yield f"{path.removesuffix('qkv')}{name}", parts


def _rows(change: Change, sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    parts = change.parts()
    first = "lora_up.weight" if "lora_up.weight" in parts else "lokr_w1"
    height = change.base.out_features // len(parts[first])  # rows of the weight to one of this matrix
    if any(size % height for size in sizes):
        raise ValueError(
            f"a LoKr with factor {len(parts['lokr_w1'])} mixes q, k and v: choose ComfyUI's names, "
            "or a factor that is a multiple of 3"
        )
    cut = parts[first].split([size // height for size in sizes])
    return [{**parts, first: rows} for rows in cut]


def _diffusers(path: str, change: Change) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(change, Lora):
        raise ValueError(LORA_ALONE)
    for layer, parts in _apart(path, change):
        up = parts["lora_up.weight"] * change.scale  # alpha is in it: few readers look into the metadata
        yield f"transformer.{layer}", {PEFT[p]: v for p, v in {**parts, "lora_up.weight": up}.items()}


def _kohya(path: str, change: Change) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for layer, parts in _apart(path, change):
        yield "lora_unet_" + layer.replace(".", "_"), parts


PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
LORA_ALONE = "diffusers reads LoRA alone: choose ComfyUI's or kohya's names for LoKr"
WRITTEN = {"comfyui": _whole, "diffusers": _diffusers, "kohya": _kohya}


def write(
    path: Path,
    changes: Mapping[str, Change],
    metadata: Mapping[str, str],
    names: str = "comfyui",
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a LoRA file. Raises WeightsError where one of that name exists."""
    if names not in WRITTEN:
        raise ValueError(f"names is {names!r}, expected one of {', '.join(WRITTEN)}")
    found = tensors(changes, names, dtype)
    if names == "diffusers":
        first = next(iter(changes.values()))
        layers = sorted({name.removeprefix("transformer.").rpartition(".lora_")[0] for name in found})
        settings = {"r": first.rank, "lora_alpha": first.rank, "target_modules": layers}
        metadata = {**metadata, ADAPTER: json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    with new_file(path) as partial:
        save_file(found, partial, {"format": "pt", **metadata})


def described(settings: Settings, **facts: str | int | float) -> dict[str, str]:
    """Metadata that trainers write and programs for LoRAs read, beside facts of one's own."""
    alpha = settings.scale * settings.rank
    common = {
        "ss_network_module": "zimage_core.train.lora",
        "ss_network_dim": settings.rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"kind": settings.kind, "targets": settings.targets}),
        "modelspec.architecture": "z-image/lora",
    }
    return {name: str(value) for name, value in {**common, **facts}.items() if value != ""}


def load(model: S3DiT, fit: LoraFit) -> None:
    """Continue from a file: its changes become those that train.

    Raises WeightsError where it has none for a layer, is of another kind, or changes other layers.
    """
    changes = changes_of(model)
    for path, change in changes.items():
        wanted = change.parts()
        scale = 1.0
        if (alpha := fit.tensors.get(f"{path}.alpha")) is not None:
            scale = float(alpha) / change.rank / change.scale
        for part, into in wanted.items():
            value = fit.tensors.get(f"{path}.{part}")
            if value is None or value.shape != into.shape:
                found = "nothing" if value is None else f"{tuple(value.shape)}"
                raise WeightsError(
                    f"the LoRA to go on from has {found} for {path}.{part}, and this run trains "
                    f"{tuple(into.shape)}: choose its kind, rank and targets, or start a new one"
                )
            last = part in ("lora_up.weight", "lokr_w1")
            with torch.no_grad():
                into.copy_(value.float() * scale if last else value)
    if missed := [name for name in fit.targets if name not in changes]:
        raise WeightsError(
            f"the LoRA to go on from also changes {missed[0]}, which this run does not train: choose "
            "its targets"
        )


class Given(nn.Module):
    """x -> base(x) + B A x with a LoRA that does not train, such as the training adapter of Turbo."""

    def __init__(self, base: nn.Module, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.base, self.on = base, True
        self.in_features, self.out_features = base.in_features, base.out_features
        self.up, self.down = (nn.Parameter(t, requires_grad=False) for t in (up, down))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + F.linear(F.linear(x, self.down.to(x)), self.up.to(x)) if self.on else out


def put_under(model: S3DiT, fit: LoraFit) -> list[Given]:
    """A LoRA file under what trains, while it trains. Raises WeightsError for changes of another kind."""
    given = []
    for name, target in fit.targets.items():
        parts = {part: fit.tensors.get(f"{name}.{part}.weight") for part in ("lora_up", "lora_down")}
        if not isinstance(target, str) or None in parts.values():
            raise WeightsError(f"the adapter changes {name} by something else than a LoRA of the whole layer")
        up, down = parts["lora_up"].float(), parts["lora_down"].float()
        alpha = fit.tensors.get(f"{name}.alpha")
        up = up if alpha is None else up * (float(alpha) / len(down))
        path = target.removesuffix(".weight")
        base = model.get_submodule(path)
        where = model.x_pad_token.device
        layer = Given(base, up.to(where, torch.bfloat16), down.to(where, torch.bfloat16))
        model.set_submodule(path, layer)
        given.append(layer)
    return given


def merged(weights: Mapping[str, Tensor], changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Weights of a transformer with the changes in them; sums in float32, types as they were."""
    out = dict(weights)
    for path, change in changes.items():
        name = f"{path}.weight"
        with torch.no_grad():
            out[name] = (out[name].float() + change.matrix().to(out[name].device)).to(out[name].dtype)
    return out
