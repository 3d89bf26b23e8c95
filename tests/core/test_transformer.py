"""S3DiT against an independent float64 forward and against diffusers, on the same random weights.

How far it is from both is in test_parity.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.core.peers import diffusers_of, diffusers_velocity, reference_of
from tests.core.random_models import TINY, random_inputs, random_s3dit, relative, seeds
from zimage_core import S3DiT, S3DiTConfig


@pytest.mark.parametrize("seed", seeds(2))
def test_prompts_of_different_lengths_in_one_batch_equal_their_single_runs(seed: int) -> None:
    model = random_s3dit(TINY, seed)
    lengths = [70, 9, 33]
    x, sigma, caption = random_inputs(TINY, seed, batch=3, length=max(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    caption[~mask] = torch.nan  # padding of the input is never looked at
    batch = model(x, sigma, caption.nan_to_num(1e3), None, mask)
    for i, length in enumerate(lengths):
        single = model(x[i : i + 1], sigma[i : i + 1], caption[i : i + 1, :length])
        assert relative(batch[i : i + 1], single) <= 1e-6
        peer = diffusers_velocity(diffusers_of(model), x[i : i + 1], sigma[i : i + 1], [caption[i, :length]])
        assert relative(single, peer) <= 1e-5


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (8, 3)])
def test_odd_sizes_are_padded_around_and_cropped(size: tuple[int, int]) -> None:
    """As the host does it: the padded cells repeat the opposite edge."""
    (seed,) = seeds(1)
    model = random_s3dit(TINY, seed)
    x, sigma, caption = random_inputs(TINY, seed, size=size)
    out = model(x, sigma, caption)
    assert out.shape == x.shape
    wrapped = torch.cat((x, x[..., :1, :]), dim=-2) if size[0] % 2 else x
    wrapped = torch.cat((wrapped, wrapped[..., :1]), dim=-1) if size[1] % 2 else wrapped
    truth = reference_of(model)(wrapped[0], float(sigma[0]), caption[0])
    assert relative(out[0], truth[:, : size[0], : size[1]]) <= 1e-5


def test_grouped_query_attention_equals_repeated_heads() -> None:
    """2 key/value heads serving 4 query heads, against the same model with the rows written out 4 times."""
    (seed,) = seeds(1)
    grouped = S3DiTConfig(
        dim=256,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=2,
        cap_feat_dim=64,
        axes_dims=(16, 24, 24),
    )
    full = S3DiTConfig(
        dim=256, n_layers=1, n_refiner_layers=1, n_heads=4, cap_feat_dim=64, axes_dims=(16, 24, 24)
    )
    model = random_s3dit(grouped, seed)
    state = model.state_dict()
    for key in [k for k in state if k.endswith("attention.qkv.weight")]:
        q, k, v = state[key].split((256, 128, 128))
        k, v = (t.view(2, 64, 256).repeat_interleave(2, dim=0).reshape(256, 256) for t in (k, v))
        state[key] = torch.cat((q, k, v))
    wide = S3DiT(full)
    wide.load_state_dict(state)
    x, sigma, caption = random_inputs(grouped, seed)
    truth = reference_of(wide)(x[0], float(sigma[0]), caption[0])[None]
    assert relative(model(x, sigma, caption), truth) <= 1e-5


def test_pads_are_attended() -> None:
    """The learned pad tokens change the picture, as in the reference: masked, it were another model."""
    (seed,) = seeds(1)
    model = random_s3dit(TINY, seed)
    x, sigma, caption = random_inputs(TINY, seed)
    before = model(x, sigma, caption)
    model.cap_pad_token.add_(1.0)
    assert relative(model(x, sigma, caption), before) > 1e-3


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("factor", [1.0, 60.0, 300.0])
def test_float16_does_not_overflow(seed: int, factor: float) -> None:
    """Weights whose products exceed float16's 65504: the norms behind them take every scale away again."""
    model = random_s3dit(TINY, seed)
    for name, p in model.named_parameters():
        if name.endswith(("w1.weight", "w2.weight", "w3.weight", "out.weight")):
            p.mul_(factor)
    x, sigma, caption = random_inputs(TINY, seed)
    largest = 0.0

    def look(module, given, out) -> None:
        nonlocal largest
        largest = max(largest, float(out.abs().max()))

    handles = [block.feed_forward.register_forward_hook(look) for block in model.layers]
    exact = model.double()(x.double(), sigma, caption.double())
    for handle in handles:
        handle.remove()
    assert (largest > 65504) is (factor > 1), "the plain form overflows"
    half = model.half()(x.half(), sigma, caption.half())
    assert relative(half, exact) <= 4e-3


@pytest.mark.parametrize("seed", seeds(2))
def test_float16_has_gradients_where_tokens_are_zero(seed: int) -> None:
    """A layer whose values and gates are zero, before others that are not."""
    model = random_s3dit(TINY, seed)
    model.layers[0].attention.qkv.weight[2 * TINY.dim :].zero_()
    model.layers[0].feed_forward.w1.weight.zero_()
    x, sigma, caption = random_inputs(TINY, seed)
    found = {}
    with torch.enable_grad():
        for dtype in (torch.float64, torch.float16):
            given = x.to(dtype).requires_grad_(True)
            model.to(dtype)(given, sigma, caption.to(dtype)).float().square().mean().backward()
            found[dtype] = given.grad
    assert relative(found[torch.float16], found[torch.float64]) <= 3e-3


def test_wrong_widths_are_named() -> None:
    model = random_s3dit(TINY, 0)
    x, sigma, caption = random_inputs(TINY, 0)
    with pytest.raises(ValueError, match="96.*Qwen3-4B|40 wide.*takes 96"):
        model(x, sigma, caption[..., :40])
    with pytest.raises(ValueError, match="16, H, W"):
        model(x[:, :4], sigma, caption)
    with pytest.raises(ValueError, match="n_heads 3"):
        S3DiTConfig(dim=256, n_heads=3)
    with pytest.raises(ValueError, match="axes_dims"):
        S3DiTConfig(dim=256, n_heads=4)
