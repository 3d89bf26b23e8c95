"""Conditionings whose captions differ in length, in one call of the network without padding between them."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence

from comfy.patcher_extension import WrappersMP

from ....zimage_core.conditions.packed import Packed, parts_of
from ....zimage_core.model.memo import RunMemo
from ....zimage_core.model.s3dit import Condition, Prompt, S3DiT

CONTROLS = "zimage_control"  # our control networks among the patches of a MODEL
COMPILED = "zimage_compiled"  # the hook that compiles blocks, among the options of a MODEL
OVERRIDE = "optimized_attention_override"  # among the options, where nodes choose another attention
ON_THE_WAY = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)  # wrappers between a conditioning and us


def packs(options: dict, more_wrappers: dict = {}) -> bool:
    """Whether no other node looks into the network or stands around it, by transformer_options.

    What does expects one sequence a row, and would find those of all conditionings in one.
    more_wrappers: those of a MODEL, which are among the options only while it runs.
    """
    patches = options.get("patches", {})
    foreign = [
        *(each.get(kind) for each in (options.get("wrappers", {}), more_wrappers) for kind in ON_THE_WAY),
        *(each for name, each in patches.items() if name != CONTROLS),
        *options.get("patches_replace", {}).values(),
        options.get(OVERRIDE),
        options.get(COMPILED),  # would be compiled anew for each two lengths
    ]
    return not any(foreign)


def in_one_pass(prompt: Prompt, keys: Sequence[Hashable], memo: RunMemo, model: S3DiT) -> Condition:
    """The prompt of all conditionings of a batch, packed where they pad to different lengths.

    keys: those of each conditioning's own prompt in the memo of the run.
    """
    if len({model.padded(length) for length in prompt.captions.lengths}) == 1:
        return prompt
    own = zip(keys, parts_of(prompt, len(keys)), strict=True)
    return Packed([memo.once(key, lambda part=part: part) for key, part in own], memo=weakref.ref(memo))
