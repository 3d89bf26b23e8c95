"""Prompts for regions: S3DiT against an independent float64 forward, and what must hold at the ends."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.peers import reference_of
from tests.core.random_models import TINY, random_inputs, random_s3dit, relative, seeds
from tests.core.reference import Reference, rms, rotary, sinusoid
from zimage_core import S3DiT
from zimage_core.conditions.regions import Region, Regions
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

(SEED,) = seeds(1)


class RegionalReference(Reference):
    """The published model with several captions, of which each picture token sees its own shares.

    `shares` [S, S] multiplies exp(score) of query and key in the layers.
    """

    shares: Tensor | None = None

    def attention(self, name: str, x: Tensor, freqs: Tensor) -> Tensor:
        if not name.startswith("layers."):
            return super().attention(name, x, freqs)
        w, eps = self.w, self.eps
        q, k, v = (self.linear(f"{name}.to_{p}", x).unflatten(-1, (self.heads, -1)) for p in "qkv")
        q, k = rms(q, w[f"{name}.norm_q.weight"], eps), rms(k, w[f"{name}.norm_k.weight"], eps)
        q, k = (torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * freqs[:, None] for t in (q, k))
        scores = torch.einsum("qhd,khd->hqk", q, k.conj()).real / math.sqrt(v.shape[-1])
        counted = self.shares * torch.exp(scores - scores.amax(-1, keepdim=True))
        out = (counted / counted.sum(-1, keepdim=True)) @ v.transpose(0, 1)
        return self.linear(f"{name}.to_out.0", out.transpose(0, 1).flatten(1))

    def velocity(self, latent: Tensor, sigma: float, captions: list[Tensor], weights: list[Tensor]) -> Tensor:
        """The velocity with regions.

        captions: the prompt's features and those of each region. weights: of each region, [rows, columns] of
        patches.
        """
        latent = latent.double()
        channels, height, width = latent.shape
        rows, columns = height // 2, width // 2
        count = rows * columns
        pads = -count % 32
        hidden = torch.nn.functional.silu(self.linear("t_embedder.mlp.0", sinusoid((1 - sigma) * 1000.0)))
        c = self.linear("t_embedder.mlp.2", hidden)

        seen = [torch.ones(count, dtype=torch.float64)]
        for weight in weights:
            seen[0] = seen[0] * (1 - weight.double().flatten())
            seen.append(weight.double().flatten())
        seen = [torch.cat((s, s.mean().repeat(pads))) for s in seen]
        spans = [math.ceil(len(caption) / 32) * 32 for caption in captions]
        end = spans[0]
        total = sum(float(s.mean()) for s in seen)
        place = sum(float(s.mean()) / total * (end - n) for s, n in zip(seen, spans, strict=True))

        texts, positions = [], []
        for i, caption in enumerate(captions):
            text = rms(caption.double(), self.w["cap_embedder.0.weight"], self.eps)
            text = self.linear("cap_embedder.1", text)
            text = torch.cat((text, self.w["cap_pad_token"].expand(spans[i] - len(text), -1)))
            freqs = rotary([(j, 0, 0) for j in range(spans[i])], self.axes, self.theta)
            for j in range(self.count("context_refiner")):
                text = self.block(f"context_refiner.{j}", text, freqs)
            texts.append(text)
            positions += [(end - spans[i] + j + 1, 0, 0) for j in range(spans[i])]
        patches = latent.reshape(channels, rows, 2, columns, 2).permute(1, 3, 2, 4, 0).reshape(count, -1)
        image = self.linear("all_x_embedder.2-1", patches)
        image = torch.cat((image, self.w["x_pad_token"].expand(pads, -1)))
        places = [(end + 1, row, column) for row in range(rows) for column in range(columns)]
        places += [(place, 0, 0)] * pads
        freqs = rotary(places, self.axes, self.theta)
        for i in range(self.count("noise_refiner")):
            image = self.block(f"noise_refiner.{i}", image, freqs, c)

        start = sum(spans)
        self.shares = torch.zeros(start + count + pads, start + count + pads, dtype=torch.float64)
        self.shares[start:, start:] = 1
        first = 0
        for span, s in zip(spans, seen, strict=True):
            own = slice(first, first + span)
            self.shares[own, own] = 1
            self.shares[start:, own] = s[:, None]
            self.shares[own, start:] = s
            first += span
        x, freqs = torch.cat((*texts, image)), rotary(positions + places, self.axes, self.theta)
        for i in range(self.count("layers")):
            x = self.block(f"layers.{i}", x, freqs, c)
        x = x[start : start + count]
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
        scale = self.linear("all_final_layer.2-1.adaLN_modulation.1", torch.nn.functional.silu(c))
        out = self.linear("all_final_layer.2-1.linear", x * (1 + scale))
        out = out.reshape(rows, columns, 2, 2, channels).permute(4, 0, 2, 1, 3)
        return -out.reshape(channels, height, width)


def features(length: int, seed: int = SEED) -> Tensor:
    return torch.randn(1, length, TINY.cap_feat_dim, generator=torch.Generator().manual_seed(seed + length))


def box(height: int, width: int, top: int, left: int, value: float = 1.0) -> Tensor:
    """[1, height, width] of 0, with `value` from top and left on."""
    mask = torch.zeros(1, height, width)
    mask[:, top:, left:] = value
    return mask


def region(caption: Tensor, weight: Tensor) -> Region:
    return Region(Captions.whole(caption), weight)


def regional(
    model: S3DiT,
    x: Tensor,
    sigma: Tensor,
    caption: Tensor,
    regions: list[Region],
    mask: Tensor | None = None,
) -> Tensor:
    """The velocity of a prompt with others for regions."""
    return model(x, sigma, condition=Regions(Prompt(Captions.masked(caption, mask)), regions))


# latent size, tokens of the prompt, tokens and weights of the regions
CASES = {
    "one hard region": ((8, 12), 21, [(9, box(4, 6, 2, 3))]),
    "longer than the prompt": ((6, 10), 9, [(40, box(3, 5, 1, 2))]),
    "shorter, soft": ((6, 10), 70, [(9, box(3, 5, 1, 2, 0.7))]),
    "two that overlap": ((8, 8), 33, [(9, box(4, 4, 2, 0, 0.5)), (40, box(4, 4, 0, 1, 1.0))]),
}


@pytest.mark.parametrize("name", CASES)
def test_fp32_equals_float64(name: str) -> None:
    size, length, parts = CASES[name]
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, size=size, length=length)
    regions = [region(features(n), weight) for n, weight in parts]
    reference = reference_of(model)
    reference.__class__ = RegionalReference
    captions = [caption[0], *(part.captions.features[0] for part in regions)]
    truth = reference.velocity(x[0], float(sigma[0]), captions, [part.weight[0] for part in regions])
    assert relative(regional(model, x, sigma, caption, regions)[0], truth) <= 1e-5


def test_the_oracle_without_regions_is_the_published_model() -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, size=(6, 10))
    plain = reference_of(model)(x[0], float(sigma[0]), caption[0])
    reference = reference_of(model)
    reference.__class__ = RegionalReference
    assert relative(reference.velocity(x[0], float(sigma[0]), [caption[0]], []), plain) <= 1e-12


LENGTHS = [(21, 9), (9, 40), (70, 9)]  # of the prompt and the region: padded alike, longer, shorter


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_region_everywhere_is_a_plain_run_of_its_prompt(lengths: tuple[int, int]) -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, size=(6, 10), length=lengths[0])
    part = region(features(lengths[1]), torch.ones(1, 3, 3))
    alone = model(x, sigma, part.captions.features)
    assert relative(regional(model, x, sigma, caption, [part]), alone) <= 1e-5


def test_a_batch_of_equal_lengths_equals_its_single_runs() -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, batch=3, size=(6, 10))
    part = region(features(9), box(6, 10, 3, 5))
    together = regional(model, x, sigma, caption, [part])
    for i in range(3):
        alone = regional(model, x[i : i + 1], sigma[i : i + 1], caption[i : i + 1], [part])
        assert relative(together[i : i + 1], alone) <= 1e-5


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_empty_region_changes_nothing(lengths: tuple[int, int]) -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, size=(6, 10), length=lengths[0])
    part = region(features(lengths[1]), torch.zeros(1, 6, 10))
    assert relative(regional(model, x, sigma, caption, [part]), model(x, sigma, caption)) <= 1e-6


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (8, 3)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    """As the run on the wrapped latent, which is what the network sees; the mask goes on at the edge."""
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, size=size)
    wrapped = F.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="circular")
    wide = box(*wrapped.shape[-2:], 0, size[1] // 2)
    truth = regional(model, wrapped, sigma, caption, [region(features(9), wide)])
    part = region(features(9), wide[:, : size[0], : size[1]])
    assert relative(regional(model, x, sigma, caption, [part]), truth[..., : size[0], : size[1]]) <= 1e-6


def test_the_mask_has_any_size() -> None:
    """A mask in pixels, one in latent cells and one in patches say the same."""
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, size=(8, 12))
    made = [
        regional(model, x, sigma, caption, [region(features(9), box(4 * n, 6 * n, 2 * n, 3 * n))])
        for n in (1, 2, 16)
    ]
    assert all(relative(other, made[0]) <= 1e-6 for other in made[1:])


def one_layer() -> S3DiT:
    """Tokens meet in one joint layer only."""
    return random_s3dit(replace(TINY, n_layers=1, n_refiner_layers=0), SEED)


def test_what_sees_what() -> None:
    """By gradients of the velocity at one patch.

    Inside the region it follows the region's caption and not the prompt, outside the other way round, and
    everywhere it follows every patch of the picture.
    """
    model = one_layer()
    x, sigma, caption = random_inputs(TINY, SEED, size=(8, 8))
    part = region(features(9), box(4, 4, 2, 2))
    inputs = [x, caption, part.captions.features]
    for tensor in inputs:
        tensor.requires_grad_(True)
    out = regional(model, x, sigma, caption, [part])
    for patch, inside in (((3, 3), True), ((0, 0), False)):
        row, column = (2 * p for p in patch)
        picked = out[..., row : row + 2, column : column + 2].sum()
        picture, prompt, other = torch.autograd.grad(picked, inputs, retain_graph=True, allow_unused=True)
        assert (picture.abs().amax(dim=1) > 0).all(), "attention among picture tokens is free"
        assert bool(prompt.abs().sum() > 0) is not inside
        assert bool(other.abs().sum() > 0) is inside


def test_prompts_of_different_lengths_in_one_batch_equal_their_single_runs() -> None:
    """Each sample has its own prompt, its own region prompt and its own mask; one has no region."""
    model = random_s3dit(TINY, SEED)
    lengths, others = [70, 9, 33], [9, 40, 1]
    x, sigma, caption = random_inputs(TINY, SEED, batch=3, size=(6, 10), length=max(lengths))
    context = torch.cat([features(max(others), SEED + i) for i in range(3)])
    weight = torch.cat((box(6, 10, 2, 2), box(6, 10, 0, 4, 0.5), torch.zeros(1, 6, 10)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch = regional(model, x, sigma, caption, [Region(Captions(context, tuple(others)), weight)], mask)
    for i, (length, other) in enumerate(zip(lengths, others, strict=True)):
        one = (x[i : i + 1], sigma[i : i + 1], caption[i : i + 1, :length])
        own = region(context[i : i + 1, :other], weight[i : i + 1])
        alone = regional(model, *one, [own]) if i < 2 else model(*one)
        assert relative(batch[i : i + 1], alone) <= 1e-6


def test_a_run_computes_once_what_it_repeats() -> None:
    model = random_s3dit(TINY, SEED)
    x, _, caption = random_inputs(TINY, SEED)
    regions = [region(features(9), box(4, 6, 2, 3)), region(features(40), box(4, 6, 0, 3))]
    counts: Counter = Counter()
    for name in ("context_refiner", "noise_refiner", "layers"):
        getattr(model, name)[0].register_forward_hook(lambda *_, name=name: counts.update([name]))
    fresh = kept = x
    for sigma in (1.0, 0.6, 0.2):
        fresh = fresh - 0.1 * regional(model, fresh, torch.tensor([sigma]), caption, regions)
    counts.clear()
    memo, condition = RunMemo(), Regions(Prompt(Captions.whole(caption)), regions)
    for sigma in (1.0, 0.6, 0.2):
        kept = kept - 0.1 * model(kept, torch.tensor([sigma]), condition=condition, memo=memo)
    assert torch.equal(fresh, kept)
    assert counts == {"context_refiner": 3, "noise_refiner": 3, "layers": 3}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED)
    regions = [region(features(9), box(4, 6, 2, 3))]
    exact = regional(model, x, sigma, caption, regions)
    half = regional(model.to(dtype), x.to(dtype), sigma, caption.to(dtype), regions)
    assert relative(half, exact) <= 0.05


def test_what_does_not_fit_is_named() -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED)
    with pytest.raises(ValueError, match="region's caption features are 40 wide, the prompt's 96"):
        regional(model, x, sigma, caption, [region(features(9)[..., :40], torch.ones(1, 4, 4))])
