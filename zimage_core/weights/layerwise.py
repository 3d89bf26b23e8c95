"""A transformer read and run one tensor at a time: for weights larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import S3DiTConfig
from ..model.s3dit import S3DiT
from .keys import FUSED
from .layouts import PLAIN, dequantise
from .readers import Source, mapped_transformer, read_transformer

CAPTION = 32  # tokens


@dataclass(frozen=True)
class Layerwise:
    """A transformer whose tensors are computed when they are asked for.

    types: each tensor's name -> the type in which it is kept where it is not quantised. value(name, dtype):
    the tensor. stored_as: the formats of what is quantised. preferences: as in `Checkpoint`.
    """

    name: str
    config: S3DiTConfig
    types: Mapping[str, torch.dtype]
    bytes: int
    value: Callable[[str, torch.dtype], Tensor]
    stored_as: list[str] = field(default_factory=list)
    preferences: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {key: tensor.shape for key, tensor in S3DiT(self.config, device="meta").state_dict().items()}


def open_transformer(source: Source) -> Layerwise:
    """Of a file or folder in any dialect and format. Raises what `read_transformer` raises."""
    checked = read_transformer(source, values=False)
    tensors, formats = mapped_transformer(source)

    def one(key: str, dtype: torch.dtype) -> Tensor:
        layer = key.removesuffix(".weight")
        if layer in formats:
            return dequantise(tensors, layer, formats[layer], dtype)
        return tensors[key].to(dtype)

    def value(key: str, dtype: torch.dtype) -> Tensor:
        if key in tensors:
            found = one(key, dtype)
            return found.reshape(1, -1) if key.endswith("pad_token") else found
        return torch.cat([one(key.replace(".qkv.", f".{part}."), dtype) for part in FUSED])

    types = {}
    for key in S3DiT(checked.config, device="meta").state_dict():
        stored = checked.tensors[key].dtype
        plain = stored in PLAIN and key.removesuffix(".weight") not in checked.formats
        types[key] = stored if plain else torch.bfloat16
    size, stored_as = checked.bytes, checked.stored_as
    return Layerwise(checked.name, checked.config, types, size, value, stored_as, checked.preferences)


def velocities(
    weights: Layerwise,
    sigmas: Tensor,
    side: int,
    seed: int,
    device: torch.device | str = "cpu",
    loaded: Callable[[int], None] = lambda values: None,
) -> Tensor:
    """The velocity of one random latent and caption at each sigma, in float32: [sigmas, C, side, side].

    No more than one layer's weights are in memory. side: of the latent, in cells; loaded: is told how many
    values each layer has.
    """
    generator = torch.Generator().manual_seed(seed)
    config = weights.config
    latent = torch.randn(1, config.in_channels, side, side, generator=generator)
    caption = torch.randn(1, CAPTION, config.cap_feat_dim, generator=generator)
    model = S3DiT(config, device="meta", dtype=torch.float32).eval()
    for path, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            _load_for_each_call(module, f"{path}." if path else "", weights, device, loaded)
    inputs = (part.expand(len(sigmas), *part.shape[1:]).to(device) for part in (latent, caption))
    with torch.inference_mode():
        x, context = inputs
        return model(x, sigmas.to(device), context).cpu()


def _load_for_each_call(
    module: nn.Module,
    prefix: str,
    weights: Layerwise,
    device: torch.device | str,
    loaded: Callable[[int], None],
) -> None:
    empty = dict(module.named_parameters(recurse=False))

    def load(module: nn.Module, args: tuple) -> None:
        for name in empty:
            value = weights.value(prefix + name, torch.float32).to(device)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
            loaded(value.numel())

    def drop(module: nn.Module, args: tuple, out: Tensor) -> None:
        for name, parameter in empty.items():
            setattr(module, name, parameter)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
