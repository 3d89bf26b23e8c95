"""Runs of the host's sampler on small MODELs, and the same runs stepped without it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import comfy.context_windows as windows
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import seeds
from tests.host.inside import extension_module

(SEED,) = seeds(1)
SIZE = (8, 12)  # latent cells
Conditioning = list  # [[features [1, tokens, width], values], ...]


def from_file(path: Path, state: dict[str, Tensor]) -> ModelPatcher:
    """A MODEL of ours in float32, from a file of these weights; it is written when it is not there yet."""
    if not path.exists():
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return extension_module("nodes.host.loading.model").load_patcher(path, "fp32")


def prompts(width: int, *lengths: int) -> list[Conditioning]:
    """Random captions of so many tokens."""
    generator = torch.Generator().manual_seed(SEED)
    return [[[torch.randn(1, length, width, generator=generator), {}]] for length in lengths]


def noise_of(size: tuple[int, int] = SIZE, batch: int = 1, seed: int = SEED) -> Tensor:
    """The host's, for an empty latent."""
    return comfy.sample.prepare_noise(torch.zeros(batch, 16, *size), seed)


def sampled(
    patcher: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    *,
    steps: int = 2,
    cfg: float = 1.0,
    noise: Tensor | None = None,
    seed: int = SEED,
) -> Tensor:
    """What the host's euler makes of noise, which is that of an empty latent of SIZE unless given."""
    noise = noise_of(seed=seed) if noise is None else noise
    inputs = (steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise))
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=seed)


def stepped(
    patcher: ModelPatcher, velocity: Callable[[Tensor, Tensor], Tensor], steps: int, noise: Tensor
) -> Tensor:
    """The same with velocity(x, sigma [1]) in place of the MODEL, whose grid of sigmas it takes."""
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    x = noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * velocity(x, sigma[None])
    return patcher.model.process_latent_out(x)


def count_calls(patcher: ModelPatcher) -> Counter[int]:
    """Set a wrapper; returns how many calls of the network there are with so many conditions in a batch."""
    calls: Counter[int] = Counter()

    def wrapper(apply_model: Callable, args: dict) -> Tensor:
        calls[len(args["cond_or_uncond"])] += 1
        return apply_model(args["input"], args["timestep"], **args["c"])

    patcher.set_model_unet_function_wrapper(wrapper)
    return calls


def in_windows(patcher: ModelPatcher, length: int, dim: int = 3, **more: object) -> ModelPatcher:
    """A clone that samples parts of so many cells one by one, without overlap.

    dim: of [B, C, H, W]. more: settings of the host's handler, of which older hosts take fewer.
    """
    settings = {"context_schedule": windows.get_matching_context_schedule("standard_static")}
    settings |= {"fuse_method": windows.get_matching_fuse_method("flat"), "causal_window_fix": False, **more}
    known = inspect.signature(windows.IndexListContextHandler).parameters
    clone = patcher.clone()
    clone.model_options["context_handler"] = windows.IndexListContextHandler(
        context_length=length,
        context_overlap=0,
        dim=dim,
        **{name: value for name, value in settings.items() if name in known},
    )
    return clone
