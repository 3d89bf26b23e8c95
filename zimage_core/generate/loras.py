"""LoRAs of every kind that is read, beside the layers of a model, and taken out again without a trace."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import LoraFit
from ..weights.lora_keys import HADA, LOKR

Parts = Mapping[str, Tensor]
DOWN = ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # the first there is has as many rows as the rank
FIRST = ("lora_up", "hada_w1_a", "lokr_w1", "lokr_w1_a")  # what is multiplied by how strong it is
KEYS = {  # part of a change -> its name behind that of the layer, as `LoraFit.tensors` has it
    "lora_up": "lora_up.weight",
    "lora_down": "lora_down.weight",
    **{part: part for part in (*HADA, *LOKR, "alpha", "dora_scale", "diff", "diff_b")},
}
BASES, OURS = re.compile(r"(?:\.base)+\."), re.compile(r"\.(?:parts\.\w+|extra)$")  # names in `Changed`


def matrix(parts: Parts) -> Tensor:
    """dW of a LoRA, LoHa, LoKr or plain difference."""
    if "diff" in parts:
        return parts["diff"]
    if "lora_up" in parts:
        return parts["lora_up"] @ parts["lora_down"]
    if "hada_w1_a" in parts:
        first, second = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2))
        return first * second
    return torch.kron(*_kronecker(parts))


def product(parts: Parts, x: Tensor) -> Tensor:
    """dW x, without dW where it need not be made."""
    if "lora_up" in parts:
        return F.linear(F.linear(x, parts["lora_down"]), parts["lora_up"])
    if "hada_w1_a" in parts or "diff" in parts:
        return F.linear(x, matrix(parts))
    first, second = _kronecker(parts)
    split = x.unflatten(-1, (first.shape[1], second.shape[1]))
    return (first @ F.linear(split, second)).flatten(-2)


def _kronecker(parts: Parts) -> tuple[Tensor, Tensor]:
    first, second = (
        parts[f"lokr_w{n}"] if f"lokr_w{n}" in parts else parts[f"lokr_w{n}_a"] @ parts[f"lokr_w{n}_b"]
        for n in (1, 2)
    )
    return first, second


class Changed(nn.Module):
    """A layer with W + s dW for W in some rows, or of a DoRA with W + s (m (W + dW) / |W + dW| - W).

    parts: of dW, with alpha in them; rows: the first one and how many; lengths: m, a column or a row.
    """

    def __init__(
        self, base: nn.Module, parts: Parts, strength: float, rows: tuple[int, int], lengths: Tensor | None
    ) -> None:
        super().__init__()
        self.base, self.strength, self.place = base, strength, rows
        self.in_features, self.out_features = base.in_features, base.out_features
        like = next(base.parameters())
        known = {name: part.to(like.device).float() for name, part in parts.items()}
        self.by_row = lengths is not None and lengths.shape[1] == 1
        self.extra = None  # m / |W + dW| - 1
        if lengths is not None:
            changed = self._mine(whole_weight(base), 0) + matrix(known)
            norm = changed.norm(dim=int(self.by_row), keepdim=True)
            extra = lengths.to(norm) / norm.clamp_min(torch.finfo(torch.float32).tiny) - 1
            self.extra = _frozen(extra.flatten().to(like.dtype))
        self.parts = nn.ParameterDict({name: _frozen(part.to(like.dtype)) for name, part in known.items()})

    def _mine(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.narrow(dim, *self.place)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        parts = {name: part.to(x) for name, part in self.parts.items()}
        if self.extra is None:
            change = product(parts, x)
        elif self.by_row:
            extra = self.extra.to(x)
            change = extra * self._mine(self._without_bias(out), -1) + (1 + extra) * product(parts, x)
        else:
            more = x * self.extra.to(x)
            change = self._mine(self._without_bias(self.base(more)), -1) + product(parts, x + more)
        self._mine(out, -1).add_(change, alpha=self.strength)
        return out

    def _without_bias(self, out: Tensor) -> Tensor:
        base = self.base
        while isinstance(base, Changed):
            base = base.base
        return out if base.bias is None else out - base.bias.to(out)


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def whole_weight(layer: nn.Module) -> Tensor:
    """What a layer multiplies by, with the changes in it, in float32."""
    if not isinstance(layer, Changed):
        return layer.weight.float()
    weight = whole_weight(layer.base).clone()
    mine = weight.narrow(0, *layer.place)
    change = matrix({name: part.float() for name, part in layer.parts.items()})
    if layer.extra is not None:
        extra = layer.extra.float()
        change = change + (extra[:, None] if layer.by_row else extra) * (mine + change)
    mine += layer.strength * change
    return weight


class Loras:
    """What was changed in a network, to be taken out again."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.vectors: dict[nn.Parameter, Tensor] = {}  # biases and norms as they were

    def own(self) -> dict[str, nn.Parameter]:
        """The network's parameters under the names that they have without changes."""
        named = self.network.named_parameters()
        return {BASES.sub(".", name): value for name, value in named if not OURS.search(name)}

    def put(self, fit: LoraFit, strength: float) -> None:
        """Upon what is there already."""
        own = self.own()
        for name, target in fit.targets.items():
            key, rows = (target, None) if isinstance(target, str) else (target[0], target[1][1:])
            found = ((part, fit.tensors.get(f"{name}.{key}")) for part, key in KEYS.items())
            parts = {part: value for part, value in found if value is not None}
            if (bias := parts.pop("diff_b", None)) is not None:
                self._add(own[f"{key.removesuffix('.weight')}.bias"], bias, strength)
            if "diff" in parts and parts["diff"].ndim == 1:
                self._add(own[key], parts.pop("diff"), strength)
            if parts:
                self._beside(key.removesuffix(".weight"), parts, strength, rows)

    def _add(self, vector: nn.Parameter, change: Tensor, strength: float) -> None:
        self.vectors.setdefault(vector, vector.data)
        vector.data = (vector.float() + strength * change.to(vector.device).float()).to(vector.dtype)

    def _beside(self, path: str, parts: dict, strength: float, rows: tuple[int, int] | None) -> None:
        alpha, lengths = parts.pop("alpha", None), parts.pop("dora_scale", None)
        down = next((parts[part] for part in DOWN if part in parts), None)
        if alpha is not None and down is not None:  # a whole matrix is as strong as it is
            first = next(part for part in FIRST if part in parts)
            parts[first] = parts[first].float() * (float(alpha) / len(down))
        base = self.network.get_submodule(path)
        changed = Changed(base, parts, strength, rows or (0, base.out_features), lengths)
        self.network.set_submodule(path, changed)

    def clear(self) -> None:
        """The network is as it was."""
        for vector, value in self.vectors.items():
            vector.data = value
        self.vectors = {}
        for path, layer in [*self.network.named_modules()]:
            if isinstance(layer, Changed) and not path.endswith(".base"):
                while isinstance(layer, Changed):
                    layer = layer.base
                self.network.set_submodule(path, layer)
