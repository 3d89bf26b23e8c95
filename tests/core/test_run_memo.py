"""What a run computes once: the same bits as each time anew, and the count that proves it was once."""

from __future__ import annotations

from collections import Counter

import torch

from tests.core.random_models import TINY, random_inputs, random_s3dit, seeds
from zimage_core import S3DiT
from zimage_core.model import s3dit
from zimage_core.model.memo import RunMemo, StepMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions


def count_calls(model: S3DiT, counts: Counter) -> None:
    for name in ("context_refiner", "t_embedder", "noise_refiner"):
        part = getattr(model, name)
        for module in part if name != "t_embedder" else [part]:
            module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    for block in [*model.noise_refiner, *model.layers]:
        block.adaLN_modulation.register_forward_hook(lambda *_: counts.update(["adaLN"]))


def run(model: S3DiT, remember: bool, monkeypatch=None) -> tuple[torch.Tensor, Counter]:
    """Six steps of a guided run: two captions of different lengths, two forwards a step."""
    x, _, caption = random_inputs(TINY, 5, length=40)
    negative = caption[:, :7]
    memo, conditions = RunMemo(), [Prompt(Captions.whole(c)) for c in (caption, negative)]
    counts: Counter = Counter()
    count_calls(model, counts)
    if monkeypatch:
        table = s3dit.rope_table
        monkeypatch.setattr(s3dit, "rope_table", lambda *a: counts.update(["rope"]) or table(*a))
    sigmas = torch.linspace(1, 0.2, 6)
    for sigma in sigmas:
        timesteps = sigma.repeat(1)
        for condition in conditions:
            given = {"condition": condition, "memo": memo} if remember else {}
            x = x - 0.1 * model(x, timesteps, None if given else condition.captions.features, **given)
    return x, counts


def test_bit_identical_and_counted(monkeypatch) -> None:
    (seed,) = seeds(1)
    with torch.no_grad():
        fresh, every_time = run(random_s3dit(TINY, seed), remember=False)
        kept, once = run(random_s3dit(TINY, seed), remember=True, monkeypatch=monkeypatch)
    assert torch.equal(fresh, kept)
    refiners, modulated = TINY.n_refiner_layers, TINY.n_refiner_layers + TINY.n_layers
    assert every_time == {
        "context_refiner": 12 * refiners,
        "noise_refiner": 12 * refiners,
        "t_embedder": 12,
        "adaLN": 12 * modulated,
    }
    assert once == {
        "context_refiner": 2 * refiners,  # one for each caption
        "noise_refiner": 12 * refiners,  # depends on the latent: every time
        "t_embedder": 6,  # one for each timestep, shared by both captions
        "adaLN": 6 * modulated,
        "rope": 4,  # caption and image table, for each caption length
    }


def test_another_size_dtype_or_batch_is_computed_anew() -> None:
    model = random_s3dit(TINY, 3)
    memo = RunMemo()
    x, sigma, caption = random_inputs(TINY, 3, batch=2)
    caption = caption[:1]
    condition = Prompt(Captions.whole(caption))
    for latent, time in ((x, sigma), (x[..., :4], sigma), (x[:1], sigma[:1]), (x.double(), sigma)):
        kept = model.to(latent.dtype)(latent, time, condition=condition, memo=memo)
        assert torch.equal(kept, model(latent, time, caption.expand(len(latent), -1, -1)))


def test_modulation_goes_with_its_timestep() -> None:
    memo = StepMemo()
    timestep = torch.ones(1)
    assert memo.once(timestep, "key", lambda: "first") == "first"
    assert memo.once(timestep, "key", lambda: "second") == "first"
    assert memo.once(torch.ones(1), "key", lambda: "other") == "other"
    del timestep
    assert not memo._kept  # its timestep was freed, and so is it
