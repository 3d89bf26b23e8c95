"""Fused steps of a block, by kernels in Triton's interpreter and by torch, against float64."""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.operators import OTHER, called_by
from tests.core.peers import reference_of
from tests.core.random_models import TINY, random_inputs, random_s3dit, relative, seeds
from zimage_core import S3DiT
from zimage_core.conditions.references import References
from zimage_core.model import fused, kernels, modulation
from zimage_core.model.modulation import modulations
from zimage_core.model.rope import rotate, rotate_in_type
from zimage_core.model.sequence import Weights

CPU = torch.device("cpu")
SHORT = dataclasses.replace(TINY, n_layers=1)  # the interpreter is slow
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels on the CPU, by the interpreter that conftest.py asks for."""
    monkeypatch.setattr(fused, "READY", {CPU})
    with torch.no_grad():
        yield


def random(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def turned(x: Tensor, table: Tensor) -> Tensor:
    return torch.einsum("bshdij,bshdj->bshdi", table.double(), x.unflatten(-1, (-1, 2))).flatten(-2)


# What going to a type costs once, relative L2. Triton's interpreter cuts off where a card rounds.
ONCE = {torch.float32: 3e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("batches", [(1, 1), (3, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", seeds(1))
def test_kernels_round_once(
    interpreted: None, dtype: torch.dtype, batches: tuple[int, int], seed: int
) -> None:
    batch, factors = batches
    x, y, weight, factor = random(seed, dtype, (batch, 5, 96), (batch, 5, 96), (96,), (factors, 1, 96))
    whole = (batch, 5, 7, 64)
    heads, q_weight, k_weight = random(seed, dtype, whole, (64,), (64,))
    (table,) = random(seed, torch.float32, (factors, 5, 1, 32, 2, 2))
    q, k, v = heads.split((3, 3, 1), dim=2)
    truth = [
        (kernels.norm_scale(x, weight, factor, EPS), normed(x, weight) * factor.double()),
        (kernels.norm_gate_add(y, x, weight, factor, EPS), y.double() + normed(x, weight) * factor.double()),
        (kernels.swiglu(x, y), F.silu(x.double()) * y.double()),
        (q, turned(normed(q, q_weight), table)),
        (k, turned(normed(k, k_weight), table)),
        (v, v.double()),
    ]
    kernels.norm_rotate(q, k, q_weight, k_weight, table, EPS)
    for result, expected in truth:
        assert result.dtype == dtype
        assert relative(result, expected) <= ONCE[dtype]


def test_parts_of_tensors_and_long_rows(interpreted: None) -> None:
    """Tokens that lie apart, and a width that is no power of two."""
    x, weight, factor = random(1, torch.float32, (1, 9, 3840), (3840,), (1, 1, 3840))
    part = x[:, 2:7]
    expected = normed(part, weight) * factor.double()
    assert relative(kernels.norm_scale(part, weight, factor, EPS), expected) <= 3e-7
    apart = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert relative(kernels.swiglu(apart, apart), F.silu(x.double()) * x.double()) <= 3e-7


class AsOnACard:
    """The kernels with bfloat16 rounded as on cards: they run in float32, and torch rounds what they give."""

    def __getattr__(self, name: str) -> Callable:
        def call(*args: Tensor | float) -> Tensor | None:
            wide = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
            out = getattr(kernels, name)(*wide)
            if out is not None:
                return out.bfloat16()
            args[0].copy_(wide[0]), args[1].copy_(wide[1])  # q and k, in their place
            return None

        return call


def plain_and_fused(seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Errors to float64 of bfloat16 velocities: of the fused forms over that of one layer after the other."""
    model = random_s3dit(TINY, seed)
    x, sigma, caption = random_inputs(TINY, seed, size=(4, 8))
    truth = reference_of(model)(x[0], float(sigma[0]), caption[0])[None]
    model, given = model.bfloat16(), (x.bfloat16(), sigma, caption.bfloat16())

    def error(few: bool = False, **changes: object) -> float:
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(modulation, "in_few", lambda c: few)
            for name, value in changes.items():
                patch.setattr(fused, name, value)
            return relative(model(*given), truth)

    plain = error(WEIGHT_OF={})
    return {
        "folded": error() / plain,
        "short rotation": error(rotate=rotate_in_type) / plain,
        "few operators": error(few=True) / plain,
        "kernels": error(READY={CPU}, kernels=AsOnACard) / plain,
    }


def test_errors_are_no_larger_than_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [plain_and_fused(seed, monkeypatch) for seed in seeds(4)]
    for form in found[0]:
        assert statistics.median(one[form] for one in found) <= 1.05, (form, found)


def test_short_rotation_keeps_the_type() -> None:
    (x,), (table,) = random(1, torch.bfloat16, (2, 5, 3, 64)), random(2, torch.float32, (1, 5, 1, 32, 2, 2))
    short = rotate_in_type(x, table)
    assert short.dtype == x.dtype and short.shape == x.shape
    assert relative(short, turned(x.double(), table)) <= 1.5 * 2**-9
    assert relative(rotate(x, table), turned(x.double(), table)) <= 2**-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_q_and_k_are_normed_and_turned_together(dtype: torch.dtype) -> None:
    """In operators for both, of which none takes them apart from v; v is left as it was."""
    heads, q_weight, k_weight = random(1, dtype, (2, 5, 9, 64), (64,), (64,))
    (table,) = random(2, torch.float32, (1, 5, 1, 32, 2, 2))
    given, norms = heads.clone(), [nn.RMSNorm(64, eps=EPS)] * 2
    with torch.no_grad():
        pair = Weights(both=torch.stack((q_weight, k_weight)))
        made = fused.turned(heads, (3, 3), norms, pair, table)
    assert torch.equal(heads, given)
    for result, part, weight in zip(made, heads.split(3, dim=2), (q_weight, k_weight), strict=False):
        assert result.shape == part.shape and result.dtype == dtype
        assert relative(result, turned(normed(part, weight), table)) <= 1.1 * ONCE[dtype]


def test_modulations_of_all_blocks_are_those_of_each() -> None:
    model = random_s3dit(TINY, 1)
    c = torch.randn(2, model.config.t_dim)
    together = modulations(model.layers, c)
    for block, scales in zip(model.layers, together, strict=True):
        scale_a, gate_a, scale_m, gate_m = block.adaLN_modulation(c).unsqueeze(1).chunk(4, dim=-1)
        expected = (1 + scale_a, gate_a.tanh(), 1 + scale_m, gate_m.tanh())
        assert all(torch.equal(a, b) for a, b in zip(scales.factors, expected, strict=True))


RAMP = torch.linspace(0.5, 1.5, TINY.dim)


class Ramped(nn.RMSNorm):
    """A norm of somebody else's."""

    def forward(self, x: Tensor) -> Tensor:
        return RAMP[: x.shape[-1]] * super().forward(x)


@pytest.mark.parametrize("form", ["torch", "few operators", "kernels"])
def test_norms_that_are_more_than_their_weight_are_called(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook and a class of others: what they do has its effect."""
    monkeypatch.setattr(fused, "READY", {CPU} if form == "kernels" else set())
    monkeypatch.setattr(modulation, "in_few", lambda c: form == "few operators")
    given = random_inputs(SHORT, 1, size=(4, 8))
    with torch.no_grad():
        usual = random_s3dit(SHORT, 1)(*given)
        for name in ("attention_norm1", "ffn_norm2", "attention.q_norm", "attention.k_norm"):
            model = random_s3dit(SHORT, 1)
            norm = model.layers[0].get_submodule(name)
            norm.register_forward_hook(lambda _, args, out: RAMP[: out.shape[-1]] * out)
            hooked = model(*given)
            assert relative(hooked, usual) > 1e-3
            model = random_s3dit(SHORT, 1)
            other = Ramped(norm.weight.shape, eps=norm.eps)
            other.load_state_dict(norm.state_dict())
            model.layers[0].set_submodule(name, other)
            assert relative(model(*given), hooked) < 1e-6


@pytest.mark.parametrize("form", ["few operators", "kernels"])
def test_reference_images_and_batches(interpreted: None, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of two times, and samples of different times, are the same in every form."""
    if form == "few operators":
        monkeypatch.setattr(fused, "READY", set())
        monkeypatch.setattr(modulation, "in_few", lambda c: True)
    config = dataclasses.replace(SHORT, siglip_feat_dim=48)
    model = random_s3dit(config, 3)
    x, sigma, caption = random_inputs(config, 3, batch=2, size=(4, 8))
    from zimage_core.model.s3dit import Prompt
    from zimage_core.model.sequence import Captions

    prompt = Prompt(Captions.whole(caption))
    conditions = [prompt, References.of(prompt, [torch.randn(2, 16, 8, 8)], None, None)]
    for condition in conditions:
        made = model(x, sigma, condition=condition)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "READY", set())
            patch.setattr(modulation, "in_few", lambda c: False)
            assert relative(made, model(x, sigma, condition=condition)) < 1e-5


def test_gradients_do_not_go_through_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "READY", {CPU})
    model = random_s3dit(TINY, 1).requires_grad_(True)
    model(*random_inputs(TINY, 1)).square().mean().backward()
    assert all(p.grad is not None for name, p in model.layers.named_parameters())


def test_six_operators_a_block() -> None:
    """Of a forward with another block, by what is neither a product nor attention."""

    def others(layers: int) -> int:
        model = S3DiT(dataclasses.replace(TINY, n_layers=layers), device="meta", dtype=torch.bfloat16)
        x, sigma, caption = (t.to("meta", torch.bfloat16) for t in random_inputs(TINY, 1))
        return sum(call.kind == OTHER for call in called_by(lambda: model(x, sigma, caption)))

    assert others(3) - others(2) == 6


def test_a_card_where_kernels_are_wrong_goes_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert fused.error_of_kernels(CPU) < fused.CLOSE
    card = torch.device("cuda", 0)
    monkeypatch.setattr(fused, "READY", set())
    for error in (0.5, float("nan")):
        monkeypatch.setattr(fused, "error_of_kernels", lambda device, error=error: error)
        fused.look_for_kernels.cache_clear()
        fused.look_for_kernels(card)
        assert not fused.READY and "without its fused kernels" in caplog.text

    def broken(device: torch.device) -> float:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(fused, "error_of_kernels", broken)
    fused.look_for_kernels.cache_clear()
    fused.look_for_kernels(card)
    assert not fused.READY and "no compiler here" in caplog.text
    monkeypatch.setattr(fused, "error_of_kernels", lambda device: 1e-7)
    fused.look_for_kernels.cache_clear()
    fused.look_for_kernels(card)
    assert {card} == fused.READY
    fused.look_for_kernels.cache_clear()


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "zimage_core.model.kernels")
    monkeypatch.setattr(fused, "READY", set())
    fused.kernels.cache_clear()
    fused.look_for_kernels.cache_clear()
    fused.look_for_kernels(torch.device("meta"))
    assert fused.kernels() is None and not fused.READY
    monkeypatch.undo()
    fused.kernels.cache_clear()
    fused.look_for_kernels.cache_clear()
    importlib.import_module("zimage_core.model.kernels")
