"""DoRA as it is trained: lengths of the changed weight's rows or columns, by the host's way of patching."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor


class Dora(WeightAdapterBase):
    """W + s (m (W + dW) / |W + dW| - W). ComfyUI's own takes |W| for rows (arXiv:2402.09353, eq. 5).

    weights: (the adapter of dW, m as a column or a row).
    """

    name = "dora"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, Tensor]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any, function: Any,
        intermediate_dtype: torch.dtype = torch.float32, original_weights: Any = None,
    ) -> Tensor:  # fmt: skip
        adapter, lengths = self.weights
        old = weight.float()
        changed = adapter.calculate_weight(
            old.clone(), key, 1.0, 1.0, None, function, torch.float32, original_weights
        )
        lengths = management.cast_to_device(lengths, weight.device, torch.float32)
        axis = 1 if lengths.shape[1] == 1 else 0
        norm = changed.norm(dim=axis, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        weight += (strength * (changed * (lengths / norm) - old)).to(weight.dtype)
        return weight
