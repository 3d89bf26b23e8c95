"""Nothing in a step makes the processor wait for the card: no value of a tensor is asked for."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.core.random_models import TINY, random_inputs, random_s3dit
from zimage_core import AutoencoderConfig, S3DiT
from zimage_core.conditions.references import References
from zimage_core.conditions.regions import Region, Regions
from zimage_core.model.autoencoder import AutoencoderKL
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Condition, Prompt
from zimage_core.model.sequence import Captions

WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2"}


class NoWaiting(TorchDispatchMode):
    """Raises at operators whose result the processor must have, or that copy from the card to it."""

    def __enter__(self) -> NoWaiting:
        self.patch = mock.patch.object(Tensor, "tolist", self.tolist)  # which calls no operator
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.patch.stop()
        super().__exit__(*error)

    @staticmethod
    def tolist(*_: object) -> None:
        raise AssertionError("tolist waits for the card")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in WAITING and not by_mask, f"{func} waits for the card"
        out = func(*args, **(kwargs or {}))
        given = [leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf.device.type for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        assert "meta" not in given or "cpu" not in made, f"{func} copies from the card"
        return out


def test_the_trap_sees_what_waits() -> None:
    x = torch.ones(3)
    for wait in (
        lambda: x[0].item(),
        lambda: x.tolist(),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: bool(x[0] > 0),
    ):
        with NoWaiting(), pytest.raises(AssertionError, match="waits"):
            wait()
    with NoWaiting(), pytest.raises((AssertionError, NotImplementedError)):
        torch.ones(3, device="meta").cpu()


def conditions(batch: int) -> dict[str, Condition]:
    features = random_inputs(TINY, 1, batch=batch)[2]
    prompt = Prompt(Captions.whole(features))
    of_two_lengths = Prompt(Captions(features, (21, 9)[:batch]))
    pictures = [torch.randn(batch, 16, 8, 8)]
    region = Region(Captions.whole(features[:, :9]), torch.rand(1, 8, 12))
    return {
        "prompt": prompt,
        "lengths": of_two_lengths,
        "references": References.of(prompt, pictures, None, None),
        "regions": Regions(prompt, [region]),
    }


@pytest.mark.parametrize("kind", list(conditions(1)))
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_later_step(kind: str, batch: int) -> None:
    model = random_s3dit(dataclasses.replace(TINY, siglip_feat_dim=48), 1)
    given = {"condition": conditions(batch)[kind], "memo": RunMemo()}
    x = random_inputs(TINY, 1, batch=batch)[0]
    first = model(x, torch.full((batch,), 0.9), **given)
    sigma = torch.full((batch,), 0.8)
    with NoWaiting():
        model(x + first, sigma, **given)


@torch.no_grad()
def test_nothing_is_copied_back() -> None:
    model = S3DiT(TINY, device="meta", dtype=torch.bfloat16)
    x, sigma, features = (t.to("meta") for t in random_inputs(TINY, 1))
    prompt, memo = Prompt(Captions.whole(features.bfloat16())), RunMemo()
    for _ in range(2):
        with NoWaiting():
            model(x.bfloat16(), sigma.clone(), condition=prompt, memo=memo)


def test_the_autoencoder_has_channels_last_on_cards() -> None:
    """In half types; its pictures are the same."""
    config = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    seen = []
    for device, dtype in (("meta", torch.bfloat16), ("meta", torch.float32), ("cpu", torch.bfloat16)):
        network = AutoencoderKL(config, device=device, dtype=dtype)

        def look(_: object, args: tuple[Tensor]) -> None:
            seen.append(args[0].is_contiguous(memory_format=torch.channels_last))

        network.decoder.conv_in.register_forward_pre_hook(look)
        network.encoder.conv_in.register_forward_pre_hook(look)
        with torch.no_grad():
            network.decode(torch.zeros(1, config.z_channels, 4, 4, device=device, dtype=dtype))
            network.encode(torch.zeros(1, 3, 8, 8, device=device, dtype=dtype))
    assert seen == [True, True, False, False, False, False]
