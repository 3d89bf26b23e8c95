"""Quantised files of rarer kinds: parts that nobody runs in fp8, some of q, k and v, nothing to scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.core.random_models import TINY, random_s3dit, randomise, relative
from tests.core.test_vision import SMALL as SMALL_VISION
from tests.core.test_weights import SMALL_AE
from zimage_core import AutoencoderKL
from zimage_core.model.vision import VisionEncoder
from zimage_core.weights import WeightsError, load_autoencoder, load_transformer, load_vision_encoder
from zimage_core.weights.keys import transformer_to_diffusers
from zimage_core.weights.quantised import quantise_fp8

FP8 = torch.float8_e4m3fn
LOADED = {"autoencoder": load_autoencoder, "vision encoder": load_vision_encoder}


def scaled(state: dict[str, Tensor], layers: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """These layers in fp8 with a scale each, and the weights that they stand for."""
    out, truth = dict(state), dict(state)
    for layer in layers:
        weight = state[f"{layer}.weight"]
        scale = weight.abs().max() / 448
        stored = (weight / scale).to(FP8)
        out |= {f"{layer}.weight": stored, f"{layer}.weight_scale": scale}
        truth[f"{layer}.weight"] = stored.double() * scale.double()
    return out, truth


@pytest.mark.parametrize("kind", LOADED)
def test_scales_are_applied_where_nobody_runs_fp8(kind: str) -> None:
    """Of matrices and of convolutions; in bf16, as the file would be without."""
    network: nn.Module = AutoencoderKL(SMALL_AE) if kind == "autoencoder" else VisionEncoder(SMALL_VISION)
    state = randomise(network, 4).state_dict()
    matrices = [k for k, v in state.items() if k.endswith(".weight") and v.ndim in (2, 4)]
    layers = [k.removesuffix(".weight") for k in matrices if "embedding" not in k]
    stored, truth = scaled(state, layers)
    loaded = LOADED[kind](stored, dtype=torch.float32).state_dict()
    assert len(layers) > 10 and max(relative(loaded[k], truth[k]) for k in truth) <= 4e-3


@pytest.mark.parametrize("parts", ["q", "k", "v", "qk", "qv", "kv"])
def test_some_of_q_k_and_v_are_quantised(parts: str) -> None:
    state = transformer_to_diffusers(random_s3dit(TINY, 5).state_dict())
    layers = [f"layers.{i}.attention.to_{part}" for i in range(TINY.n_layers) for part in parts]
    stored, truth = scaled({k: v.contiguous() for k, v in state.items()}, layers)
    loaded = load_transformer(stored, dtype=torch.float32).state_dict()
    for i in range(TINY.n_layers):
        base = f"layers.{i}.attention"
        expected = torch.cat([truth[f"{base}.to_{part}.weight"] for part in "qkv"])
        assert relative(loaded[f"{base}.qkv.weight"], expected) <= 4e-3, "bf16 has 8 bits"


@pytest.mark.parametrize(("weight", "scale"), [((), ()), ((0, 256), ()), ((256, 0), ()), ((256, 256), (0,))])
def test_nothing_to_scale_or_to_scale_by_is_refused(weight: tuple, scale: tuple) -> None:
    tensors = dict(random_s3dit(TINY, 6).state_dict())
    tensors["layers.0.attention.out.weight"] = torch.ones(weight).to(FP8)
    tensors["layers.0.attention.out.weight_scale"] = torch.ones(scale)
    with pytest.raises(WeightsError, match="layers.0.attention.out"):
        load_transformer(tensors)


@pytest.mark.parametrize("peak", [3.0, -3.0])
def test_the_largest_weight_of_either_sign_is_kept(peak: float) -> None:
    """It is the one that fp8's largest number, 448, stands for."""
    weight = torch.tensor([[peak, 0.5, -0.25]])
    stored, scale = quantise_fp8(weight)
    assert float(stored[0, 0].float()) == 448 * peak / abs(peak)
    torch.testing.assert_close(stored.float() * scale, weight, rtol=2**-4, atol=0)
