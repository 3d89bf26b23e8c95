"""Our S3-DiT as the host's model: its attention, its operations, its wrappers, and memory of a run that goes
with the run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.conds
import comfy.model_base
from comfy.ldm.modules import attention as host_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...zimage_core.config import S3DiTConfig
from ...zimage_core.run_memo import RunMemo, TimestepMemo
from ...zimage_core.transformer import S3DiT

CONFIG_FIELDS = {field.name for field in dataclasses.fields(S3DiTConfig)}


class HostS3DiT(S3DiT):
    """The same mathematics; attention goes through the host, so that its backends and overrides apply."""

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, transformer_options: dict) -> Tensor:
        return host_attention.optimized_attention_masked(
            q, k, v, q.shape[1], mask, skip_reshape=True, transformer_options=transformer_options
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        num_tokens: Any = None,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},
        **kwargs: Any,
    ) -> Tensor:
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self.velocity, self, wrappers)
        # transformer_options by keyword: EasyCache and others read it from there
        return executor.execute(
            x,
            timesteps,
            context,
            num_tokens,
            attention_mask,
            transformer_options=transformer_options,
            **kwargs,
        )


def build(device: Any = None, dtype: Any = None, operations: Any = None, **unet_config: Any) -> HostS3DiT:
    """What BaseModel calls with its unet_config; fields that only the host reads are left out."""
    config = S3DiTConfig(**{k: v for k, v in unet_config.items() if k in CONFIG_FIELDS})
    return HostS3DiT(config, device=device, dtype=dtype, operations=operations)


class MemoCond(comfy.conds.CONDRegular):
    """Carries a conditioning's RunMemo to the model; conditionings that the host batches bring one each."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> MemoCond:
        return self._copy_with(self.cond)

    def can_concat(self, other: MemoCond) -> bool:
        return True

    def concat(self, others: list[MemoCond]) -> list[RunMemo]:
        return [memo for cond in (self, *others) for memo in cond.cond]

    def size(self) -> list[int]:
        return [1]


class Model(comfy.model_base.Lumina2):
    """The host's Lumina2 family with our network, so that LoRA maps and other nodes take it for what it
    is.
    """

    def __init__(self, model_config: Any, device: Any = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=build
        )
        self.memory_usage_factor_conds = ("ref_latents",)
        self.timestep_memo = TimestepMemo()

    def extra_conds(self, **kwargs: Any) -> dict:
        """Called once per conditioning and run. Hooks may change the weights in mid-run, so nothing is kept
        then.
        """
        out = super().extra_conds(**kwargs)
        if kwargs.get("hooks") is None:
            out["run_memo"] = MemoCond([RunMemo(self.timestep_memo)])
        return out
