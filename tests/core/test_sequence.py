"""Captions: what counts as their real tokens, and how batches of them are made."""

from __future__ import annotations

import pytest
import torch

from tests.core.random_models import TINY, random_inputs, random_s3dit, relative, seeds
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

(SEED,) = seeds(1)


def features(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(SEED + length))


def test_a_mask_shorter_than_the_features_speaks_of_their_beginning() -> None:
    """ConditioningConcat adds features and keeps the first prompt's mask."""
    both = torch.cat((features(5), features(3)), dim=1)
    captions = Captions.masked(both, torch.ones(1, 5, dtype=torch.long))
    assert captions.lengths == (8,)
    assert torch.equal(captions.features, both)


def test_padding_in_front_of_real_tokens_is_taken_out() -> None:
    first, second = features(5, batch=2), features(3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    captions = Captions.masked(torch.cat((first, second.expand(2, -1, -1)), dim=1), mask)
    assert captions.lengths == (8, 5)
    assert torch.equal(captions.features[0], torch.cat((first[0], second[0])))
    assert torch.equal(captions.features[1, :5], torch.cat((first[1, :2], second[0])))


def test_a_mask_longer_than_the_features_is_cut() -> None:
    assert Captions.masked(features(4), torch.ones(1, 9)).lengths == (4,)


def test_a_caption_without_real_tokens_keeps_one() -> None:
    """An empty negative prompt of some text encoders."""
    assert Captions.masked(features(4), torch.zeros(1, 4)).lengths == (1,)


def test_joined_captions_equal_their_single_runs() -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, _ = random_inputs(TINY, SEED, batch=2)
    each = [Captions.whole(random_inputs(TINY, SEED, length=length)[2]) for length in (40, 9)]
    together = model(x, sigma, condition=Prompt(Captions.joined(each)))
    for i, captions in enumerate(each):
        alone = model(x[i : i + 1], sigma[i : i + 1], condition=Prompt(captions))
        assert relative(together[i : i + 1], alone) <= 1e-6
    mask = Captions.joined(each).mask
    assert mask.sum(dim=1).tolist() == [40, 9] and mask[1, :9].all()


def test_repeated_captions_stand_one_after_the_other() -> None:
    captions = Captions(features(6, batch=2), (6, 2)).repeated(3)
    assert captions.lengths == (6, 6, 6, 2, 2, 2)
    assert torch.equal(captions.features[:3], features(6, batch=2)[:1].expand(3, -1, -1))


@pytest.mark.parametrize("lengths", [(3,), (3, 7), (0, 3), (1, 2, 3)])
def test_lengths_that_do_not_fit_are_named(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"2 captions of 6 tokens .* expected 2 lengths of 1 to 6"):
        Captions(features(6, batch=2), lengths)


def test_captions_for_another_number_of_latents_are_named() -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, batch=3)
    with pytest.raises(ValueError, match="2 captions for 3 latents"):
        model(x, sigma, caption[:2])


@pytest.mark.parametrize("name", ["controls", "control", "regions", "ref_latents", "run_memo", "conditions"])
def test_unknown_arguments_raise(name: str) -> None:
    """A misspelt one would draw a picture that nothing steers."""
    model = random_s3dit(TINY, SEED)
    with pytest.raises(TypeError, match=name):
        model(*random_inputs(TINY, SEED), **{name: ()})


def test_a_prompt_is_given_once() -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED)
    both = {"context": caption, "condition": Prompt(Captions.whole(caption))}
    for given in ({}, both, {"context": caption, "memo": RunMemo()}):  # that memo would find nothing again
        with pytest.raises(ValueError, match="either context"):
            model(x, sigma, **given)
