"""The sigma of each prediction as a number: known before a run's first step, so that none waits for the card.

Only for samplers that ask for one prediction a step, at the sigmas that the run was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy.k_diffusion import sampling
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

KEY = "zimage_levels"  # among the transformer options of a run
# Samplers that ask for one prediction a step and add no noise.
PLAIN = ("euler", "res_multistep", "dpmpp_2m", "ipndm", "ipndm_v", "deis", "lms")
PLAIN_FUNCTIONS = {getattr(sampling, f"sample_{name}", None) for name in PLAIN} - {None}


def predicts_once_a_step(sampler: Any) -> bool:
    churns = getattr(sampler, "extra_options", {}).get("s_churn")
    return getattr(sampler, "sampler_function", None) in PLAIN_FUNCTIONS and not churns


class Levels:
    """sigma: of the prediction that is being made; None before the first."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigma: float | None = None
        self._next = iter(sigmas)

    def advance(self) -> None:
        self.sigma = next(self._next)


def with_levels(model: Any) -> None:
    """From now on the runs of this MODEL have a `Levels` where they can. A second time does nothing."""
    if not model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _run)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _predict)


def sigma_now(transformer_options: dict) -> float | None:
    levels = transformer_options.get(KEY)
    return None if levels is None else levels.sigma


def _run(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *args: Any, **kwargs: Any) -> Tensor:
    options = extra_args["model_options"]
    # what stands around ours may leave predictions out, or ask for more
    outermost = get_all_wrappers(WrappersMP.PREDICT_NOISE, guider.model_options, is_model_options=True)[0]
    if outermost is _predict and predicts_once_a_step(executor.class_obj):
        more = {**options.get("transformer_options", {}), KEY: Levels(sigmas.tolist())}
        extra_args = {**extra_args, "model_options": {**options, "transformer_options": more}}
    return executor(guider, sigmas, extra_args, *args, **kwargs)


def _predict(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict = {}, *args: Any, **kwargs: Any
) -> Tensor:
    levels = model_options.get("transformer_options", {}).get(KEY)
    if levels is not None:
        levels.advance()
    return executor(x, timestep, model_options, *args, **kwargs)
