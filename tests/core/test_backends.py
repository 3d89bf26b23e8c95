"""Attention by architecture: what is asked for where, and that it is the same attention."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.random_models import TINY, random_inputs, random_s3dit, relative
from zimage_core.conditions.packed import Packed
from zimage_core.conditions.regions import Region, Regions
from zimage_core.model import backends
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

CPU = torch.device("cpu")
VARLEN = "torch.nn.attention.varlen"  # which not every torch has


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backends, "CHOSEN", {})
    monkeypatch.setattr(backends, "PACKED", {})
    monkeypatch.setattr(backends, "cudnn_version", lambda: backends.CUDNN)
    for name in ("flash_attn", "flash_attn_interface", VARLEN):
        monkeypatch.setitem(sys.modules, name, None)
    yield


def tensors(heads: int = 3, kv_heads: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 5, n, 16, generator=generator).to(dtype) for n in (heads, kv_heads, kv_heads)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v.double())


class Package(ModuleType):
    """What flash-attn and FlashAttention 3 have in common, and the calls that it got."""

    def __init__(self, name: str, sums: bool) -> None:
        super().__init__(name)
        self.calls, self.sums = 0, sums

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.calls += 1
        out = plain(q, k, v).to(q.dtype)
        return (out, out.new_zeros(1)) if self.sums else out


@pytest.mark.parametrize(
    ("major", "cudnn"), [(7, False), (8, False), (9, True), (10, True), (12, False), (None, False)]
)
def test_cudnn_where_it_is_faster(major: int | None, cudnn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (backends.chosen(major) is backends.cudnn_first) == cudnn
    monkeypatch.setattr(backends, "cudnn_version", lambda: 91002)
    assert backends.chosen(major) is None


@pytest.mark.parametrize("sums", [False, True], ids=["one result", "sums as well"])
@pytest.mark.parametrize(("name", "major"), [("flash_attn_interface", 9), ("flash_attn", 8)])
def test_packages_where_they_are_installed(
    name: str, major: int, sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run what they can; masks and float32 stay with torch."""
    package = Package(name, sums)
    monkeypatch.setitem(sys.modules, name, package)
    attend = backends.chosen(major)
    half = tensors(dtype=torch.bfloat16)
    assert relative(attend(*half, None), plain(*half)) < 1e-2 and package.calls == 1
    wide = tensors()
    assert relative(attend(*wide, None), plain(*wide)) < 1e-6
    seen = torch.tensor([True] * 4 + [False])[None, None, None]
    masked = attend(*half, seen)
    assert relative(masked, plain(half[0], *(t[:, :4] for t in half[1:]))) < 1e-2
    assert package.calls == 1
    for other in {7, 8, 9, 10, 12} - {major, 12 if major == 8 else major}:
        assert backends.chosen(other) in (None, backends.cudnn_first)


def test_heads_that_share_keys_are_not_repeated() -> None:
    """The kernel gets as many keys and values as there are."""
    q, k, v = tensors(heads=6, kv_heads=2)
    seen = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        seen.update(heads=(q.shape[1], k.shape[1], v.shape[1]), **options)
        return q

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        backends.attention(q, k, v, None)
        assert seen["heads"] == (6, 2, 2) and seen["enable_gqa"]
        seen.clear()
        backends.attention(q, *tensors(6, 6)[1:], None)
        assert "enable_gqa" not in seen
    repeated = plain(q, *(t.repeat_interleave(3, dim=2) for t in (k, v)))
    assert relative(backends.attention(q, k, v, None), repeated) < 1e-6


def test_a_network_takes_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def attend(*given: Tensor | None) -> Tensor:
        calls.append(given[0].shape)
        return backends.by_torch(*given)

    model, given = random_s3dit(TINY, 1), random_inputs(TINY, 1)
    expected = model(*given)
    monkeypatch.setattr(backends, "CHOSEN", {("cpu", None): attend})
    assert torch.equal(model(*given), expected)
    assert len(calls) == TINY.n_layers + 2 * TINY.n_refiner_layers


def test_cudnn_first_is_asked_for_in_order() -> None:
    """And torch's own order is back afterwards."""
    before = torch._C._get_sdp_priority_order()
    seen = []

    def attend(q: Tensor, *_: Tensor, **__: object) -> Tensor:
        seen.append(torch._C._get_sdp_priority_order()[: len(backends.ORDER)])
        return q

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        backends.cudnn_first(*tensors(), None)
    assert seen == [[int(kernel.value) for kernel in backends.ORDER]]
    assert torch._C._get_sdp_priority_order() == before


class Varlen(ModuleType):
    """A module with the function for sequences one behind the other that torch and both packages have."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(name)
        self.calls: list[list[int]] = []
        setattr(self, function, self.run)

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_starts: Tensor,
        k_starts: Tensor,
        q_longest: int,
        k_longest: int,
    ) -> Tensor:
        """Exactly, from the starts alone."""
        assert q_starts.dtype == k_starts.dtype == torch.int32 and torch.equal(q_starts, k_starts)
        assert q.ndim == k.ndim == v.ndim == 3 and int(q_starts[-1]) == len(q) == len(k) == len(v)
        self.calls.append(q_starts.tolist())
        out, lengths = torch.empty_like(q), q_starts.diff().tolist()
        assert q_longest == k_longest == max(lengths)
        for start, length in zip(q_starts.tolist(), lengths, strict=False):
            part = slice(start, start + length)
            out[part] = plain(q[None, part], k[None, part], v[None, part])[0].to(q.dtype)
        return out


@pytest.mark.parametrize(
    ("major", "installed", "cudnn", "expected"),
    [
        (8, (), False, VARLEN),
        (8, ("flash_attn",), False, "flash_attn"),
        (9, ("flash_attn",), True, None),  # cuDNN, for each sequence by itself, is faster
        (9, ("flash_attn_interface",), True, "flash_attn_interface"),
        (9, (), False, VARLEN),
        (10, (), True, None),
        (12, ("flash_attn",), True, "flash_attn"),
        (7, ("flash_attn",), True, None),
        (None, ("flash_attn",), True, None),
    ],
)
def test_a_kernel_for_sequences_one_behind_the_other(
    major: int | None,
    installed: tuple[str, ...],
    cudnn: bool,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "cudnn_version", lambda: backends.CUDNN if cudnn else 0)
    modules = {name: Varlen(name, "flash_attn_varlen_func") for name in installed}
    modules[VARLEN] = Varlen(VARLEN, "varlen_attn")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert backends.packs(major) == (modules[expected].run if expected else None)
    without = modules[expected].run if expected not in (None, VARLEN) else None
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
        assert backends.packs(major) == without
    monkeypatch.setitem(sys.modules, VARLEN, None)
    assert backends.packs(major) == without


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(8, 12), (16, 16)], ids=str)  # the first has learned tokens
@torch.no_grad()
def test_two_captions_in_one_pass_go_through_it(
    size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half types; float32, masks and keys that heads share are left to each sequence by itself."""
    kernel = Varlen(VARLEN, "varlen_attn")
    model = random_s3dit(TINY, 1)
    x, sigma, caption = random_inputs(TINY, 1, batch=batch, size=size, length=40)
    conditions = [Prompt(Captions.whole(c)) for c in (caption, caption[:, :7])]
    expected = model(x, sigma, condition=Packed(conditions))
    monkeypatch.setattr(backends, "CHOSEN", {("cpu", None): None})
    monkeypatch.setattr(backends, "PACKED", {("cpu", None): kernel.run})
    assert torch.equal(model(x, sigma, condition=Packed(conditions)), expected) and not kernel.calls
    monkeypatch.setattr(backends, "HALF", (torch.float32,))
    assert relative(model(x, sigma, condition=Packed(conditions)), expected) < 1e-6
    image = size[0] * size[1] // 4
    image += -image % TINY.pad_multiple
    joint = [0, 64 + image, 64 + image + 32 + image]
    rows = [start + row * joint[-1] for row in range(batch) for start in joint[:-1]] + [batch * joint[-1]]
    assert kernel.calls.count(rows) == TINY.n_layers
    region = Regions(conditions[1], [Region(Captions.whole(caption[:1, :9]), torch.rand(1, 4, 4))])
    kernel.calls.clear()
    model(x, sigma, condition=Packed([conditions[0], region]))
    assert all(len(starts) <= 2 * batch + 1 and starts[-1] == 2 * batch * image for starts in kernel.calls)
    grouped = random_s3dit(dataclasses.replace(TINY, n_kv_heads=1), 1)
    kernel.calls.clear()
    grouped(x, sigma, condition=Packed(conditions))
    assert not kernel.calls
