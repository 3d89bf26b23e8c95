"""The step cache in the host: around a guider's whole prediction, whatever conditionings make it.

Regions, areas, control, references and context windows are within the prediction, so nothing of one
conditioning can meet another's. What is kept lies in the options of one call of the sampler and goes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_sampling
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....zimage_core.acceleration.step_cache import StepCache, fit
from .control import SAME_SIGMA
from .levels import PLAIN, predicts_once_a_step, with_levels
from .s3dit import CONTROLS

KEY = "zimage_step_cache"
OTHER_CACHES = "easycache"  # where the host's EasyCache and LazyCache keep theirs
STILL_WINDOWS = ("standard_static", "batched")  # context windows that are the same in every step


def with_step_cache(model: Any) -> Any:
    """A clone of the host's MODEL whose runs of 16 steps and more compute six steps of ten.

    Each run says under its node how many it computed, or why all of them.
    """
    clone = model.clone()
    with_levels(clone)  # which has to see the steps that are left out too
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE):  # the MODEL may have it already
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _run)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _predict)
    return clone


def _run(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *args: Any, **kwargs: Any) -> Tensor:
    from ..page.run_notes import tell  # here: models are also loaded where there is no page

    levels = sigmas.tolist()  # before the first step, so that none waits for it
    options = extra_args["model_options"]
    problem = next(_problems(executor.class_obj, guider, levels, options), None)
    if problem:
        tell([f"Step cache: off, all steps are computed: {problem}."])
        return executor(guider, sigmas, extra_args, *args, **kwargs)
    cache = StepCache(levels, [tuple(_in_force(guider, options, sigma)) for sigma in levels[:-1]])
    tell([cache.report])
    if len(cache.computed) < len(levels) - 1:
        extra_args = {**extra_args, "model_options": {**options, KEY: (cache, iter(levels))}}
    return executor(guider, sigmas, extra_args, *args, **kwargs)


def _predict(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict = {}, *args: Any, **kwargs: Any
) -> Tensor:
    """x: [B, C, H, W] -> the denoised latent, which is x less sigma times the velocity."""
    if KEY not in model_options:
        return executor(x, timestep, model_options, *args, **kwargs)
    cache, levels = model_options[KEY]
    sigma = next(levels)  # that of timestep, which lies on the device

    def velocity() -> Tensor:
        return (x - executor(x, timestep, model_options, *args, **kwargs)) / sigma

    return x - sigma * cache.velocity(velocity)


def _problems(sampler: Any, guider: Any, levels: list[float], options: dict) -> Iterator[str]:
    """Why steps of this run cannot be left out."""
    if not predicts_once_a_step(sampler):
        function = getattr(sampler, "sampler_function", None)
        name = getattr(function or type(sampler), "__name__", "").removeprefix("sample_")
        yield f"{name} adds noise or predicts more than once a step (use {', '.join(PLAIN)})"
    if not isinstance(guider.inner_model.model_sampling, comfy.model_sampling.CONST):
        yield "the MODEL's sampling is not that of a flow"
    if not fit(levels):
        yield "its sigmas do not fall from step to step between 1 and 0"
    if OTHER_CACHES in options.get("transformer_options", {}):
        yield "EasyCache or LazyCache is on this MODEL already"
    if any(cond.get("hooks") is not None for cond in _conds(guider)):
        yield "a conditioning has hooks, which can change the weights in mid-run"
    windows = options.get("context_handler")
    if windows is not None and getattr(windows.context_schedule, "name", "") not in STILL_WINDOWS:
        yield "its context windows move from step to step"


def _in_force(guider: Any, options: dict, sigma: float) -> Iterator[bool]:
    """Of each conditioning, each control and guidance, in an order of their own: whether they count there."""
    for cond in _conds(guider):
        yield cond.get("timestep_end", 0.0) <= sigma <= cond.get("timestep_start", sigma)
        control = cond.get("control")
        while control is not None:
            start, end = control.timestep_range or (sigma, sigma)
            yield end <= sigma <= start
            control = control.previous_controlnet
    for patch in options.get("transformer_options", {}).get("patches", {}).get(CONTROLS, ()):
        start, end = patch.sigmas
        yield end < sigma - SAME_SIGMA <= start
    if guidance := getattr(guider, "guidance", None):
        yield guidance.active(sigma)


def _conds(guider: Any) -> Iterator[dict]:
    for conds in guider.conds.values():
        yield from conds or ()
