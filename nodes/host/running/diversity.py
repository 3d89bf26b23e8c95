"""Variety between seeds: the run's first steps read a blurred copy of the prompt, blurred by their noise."""

from __future__ import annotations

import functools
import zlib
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....zimage_core.sampling.diversity import varied

KEY = "zimage_diversity"


def diversified(model: Any, strength: float, until: float) -> Any:
    """A clone of the host's MODEL whose runs start with varied captions; the MODEL itself at strength 0."""
    if strength == 0 or until == 0:
        return model
    clone = model.clone()
    wrap = functools.partial(_sample, strength, until)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrap)
    return clone


def _sample(strength: float, until: float, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    guider = executor.class_obj
    seeds = [zlib.crc32(sample.cpu().numpy().tobytes()) for sample in noise.float()]
    positive = guider.conds.get("positive") or []
    guider.conds["positive"] = [part for cond in positive for part in _parts(cond, strength, until, seeds)]
    return executor(noise, *args, **kwargs)


def _parts(cond: dict, strength: float, until: float, seeds: list[int]) -> list[dict]:
    """A conditioning of the host, varied before `until` and as it is after, within its own range of steps."""
    caption = cond.get("cross_attn")
    start, end = cond.get("start_percent", 0.0), cond.get("end_percent", 1.0)
    if caption is None or start >= until:
        return [cond]
    other = {**cond, "cross_attn": varied(caption, cond.get("attention_mask"), strength, seeds)}
    if end <= until:
        return [other]
    return [{**other, "end_percent": until}, {**cond, "start_percent": until}]
