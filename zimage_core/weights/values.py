"""NaN, infinity and holes in weights: what is small is looked at when a file is read, the rest on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .errors import WeightsError, some

CHUNK = 2**24  # values at a time, so that a large matrix is not held in float32 as a whole


def is_small(key: str, value: Tensor) -> bool:
    """Norms, biases, pad tokens and single values; scales have a check of their own."""
    return not value.is_meta and (value.ndim <= 1 or key.endswith("pad_token"))


def finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite, in any floating type."""
    return all(bool(torch.isfinite(part.float()).all()) for part in value.flatten().split(CHUNK))


def not_finite(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of the tensors that hold NaN or infinity; each is read as a whole."""
    return (key for key, value in tensors.items() if value.is_floating_point() and not finite(value))


def check_small(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError when a small tensor holds NaN or infinity, or a norm nothing but zeros.

    Such zeros are in files whose space was reserved and never filled.
    """
    small = {key: value for key, value in tensors.items() if is_small(key, value)}
    if broken := list(not_finite(small)):
        raise WeightsError(
            f"{name} holds NaN or infinity in {some(broken)}: it is damaged or was converted wrongly. "
            "Download it again or choose another file."
        )
    empty = [k for k, v in small.items() if "norm" in k and k.endswith(".weight") and not v.float().any()]
    if empty:
        raise WeightsError(
            f"{name} holds nothing but zeros in {some(empty)}: the download left holes. Download it again."
        )
