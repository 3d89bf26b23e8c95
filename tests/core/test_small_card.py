"""A pipeline whose parts take turns within a budget gives the same pictures."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.peers import diffusers_of
from tests.core.random_models import random_s3dit, randomise, relative
from tests.core.small_diffusers import small_parts
from zimage_core import S3DiTConfig, ZImagePipeline
from zimage_core.acceleration import streaming
from zimage_core.acceleration.small_card import SmallCard, activations_of, all_of, count_tokens
from zimage_core.acceleration.streaming import RUN_STACKS, STEP_STACKS, blocks_of, bytes_of
from zimage_core.conditions.control import Control, ControlNet
from zimage_core.config import ControlConfig
from zimage_core.model.s3dit import Prompt

DIT = S3DiTConfig(dim=256, n_layers=6, n_refiner_layers=1, n_heads=2, cap_feat_dim=128, t_hidden=1024)
SIZE = {"height": 64, "width": 48, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers import ZImagePipeline as PeerPipeline

    path = tmp_path_factory.mktemp("small_card")
    text_encoder, tokenizer, vae = small_parts()
    parts = (vae, text_encoder, tokenizer, diffusers_of(random_s3dit(DIT, 3)))
    PeerPipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), *parts).save_pretrained(path)
    return path


@pytest.fixture
def pipe(folder: Path) -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(folder)


def control() -> Control:
    network = randomise(ControlNet(ControlConfig(replace(DIT, n_layers=3), 16, "refiner")), 5)
    return Control(network, torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(6)))


def picture(pipe: ZImagePipeline, prompts: list[str] | str = "a red fox", **more) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return pipe(prompts, generator=generator, output_type="pt", **{**SIZE, **more}).images


CALLS = {
    "turbo": {},
    "guided": {"guidance_scale": 3.0, "negative_prompt": "blurry"},
    "two": {"prompts": ["a red fox", "two cups of tea on a table"], "num_images_per_prompt": 2},
    "regions": {"regions": [("a blue bird", torch.eye(4))]},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("share", [0.45, 0.6, 2.0])
def test_pictures_are_the_same_to_the_bit(name: str, share: float, pipe: ZImagePipeline, caplog) -> None:
    """Budgets are shares of all weights: hardly room for two blocks, some that stay, and all of them."""
    call = CALLS[name]
    expected, size = picture(pipe, **call), weight_bytes(pipe)
    where = data_of(pipe)
    pipe.enable_streaming(int(share * size) + activations(call), "cpu")
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # the second finds parts in place
            assert torch.equal(picture(pipe, **call), expected)
    assert caplog.text.count("blocks stay on") == (share < 1), "it is said once"
    pipe.card.leave()
    assert data_of(pipe) == where


def test_every_budget_is_kept_or_refused(pipe: ZImagePipeline) -> None:
    """Also those in which all fits but what runs once."""
    model, refused = pipe.transformer, []
    for size in range(2**20, 2 * bytes_of(all_of(model)), 2**19):
        card = SmallCard(size, torch.device("cpu"))
        try:
            with card.transformer(model, 64):
                (stay,) = card.stays.values()
                assert stay.bytes + stay.used <= size
        except ValueError:
            refused.append(size)
        card.leave()
    assert refused and max(refused) < 0.8 * bytes_of(all_of(model))


def test_a_control_has_its_room(pipe: ZImagePipeline) -> None:
    controls = [control()]
    expected = picture(pipe, controls=controls)
    pipe.enable_streaming(int(0.5 * weight_bytes(pipe)) + 2 * bytes_of(all_of(controls[0].network)), "cpu")
    assert torch.equal(picture(pipe, controls=controls), expected)


def test_the_sides_of_guidance_one_after_the_other_where_both_do_not_fit(pipe: ZImagePipeline) -> None:
    call = {"guidance_scale": 3.0, "negative_prompt": "blurry", "height": 256, "width": 256}
    seen, network = [], pipe.transformer
    network.final_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))

    def latents() -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return pipe("a red fox", generator=generator, output_type="latent", **{**SIZE, **call}).images

    expected = latents()
    captions = [Prompt(pipe.encode_prompts([text])) for text in ("a red fox", "blurry")]
    x = torch.zeros(1, 16, 32, 32)
    one = max(count_tokens(each, network, x) for each in captions)
    blocks = blocks_of(network, (*STEP_STACKS, *RUN_STACKS)).values()
    least = bytes_of(all_of(network)) - sum(map(bytes_of, blocks)) + 2 * max(map(bytes_of, blocks))
    for room, passes in ((1.1, [256] * 6), (2.1, [2 * 256] * 3)):
        seen.clear()
        pipe.enable_streaming(int(least + room * activations_of(network, one)), "cpu")
        assert relative(latents(), expected) <= 1e-5
        assert seen == passes
    assert torch.equal(latents(), expected)


def test_what_cannot_fit_is_said_with_numbers_and_leaves_all_in_place(pipe: ZImagePipeline) -> None:
    where, expected = data_of(pipe), picture(pipe)
    pipe.enable_streaming("1MB", "cpu")
    with pytest.raises(ValueError, match=r"needs \d+ MB at this size, and vram is 1 MB"):
        picture(pipe)
    assert data_of(pipe) == where
    pipe.enable_streaming("2GB", "cpu")
    assert torch.equal(picture(pipe), expected)


def test_another_budget_and_another_pipeline_take_the_weights_over(pipe: ZImagePipeline) -> None:
    """What stayed for the first is home before it goes to the next, so that no part lies there twice."""
    where, expected = data_of(pipe), picture(pipe)
    budget = int(0.6 * weight_bytes(pipe)) + activations({})
    first = pipe.enable_streaming(budget, "cpu").card
    picture(pipe)
    second = pipe.enable_streaming(budget + 2**20, "cpu").card
    assert not first.stays and data_of(pipe) == where
    assert torch.equal(picture(pipe), expected)
    other = ZImagePipeline(pipe.transformer, pipe.text_encoder, pipe.autoencoder, pipe.tokenizer)
    for each in (other.enable_streaming(budget, "cpu"), pipe, other):
        assert torch.equal(picture(each), expected)
    assert other.card.stays and not {key[0] for key in second.stays} & {key[0] for key in other.card.stays}


def test_modules_that_are_gone_are_not_taken_for_new_ones() -> None:
    card = SmallCard("1GB", torch.device("cpu"))
    for _ in range(20):
        with card.whole(torch.nn.Linear(4, 4)):
            pass
    assert len(card.stays) == 20


def test_a_pipeline_that_is_gone_is_freed_and_what_others_share_is_home(folder: Path) -> None:
    pipe = ZImagePipeline.from_pretrained(folder)
    encoder, where = pipe.text_encoder, [tensor.data_ptr() for tensor in all_of(pipe.text_encoder)]
    picture(pipe.enable_streaming("2GB", "cpu"))
    parts = [weakref.ref(part) for part in (pipe.transformer, pipe.autoencoder, pipe.card)]
    del pipe
    gc.collect()
    assert not any(part() for part in parts)
    assert [tensor.data_ptr() for tensor in all_of(encoder)] == where
    assert not any(module._forward_hooks for module in encoder.modules())


def room_for(count: int) -> Callable[..., Tensor]:
    """Tensor.to as a card has it, of which so many tensors find room."""
    left = iter(range(count))

    def to(tensor: Tensor, device: torch.device) -> Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("planted")
        return tensor.clone()

    return to


def no_room(*asked: object) -> None:
    raise torch.OutOfMemoryError("planted")


@pytest.mark.parametrize("room", [0, 7, 10**6])
def test_what_does_not_find_its_room_leaves_all_in_place(
    room: int, pipe: ZImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have taken it. There may be room for all but what the slots need."""
    where, expected = data_of(pipe), picture(pipe)
    card = pipe.enable_streaming(int(0.6 * weight_bytes(pipe)) + activations({}), "cpu").card
    for turn, part in ((card.transformer, pipe.transformer), (card.text_encoder, pipe.text_encoder)):
        with monkeypatch.context() as full, pytest.raises(torch.OutOfMemoryError, match="planted"):
            full.setattr(Tensor, "to", room_for(room))
            full.setattr(streaming, "Slot", no_room)
            with turn(part, 64):
                pass
        assert data_of(pipe) == where and not card.stays
    assert torch.equal(picture(pipe), expected)


def test_a_picture_made_during_another_one_takes_none_of_its_room(pipe: ZImagePipeline) -> None:
    expected, steps = picture(pipe), []
    pipe.enable_streaming("2GB", "cpu")

    def callback(step: int, count: int, latents: Tensor) -> None:
        in_use = {key for key, stay in pipe.card.stays.items() if stay.used}
        steps.append((in_use, torch.equal(picture(pipe), expected)))
        assert in_use == {key for key, stay in pipe.card.stays.items() if stay.used}

    assert torch.equal(picture(pipe, callback=callback), expected)
    assert len(steps) == 3 and all(in_use and same for in_use, same in steps)


@pytest.mark.parametrize("kind", [list, tuple])
def test_generators_one_a_picture(kind: type, pipe: ZImagePipeline) -> None:
    def pictures() -> Tensor:
        generators = kind(torch.Generator().manual_seed(seed) for seed in (7, 8, 9))
        return pipe(
            "a red fox", generator=generators, num_images_per_prompt=3, output_type="pt", **SIZE
        ).images

    expected = pictures()
    pipe.enable_streaming("1GB", "cpu")
    assert torch.equal(pictures(), expected)
    with pytest.raises(ValueError, match="2 generators for 1 pictures"):
        pipe("a red fox", generator=kind([torch.Generator()] * 2), **SIZE)


def test_after_a_refused_picture_all_room_is_free(pipe: ZImagePipeline) -> None:
    """While the error is kept, as a notebook does; its control had its turn already."""
    controls, refused = [control()], []
    for share in (0.5, 0.4, 0.3, 0.2, 0.1):
        pipe.enable_streaming(bytes_of(all_of(controls[0].network)) + int(share * weight_bytes(pipe)), "cpu")
        try:
            picture(pipe, controls=controls)
        except ValueError as error:
            refused.append(error)
            assert not any(stay.used for stay in pipe.card.stays.values())
    assert any("S3DiT needs" in str(error) for error in refused), refused


def test_weights_cannot_be_moved_while_they_are_streamed(pipe: ZImagePipeline) -> None:
    pipe.enable_streaming("1GB", "cpu")
    with pytest.raises(ValueError, match="streaming is enabled"):
        pipe.to("cpu")


def test_a_picture_that_must_be_is_decoded_in_tiles(pipe: ZImagePipeline, caplog) -> None:
    latent = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(8))
    whole = pipe.autoencoder.decode(latent)
    needed = bytes_of(all_of(pipe.autoencoder))
    pipe.enable_streaming(needed + 70 * 2**20, "cpu")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        tiled = pipe.card.decode(pipe.autoencoder, latent)
    assert "decoded in tiles of 256 pixels" in caplog.text
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert float((tiled - whole).norm() / whole.norm()) <= 0.2  # a random network, so far from a trained one


def weight_bytes(pipe: ZImagePipeline) -> int:
    parts = (pipe.transformer, pipe.text_encoder, pipe.autoencoder)
    return sum(bytes_of(all_of(part)) for part in parts)


def activations(call: dict) -> int:
    samples = 4 if "prompts" in call else 1
    return samples * 2**21


def data_of(pipe: ZImagePipeline) -> list[int]:
    parts = (pipe.transformer, pipe.text_encoder, pipe.autoencoder)
    return [tensor.data_ptr() for part in parts for tensor in all_of(part)]
