"""A model in parts (FSDP2): a process holds its part of each matrix, and blocks come together as they run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..model.modulation import before, behind
from .streaming import RUN_STACKS, STEP_STACKS


def shard(
    model: nn.Module, device_type: str, computes: torch.dtype, group: Any = None, trains: bool = True
) -> None:
    """Each process of a group keeps its part of an S3DiT's parameters, which are of one type.

    device_type: where the parts come, such as "cuda": of each process its own card. computes: the type of
    the products; gradients, where there are any, are added up in float32. group: None: all processes.
    trains: without it norms stay whole, where torch can do that, so that results are the same to the bit.
    Raises RuntimeError where torch is too old.
    """
    try:
        from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError as error:
        raise RuntimeError(
            f"torch {torch.__version__} cannot shard a model ({error}): install 2.6 or newer, or work in one "
            "process"
        ) from error

    size = torch.distributed.get_world_size(group)
    mesh = (
        init_device_mesh(device_type, (size,)) if group is None else DeviceMesh.from_group(group, device_type)
    )
    given = {
        "mesh": mesh,
        # rope tables among the inputs stay in float32
        "mp_policy": MixedPrecisionPolicy(computes, torch.float32, cast_forward_inputs=False),
        "reshard_after_forward": True,  # of the model as of its blocks, as a sample is the last forward
    }
    blocks = [b for stack in (*STEP_STACKS, *RUN_STACKS) for b in getattr(model, stack, ())]
    modulated = [block.adaLN_modulation for block in blocks if hasattr(block, "adaLN_modulation")]
    norms = [norm for block in blocks for norm in (*before(block), *behind(block))]
    if not trains and "ignored_params" in inspect.signature(fully_shard).parameters:
        given["ignored_params"] = {p for norm in norms for p in norm.parameters()}
        for p in given["ignored_params"]:
            p.data = p.data.to(device_type)
    else:
        for norm in norms:
            norm.register_forward_pre_hook(_called)
    fully_shard(modulated, **given)  # all of them run before the first block
    for block in blocks:
        fully_shard(block, **given)
    fully_shard(model, **given)


def _called(norm: nn.Module, args: tuple) -> None:
    """A norm with a hook is called within its block; weights that are sharded cannot be read before."""
