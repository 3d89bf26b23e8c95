"""Which pictures and captions make a batch, how noisy they are shown, and what is kept on the disk."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.core.random_models import seeds
from zimage_core.train.batch import Batch, Batches, Example, bucket_of, captions_of, resized, together
from zimage_core.train.cache import Cache, digest
from zimage_core.train.flow import DRAWN, Noise, noised, resolution_shift, velocity_error


def example(value: float, size: tuple[int, int] = (4, 4), captions: int = 1, share: float = 1.0) -> Example:
    texts = tuple(torch.full((3 + number, 2), value + number / 10) for number in range(captions))
    return Example(torch.full((16, *size), value), texts, share)


@pytest.mark.parametrize(
    ("picture", "pixels", "wanted"),
    [
        ((1000, 1000), 1024**2, (1024, 1024)),
        ((1920, 1080), 1024**2, (1360, 768)),
        ((1080, 1920), 1024**2, (768, 1360)),
        ((3000, 100), 512**2, (1024, 256)),
        ((64, 48), 128**2, (144, 112)),
    ],
)
def test_buckets_have_the_shape_of_the_picture_and_no_more_pixels(picture, pixels, wanted):
    found = bucket_of(*picture, pixels)
    assert found[0] * found[1] <= pixels and not found[0] % 16 and not found[1] % 16
    assert abs(math.log(found[0] / found[1]) - math.log(wanted[0] / wanted[1])) < 0.06
    assert found[0] * found[1] > 0.8 * wanted[0] * wanted[1]


def test_a_resolution_that_makes_no_picture_is_refused():
    with pytest.raises(ValueError, match="16 pixels a side"):
        bucket_of(10, 10, 100)


def test_pictures_are_scaled_to_cover_and_cut_evenly():
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste("white", (100, 0, 200, 100))
    pixels = resized(picture, (32, 32))
    assert pixels.shape == (3, 32, 32)
    assert float(pixels.min()) > 0.8  # the middle third alone; resampling reaches a pixel beyond its edges
    whole = resized(Image.new("RGB", (64, 32), (255, 0, 0)), (128, 64))
    assert torch.equal(whole[0], torch.ones(64, 128)) and torch.equal(whole[1], -torch.ones(64, 128))


def test_each_picture_has_its_own_caption_at_every_batch_size():
    examples = [example(float(n)) for n in range(7)]
    for size in (1, 2, 4, 7):
        batches = Batches(examples, size, seed=1)
        for step in range(12):
            batch = batches.draw(step, torch.Generator().manual_seed(step))
            assert len(batch.latents) == len(batch.captions.lengths) == size
            for latent, features in zip(batch.latents, batch.captions.features, strict=True):
                assert float(latent[0, 0, 0]) == float(features[0, 0])


def test_all_come_once_in_a_round_and_the_order_is_that_of_step_and_seed():
    examples = [example(float(n)) for n in range(6)]
    batches = Batches(examples, 2, seed=5)
    rounds = [[at for step in range(3 * r, 3 * r + 3) for at in batches.numbers(step)] for r in range(4)]
    assert all(sorted(found) == list(range(6)) for found in rounds)
    assert len({tuple(found) for found in rounds}) > 1
    again = Batches(examples, 2, seed=5)
    assert [again.numbers(step) for step in (11, 3, 0)] == [batches.numbers(step) for step in (11, 3, 0)]
    other = Batches(examples, 2, seed=6)
    assert [other.numbers(s) for s in range(12)] != [again.numbers(s) for s in range(12)]


def test_shares_say_how_often_a_picture_comes():
    examples = [example(0.0, share=3.0), example(1.0), example(2.0, share=0.25)]
    batches = Batches(examples, 1, seed=0)
    counts = Counter(at for step in range(2000) for at in batches.numbers(step))
    assert abs(counts[0] / counts[1] - 3) < 0.1 and abs(counts[2] / counts[1] - 0.25) < 0.06


def test_batches_are_of_one_size_and_filled_up():
    examples = [example(float(n), (4, 4)) for n in range(5)] + [example(9.0, (2, 8))]
    batches = Batches(examples, 4, seed=0)
    for step in range(9):
        batch = batches.draw(step, torch.Generator().manual_seed(0))
        assert batch.latents.shape in ((4, 16, 4, 4), (4, 16, 2, 8))


def test_captions_are_chosen_and_left_out_by_chance():
    (seed,) = seeds(1)
    empty = torch.full((1, 2), -1.0)
    batches = Batches([example(0.0, captions=2)], 1, caption_dropout=0.25, empty=empty)
    found = Counter()
    for step in range(1200):
        generator = torch.Generator().manual_seed(seed + step)
        found[round(float(batches.draw(step, generator).captions.features[0, 0, 0]), 2)] += 1
    assert abs(found[-1.0] / 1200 - 0.25) < 0.06
    assert abs(found[0.1] / 1200 - 0.375) < 0.06
    with pytest.raises(ValueError, match="empty"):
        Batches([example(0.0)], 1, caption_dropout=0.1)


def test_a_batch_of_two_sources_is_one_where_sizes_agree():
    def of(size: tuple[int, int], value: float, length: int) -> Batch:
        return Batch(torch.full((2, 16, *size), value), captions_of([torch.full((length, 2), value)] * 2))

    (both,) = together(of((4, 4), 1.0, 3), of((4, 4), 2.0, 5))
    assert both.latents[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert both.captions.lengths == (3, 3, 5, 5)
    assert both.captions.features[:, 0, 0].tolist() == [1, 1, 2, 2]
    assert len(together(of((4, 4), 1.0, 3), of((2, 8), 2.0, 3))) == 2


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        Batches([], 1)


@pytest.mark.parametrize("kind", DRAWN)
def test_sigmas_have_their_distributions(kind):
    (seed,) = seeds(1)
    generator = torch.Generator().manual_seed(seed)
    found = Noise(kind, 3.0).draw(20000, 1024, generator).double()
    assert 0 < float(found.min()) and float(found.max()) < 1
    # medians: of uniform and logit-normal 1/2, moved by shift s to s / (1 + s)
    assert abs(float(found.median()) - (0.75 if kind == "shifted" else 0.5)) < 0.015
    below = float((found < 0.25).double().mean())
    normal = 0.5 * (1 + math.erf(math.log(1 / 3) / math.sqrt(2)))  # logit-normal below 1/4
    moved = 0.5 * (1 + math.erf(math.log(1 / 9) / math.sqrt(2)))  # 1/4 comes from 1/10
    assert abs(below - {"logit-normal": normal, "shifted": moved}.get(kind, 0.25)) < 0.015


def test_the_middle_counts_more_where_it_is_weighted():
    sigma = torch.linspace(0.0005, 0.9995, 1000)
    weights = Noise("weighted").weights(sigma)
    assert abs(float(weights.mean()) - 1) < 1e-3 and int(weights.argmax()) in (499, 500)
    assert torch.equal(Noise("uniform").weights(sigma), torch.ones(1000))


def test_larger_pictures_are_shown_noisier():
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15)) == pytest.approx(resolution_shift(9999))
    assert resolution_shift(256) < resolution_shift(1024) < resolution_shift(4096)


def test_noise_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="logit-normal"):
        Noise("gaussian")


def test_noisy_latents_lie_on_the_line_whose_slope_is_the_velocity():
    generator = torch.Generator().manual_seed(0)
    clean, sigma = torch.randn(3, 16, 2, 2), torch.tensor([0.0, 0.4, 1.0])
    noisy, velocity = noised(clean, sigma, generator)
    assert torch.equal(noisy[0], clean[0])
    assert torch.allclose(noisy - sigma.view(-1, 1, 1, 1) * velocity, clean, atol=1e-6)
    assert velocity_error(velocity, velocity).item() == 0
    weights = torch.tensor([0.0, 2.0, 1.0])
    wanted = (velocity.square().mean((1, 2, 3)) * weights).mean()
    assert torch.allclose(velocity_error(torch.zeros_like(velocity), velocity, weights), wanted)


def test_the_cache_makes_each_tensor_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return torch.arange(4.0, requires_grad=True)

    cache = Cache(tmp_path)
    name = digest("picture", "8", b"content")
    first = cache.of(name, make)
    assert torch.equal(cache.of(name, make), first) and torch.equal(Cache(tmp_path).of(name, make), first)
    assert len(calls) == 1
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(cache.of(name, make), first) and len(calls) == 2
    assert torch.equal(load_file(path)["value"], first)


def test_names_differ_with_content_settings_and_where_one_ends():
    names = [digest("a", "bc"), digest("ab", "c"), digest(b"a", "bc", ""), digest("a", "bd")]
    assert len(set(names)) == 4 and digest("a", "bc") == digest(b"a", b"bc")
