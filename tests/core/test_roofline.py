"""Predictions: what an operator costs, and that all that a forward does is counted."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from bench import called, roofline, table
from bench.called import NEW
from bench.operators import ATTENTION, OTHER, PRODUCT, TORCH_CHOOSES, Operator, called_by
from bench.rates import H200, LAUNCH, Card
from bench.rows import prediction, row
from zimage_core import S3DiTConfig

BF16 = {"dtype": torch.bfloat16, "device": "meta"}
TOY = Card("toy", {"bfloat16": 2.0}, {"flash": 1.0}, "flash", 0.5, 1.0)


@torch.library.custom_op("zimage_bench_test::shifted", mutates_args=("state",))
def shifted(x: torch.Tensor, weight: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    state.add_(1)
    return x * weight + 1


@torch.library.custom_op("zimage_bench_test::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


@shifted.register_fake
def _(x, weight, state):
    return torch.empty_like(x)


@product.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[1])


@register_flop_formula(torch.ops.zimage_bench_test.product)
def product_flops(x_shape, weight_shape, *_, out_shape=None, **__) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[1]


def flops(calls: called.Calls, kind: str) -> int:
    return sum(n * o.flops for o, n in calls.items() if o.kind == kind)


def test_flops_of_the_whole_model_equal_the_sum_over_its_layers() -> None:
    """At 512x512 with 96 caption tokens, refined before: 1024 image tokens, 1120 in all."""
    image, joint, dim, ffn, t = 1024, 1120, 3840, 10240, 256
    linears = 3 * dim * dim + dim * dim + 3 * dim * ffn
    blocks = 2 * (2 * image + 30 * joint) * linears
    modulation = 2 * t * (32 * 4 * dim + dim)
    embedded = 2 * image * (64 * dim) * 2 + 2 * (256 * 1024 + 1024 * t)
    calls = called.of_ours(S3DiTConfig(), 512)[NEW]
    assert flops(calls, PRODUCT) == blocks + modulation + embedded
    assert flops(calls, ATTENTION) == 4 * dim * (2 * image**2 + 30 * joint**2)
    roofline.check(calls, 512)


def test_a_product_that_is_not_counted_is_missed() -> None:
    calls = called.of_ours(S3DiTConfig(n_layers=29), 512)[NEW]
    with pytest.raises(RuntimeError, match="register_flop_formula"):
        roofline.check(calls, 512)


def test_diffusers_does_the_same_attention_and_the_caption_refiners() -> None:
    ours, theirs = (of(S3DiTConfig(), 512)[NEW] for of in (called.of_ours, called.of_diffusers))
    refiner = 4 * 3840 * 2 * 96**2
    assert flops(theirs, ATTENTION) - flops(ours, ATTENTION) == refiner


X = torch.empty(4, 8, **BF16)  # 64 bytes
ROW = torch.empty(8, **BF16)  # 16
CASES = {  # what runs: operators beside products, bytes read, bytes written
    "sum": (lambda: X + X, 1, 128, 64),
    "broadcast": (lambda: X + ROW, 1, 80, 64),
    "expanded": (lambda: X + ROW.expand(4, 8), 1, 80, 64),
    "in place": (lambda: X.mul_(ROW), 1, 80, 64),
    "slice": (lambda: X[:2] * 2, 1, 32, 32),
    "copy": (lambda: torch.empty_like(X).copy_(X), 1, 64, 64),
    "filled": (lambda: torch.empty_like(X).fill_(1), 1, 0, 64),
    "joined": (lambda: torch.cat((X, X)), 1, 128, 128),
    "cast": (lambda: X.float(), 1, 64, 128),
    "into": (lambda: torch.add(X, X, out=torch.empty_like(X)), 1, 128, 64),
    "norm": (lambda: F.rms_norm(X, (8,), ROW, 1e-5), 1, 80, 64),
    "norm of what lies apart": (lambda: F.rms_norm(X[:, :4], (4,), ROW[:4], 1e-5), 2, 32 + 32 + 8, 32 + 32),
    "layer norm of the same": (lambda: F.layer_norm(X[:, :4], (4,)), 2, 32 + 32, 32 + 32 + 16 + 16),
    "two results": (lambda: torch.var_mean(X.float(), dim=-1), 2, 64 + 128, 128 + 16 + 16),
    "views": (lambda: X.t().reshape(2, 16).unsqueeze(0).chunk(2), 1, 64, 64),  # one has to copy
    "only views": (lambda: (X.view(2, 16), X[None], X.expand(2, 4, 8), X.split(2), X.detach()), 0, 0, 0),
    "gated": (lambda: F.silu(X) * X, 2, 64 + 128, 128),
    "custom": (lambda: torch.ops.zimage_bench_test.shifted(X, ROW, ROW), 1, 64 + 16 + 16, 64 + 16),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_and_bytes(case: str) -> None:
    call, count, read, written = CASES[case]
    calls = called_by(call)
    assert {o.kind for o in calls} <= {OTHER}
    assert (len(calls), sum(o.read for o in calls), sum(o.written for o in calls)) == (count, read, written)


def test_a_custom_operator_with_a_formula_is_a_product() -> None:
    (found,) = called_by(lambda: torch.ops.zimage_bench_test.product(X, X.t()))
    assert found == Operator("product", PRODUCT, "bfloat16", 2 * 4 * 8 * 4, 128, 32)


def test_attention_is_one_operator_of_the_kernel_that_is_asked_for() -> None:
    q = torch.empty(1, 30, 64, 128, **BF16)
    mask = torch.empty(1, 1, 64, 64, **BF16)
    flash_first = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]

    def found(*backends: SDPBackend, mask: torch.Tensor | None = None, q: torch.Tensor = q) -> Operator:
        def call() -> None:
            with sdpa_kernel(list(backends), set_priority=True):
                F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

        (operator,) = called_by(call if backends else lambda: F.scaled_dot_product_attention(q, q, q))
        return operator

    assert found().by == TORCH_CHOOSES
    assert found().flops == 4 * 30 * 64 * 64 * 128 and found().kind == ATTENTION
    assert found().read == 3 * found().written == 3 * 30 * 64 * 128 * 2
    assert found(*flash_first).by == "flash"
    assert found(SDPBackend.CUDNN_ATTENTION).by == "cudnn"
    assert found(*flash_first, mask=mask).by == "cudnn"
    assert found(*flash_first, q=q.float()).by == "math"


def test_an_operator_takes_the_longest_of_launch_bytes_and_flops() -> None:
    assert TOY.seconds(Operator("add", OTHER, "", 0, 8, 8)) == LAUNCH
    assert TOY.seconds(Operator("add", OTHER, "", 0, 10**9, 10**9)) == pytest.approx(4e-3)
    assert TOY.seconds(Operator("mm", PRODUCT, "bfloat16", 10**12, 8, 8)) == pytest.approx(0.5)
    assert TOY.seconds(Operator("mm", PRODUCT, "bfloat16", 10**6, 10**9, 0)) == pytest.approx(2e-3)
    assert TOY.seconds(Operator("sdpa", ATTENTION, TORCH_CHOOSES, 10**12, 8, 8)) == pytest.approx(1.0)


def test_the_limit_of_the_largest_card() -> None:
    """1024x1024: 47.40 TFLOP of products at 790 and 8.61 of attention at 630 TFLOP/s."""
    products = 2 * (2 * 4096 + 30 * 4192) * (4 * 3840**2 + 3 * 3840 * 10240)
    attention = 4 * 3840 * (2 * 4096**2 + 30 * 4192**2)
    assert roofline.limit(H200, 1024) == pytest.approx(products / 790e9 + attention / 630e9)


def test_what_torch_chooses_is_flash_where_hosts_put_it_first() -> None:
    chosen = Operator("sdpa", ATTENTION, TORCH_CHOOSES, 1, 1, 1)
    asked = chosen._replace(by="cudnn")
    other = Operator("add", OTHER, "", 0, 1, 1)
    assert roofline.flash_first(Counter([chosen, asked, other, other])) == {
        chosen._replace(by="flash"): 1,
        asked: 1,
        other: 2,
    }


def test_hidden_packages_are_not_found() -> None:
    with mock.patch.dict(sys.modules):
        called.hide(["colorsys"])
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")


def test_eight_bits_are_for_the_products_of_blocks() -> None:
    """The rest keeps its type and its time."""
    card = Card("toy", {"bfloat16": 1.0, "int8": 4.0}, {"flash": 1.0}, "flash", 1e9, 1.0)
    block, small = 2 * 4096 * 3840 * 11520, 2 * 4096 * 64 * 3840
    product, other = Operator("mm", PRODUCT, "bfloat16", block, 0, 0), Operator("mul", OTHER, "", 0, 8, 8)
    calls = Counter({product: 3, product._replace(flops=small): 1, other: 5})
    narrow = roofline.in_eight_bits(card, calls, 1024)
    saved = 3 * (card.seconds(product) - card.seconds(product._replace(by="int8")))
    assert roofline.milliseconds(card, narrow) == pytest.approx(
        roofline.milliseconds(card, calls) - 1000 * saved
    )
    assert narrow[other] == 5 and narrow[product._replace(flops=small)] == 1
    assert roofline.in_eight_bits(TOY, calls, 1024) is None


def test_a_prediction_is_shown_as_one() -> None:
    predicted = prediction("forward", 102.9, "ms", "FA2")
    assert predicted["predicted"] is True and predicted["bar"] is None and predicted["holds"] is None
    assert "predicted" in table.shown(predicted)
    assert "predicted" not in table.shown(row("forward", 102.9, "ms", "<= 200"))


def test_rows_are_written_as_they_come(tmp_path) -> None:
    path, said = tmp_path / "new" / "rows.json", []

    def rows():
        yield row("first", 1.0, "x", "<= 2")
        assert '"first"' in path.read_text()
        yield row("second", 3.0, "x", "<= 2")

    assert table.publish(rows(), said.append, path) is False
    assert "holds" in said[1] and "DOES NOT HOLD" in said[2]
