"""Reference images: S3DiT with omni weights against diffusers, on the same random weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from tests.core.peers import diffusers_of
from tests.core.random_models import TINY, WIDE, random_inputs, random_s3dit, relative, seeds
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.conditions.references import References
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.prompt.template import apply_template, split_prompt

OMNI = replace(TINY, siglip_feat_dim=48)
NEW = ("siglip_embedder.", "siglip_refiner.", "siglip_pad_token")


class Peer(ZImageTransformer2DModel):
    """diffusers' model without the two differences from ComfyUI's that our docstring decides.

    They are positions of a segment that are padded twice, and the picture's missing siglip features counted
    as noisy.
    """

    def _pad_with_ids(self, feat, pos_grid_size, pos_start, device, noise_mask_val=None):
        out = super()._pad_with_ids(feat, pos_grid_size, pos_start, device, noise_mask_val)
        return out[0], out[1][: out[3]], *out[2:]

    def patchify_and_embed_omni(self, *given):
        out = super().patchify_and_embed_omni(*given)
        return *out[:-1], [[0] * len(mask) for mask in out[-1]]


def references(
    config: S3DiTConfig, seed: int, sizes: list[tuple[int, int]], segments: list[int], grids: list
) -> dict[str, list]:
    """Random ref_latents of these sizes, ref_contexts of these lengths, siglip_feats of these grids."""
    generator = torch.Generator().manual_seed(seed + 2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "ref_latents": [noise(1, config.in_channels, *size) for size in sizes],
        "ref_contexts": [noise(1, length, config.cap_feat_dim) for length in segments],
        "siglip_feats": [None if g is None else noise(1, *g, config.siglip_feat_dim) for g in grids],
    }


def edited(
    model: S3DiT,
    x: Tensor,
    sigma: Tensor,
    caption: Tensor,
    given: dict,
    mask: Tensor | None = None,
) -> Tensor:
    """The velocity of a prompt with references."""
    return model(x, sigma, condition=condition(caption, given, mask))


def condition(caption: Tensor, given: dict, mask: Tensor | None = None) -> References:
    prompt = Prompt(Captions.masked(caption, mask))
    return References.of(prompt, given["ref_latents"], given["ref_contexts"], given["siglip_feats"])


def diffusers_edit(model: S3DiT, x: Tensor, sigma: Tensor, caption: Tensor, given: dict) -> Tensor:
    """The velocity of one sample from diffusers."""
    peer = diffusers_of(model)
    peer.__class__ = Peer
    count = len(given["ref_latents"])
    *before, closing = (c[0] for c in given["ref_contexts"])
    out = peer(
        [[*(latent[0].unsqueeze(1) for latent in given["ref_latents"]), x[0].unsqueeze(1)]],
        1.0 - sigma,
        [[*before, caption[0], closing]],
        return_dict=False,
        siglip_feats=[[*(None if f is None else f[0] for f in given["siglip_feats"]), None]],
        image_noise_mask=[[0] * count + [1]],
    )[0]
    return -torch.stack(list(out)).squeeze(2)


# Siglip's positions agree where a latent has 8 rows and columns for each of its cells.
ONE = ([(16, 16)], [5, 4], [(2, 2)])
TWO = ([(16, 24), (8, 6)], [5, 34, 4], [(2, 3), None])


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("shapes", [ONE, TWO])
def test_fp32_equals_diffusers(seed: int, shapes: tuple) -> None:
    model = random_s3dit(OMNI, seed)
    x, sigma, caption = random_inputs(OMNI, seed, size=(8, 12), length=21)
    given = references(OMNI, seed, *shapes)
    peer = diffusers_edit(model, x, sigma, caption, given)
    assert relative(edited(model, x, sigma, caption, given), peer) <= 1e-5


def test_fp32_at_the_real_width() -> None:
    (seed,) = seeds(1)
    config = replace(WIDE, siglip_feat_dim=1152)
    model = random_s3dit(config, seed)
    x, sigma, caption = random_inputs(config, seed, size=(10, 14), length=45)
    given = references(config, seed, *TWO)
    peer = diffusers_edit(model, x, sigma, caption, given)
    assert relative(edited(model, x, sigma, caption, given), peer) <= 1e-5


def test_without_references_the_picture_is_that_of_weights_without_siglip() -> None:
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed)
    plain = S3DiT(TINY)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(NEW)})
    x, sigma, caption = random_inputs(OMNI, seed)
    assert torch.equal(model(x, sigma, caption), plain(x, sigma, caption))


@pytest.mark.parametrize("lengths", [[9, 9], [9, 12], [70, 9, 33]])
def test_prompts_of_different_lengths_in_one_batch_equal_their_single_runs(lengths: list[int]) -> None:
    """The picture's place on the frame axis follows each sample's own prompt."""
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed)
    x, sigma, caption = random_inputs(OMNI, seed, batch=len(lengths), length=max(lengths))
    given = references(OMNI, seed, *TWO)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch = edited(model, x, sigma, caption, given, mask)
    for i, length in enumerate(lengths):
        alone = edited(model, x[i : i + 1], sigma[i : i + 1], caption[i : i + 1, :length], given)
        assert relative(batch[i : i + 1], alone) <= 1e-6


def test_each_sample_of_a_batch_may_have_its_own_references() -> None:
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed)
    x, sigma, caption = random_inputs(OMNI, seed, batch=2)
    one, other = (references(OMNI, seed + i, *ONE) for i in range(2))
    both = {k: [torch.cat(pair) for pair in zip(one[k], other[k], strict=True)] for k in one}
    batch = edited(model, x, sigma, caption, both)
    for i, given in enumerate((one, other)):
        alone = edited(model, x[i : i + 1], sigma[i : i + 1], caption[i : i + 1], given)
        assert relative(batch[i : i + 1], alone) <= 1e-6


def test_every_reference_counts() -> None:
    """Picture, segment and siglip features of each reference change the result."""
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed)
    x, sigma, caption = random_inputs(OMNI, seed)
    given = references(OMNI, seed, [(8, 8), (6, 10)], [5, 6, 4], [(2, 2), (3, 2)])
    before = edited(model, x, sigma, caption, given)
    for name, tensors in given.items():
        for i in range(len(tensors)):
            changed = given | {name: [*tensors[:i], tensors[i] * -1, *tensors[i + 1 :]]}
            assert relative(edited(model, x, sigma, caption, changed), before) > 1e-4, (name, i)


def test_a_run_computes_once_what_it_repeats() -> None:
    """The same bits with a memo as without, and the counts of what it saves."""
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed)
    x, _, caption = random_inputs(OMNI, seed)
    given = references(OMNI, seed, *TWO)
    counts: Counter = Counter()
    for name in ("context_refiner", "siglip_refiner", "noise_refiner"):
        getattr(model, name)[0].register_forward_hook(lambda *_, name=name: counts.update([name]))
    for name in ("t_embedder", "siglip_embedder", "cap_embedder", "x_embedder"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: counts.update([name]))
    fresh = kept = x
    for sigma in (1.0, 0.6, 0.2):
        fresh = fresh - 0.1 * edited(model, fresh, torch.tensor([sigma]), caption, given)
    counts.clear()
    memo, once = RunMemo(), condition(caption, given)
    for sigma in (1.0, 0.6, 0.2):
        kept = kept - 0.1 * model(kept, torch.tensor([sigma]), condition=once, memo=memo)
    assert torch.equal(fresh, kept)
    assert counts == {
        "context_refiner": 1,
        "siglip_refiner": 1,
        "noise_refiner": 3,
        "t_embedder": 3 + 1,  # the clean tokens' time is the same in each step
        "siglip_embedder": 1,
        "cap_embedder": 4,
        "x_embedder": 2 + 3,
    }


def test_without_gradients_it_is_the_same() -> None:
    """Modulation by token then works in place."""
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed)
    x, sigma, caption = random_inputs(OMNI, seed)
    given = references(OMNI, seed, *TWO)
    with torch.no_grad():
        alone = edited(model, x, sigma, caption, given)
    assert torch.equal(alone, edited(model, x, sigma, caption, given))


def test_every_weight_learns() -> None:
    (seed,) = seeds(1)
    model = random_s3dit(OMNI, seed).requires_grad_(True)
    x, sigma, caption = random_inputs(OMNI, seed, batch=2, length=40)
    mask = torch.arange(40) < torch.tensor([40, 9])[:, None]
    given = references(OMNI, seed, *TWO)
    edited(model, x, sigma, caption, given, mask).square().mean().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_what_does_not_fit_is_named() -> None:
    model, plain = random_s3dit(OMNI, 0), random_s3dit(TINY, 0)
    x, sigma, caption = random_inputs(OMNI, 0)
    given = references(OMNI, 0, *ONE)
    with pytest.raises(ValueError, match="no omni keys"):
        edited(plain, x, sigma, caption, given)
    with pytest.raises(ValueError, match="siglip features are 7 wide, this model takes 48"):
        edited(model, x, sigma, caption, given | {"siglip_feats": [torch.zeros(1, 2, 2, 7)]})
    with pytest.raises(ValueError, match="3 captions besides the prompt for 1 reference"):
        edited(model, x, sigma, caption, given | {"ref_contexts": [caption] * 3})
    with pytest.raises(ValueError, match=r"reference latent has shape \(1, 4, 8, 8\)"):
        edited(model, x, sigma, caption, given | {"ref_latents": [torch.zeros(1, 4, 8, 8)]})


def test_the_prompt_in_segments() -> None:
    assert split_prompt("a cat", 0) == [apply_template("a cat")]
    assert split_prompt("a cat", 2) == [
        "<|im_start|>user\n<|vision_start|>",
        "<|vision_end|><|vision_start|>",
        "<|vision_end|>a cat<|im_end|>\n<|im_start|>assistant\n<|vision_start|>",
        "<|vision_end|><|im_end|>",
    ]
