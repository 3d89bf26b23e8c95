"""On CPUs with and without arithmetic of bf16: in which type each part computes, and what memory that takes.

Both kinds are played on any machine by saying what this one has. Nothing is timed.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.peak import Peak
from tests.core.random_models import random_inputs, random_s3dit, randomise, relative, seeds
from tests.core.test_text_encoder import peer_of
from zimage_core import AutoencoderKL, Qwen3Config, Qwen3TextEncoder, S3DiT, S3DiTConfig, ZImagePipeline
from zimage_core.config import AutoencoderConfig, VisionConfig
from zimage_core.model import arithmetic, fused, operations
from zimage_core.model.arithmetic import compute_dtype
from zimage_core.model.text_encoder import KeyValueCache
from zimage_core.model.vision import VisionEncoder
from zimage_core.prompt.template import load_tokenizer
from zimage_core.prompt.writing import Sampling, generate, steps
from zimage_core.train.nano.shards import Shards

CPU = torch.device("cpu")
TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "nano" / "tokenizer"
BF16, FP32 = torch.bfloat16, torch.float32
KINDS = {"with bf16": {"avx512_bf16": True}, "without": {"avx2": True}}
DIT = S3DiTConfig(dim=256, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=128)
WRITER = Qwen3Config(
    vocab_size=900, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
VISION = VisionConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, max_num_patches=16
)
PRODUCTS = {F.linear, F.conv2d, torch.conv2d, F.scaled_dot_product_attention}


class Types(TorchFunctionMode):
    """Counts the types of the activations that come to layers and to attention."""

    def __init__(self) -> None:
        self.found: Counter[torch.dtype] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            self.found[args[0].dtype] += 1
            assert args[0].dtype == args[1].dtype
        return function(*args, **(kwargs or {}))


def play(monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool]) -> None:
    monkeypatch.setattr(arithmetic, "cpu_instructions", lambda: instructions)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    play(monkeypatch, KINDS[request.param])
    return request.param


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, KINDS["without"])


@pytest.mark.parametrize(
    ("instructions", "bf16", "fp16"),
    [
        ({}, FP32, FP32),
        ({"avx512_f": True, "avx512_bf16": False}, FP32, FP32),
        ({"avx512_bf16": True}, BF16, FP32),
        ({"amx_bf16": True, "amx_fp16": True}, BF16, torch.float16),
        ({"neon": True, "bf16": True}, BF16, FP32),
    ],
    ids=["nothing", "avx512", "avx512_bf16", "amx", "ARM"],
)
def test_the_type_to_compute_in(instructions, bf16, fp16, monkeypatch) -> None:
    play(monkeypatch, instructions)
    assert [compute_dtype(stored, CPU) for stored in (BF16, torch.float16, FP32)] == [bf16, fp16, FP32]
    assert compute_dtype(BF16, torch.device("cuda")) == BF16


def test_an_older_torch_names_one_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        older = SimpleNamespace(_is_avx512_bf16_supported=lambda has=has: has)
        monkeypatch.setattr(torch, "cpu", older)
        assert compute_dtype(BF16, CPU) == (BF16 if has else FP32)
    monkeypatch.setattr(torch, "cpu", SimpleNamespace())
    assert compute_dtype(BF16, CPU) == FP32


def test_layers_follow_their_input() -> None:
    """Against torch's own layers with the same weights in float32; the weights stay as they are."""
    torch.manual_seed(seeds(1)[0])
    picture, tokens = torch.randn(2, 32, 5, 5), torch.randn(2, 3, 32)
    pairs = [
        (operations.Linear(32, 48), nn.Linear(32, 48), tokens),
        (operations.RMSNorm(32, eps=1e-5), nn.RMSNorm(32, eps=1e-5), tokens),
        (operations.LayerNorm(32), nn.LayerNorm(32), tokens),
        (operations.Conv2d(32, 8, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1), picture),
        (operations.GroupNorm(4, 32), nn.GroupNorm(4, 32), picture),
    ]
    for ours, theirs, x in pairs:
        ours.bfloat16()
        theirs.load_state_dict({name: value.float() for name, value in ours.state_dict().items()})
        assert torch.equal(ours(x), theirs(x)), type(ours).__name__
        assert {p.dtype for p in ours.parameters()} == {BF16}
        assert ours(x.bfloat16()).dtype == BF16


def test_what_stands_for_a_norm_has_its_weight_in_the_inputs_type() -> None:
    norm = operations.RMSNorm(32, eps=1e-5).bfloat16()
    for dtype in (FP32, BF16):
        found = fused.weight_of(norm, torch.ones(1, 32, dtype=dtype))
        assert found.dtype == dtype and torch.equal(found.bfloat16(), norm.weight)


def test_a_large_weight_is_never_whole_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not divide evenly, a bias, and a gradient through it."""
    monkeypatch.setattr(operations, "CONVERTED", 7 * 64 * 4)  # seven rows
    torch.manual_seed(seeds(1)[0])
    weight, bias, x = torch.randn(200, 64).bfloat16(), torch.randn(200).bfloat16(), torch.randn(3, 64)
    with Peak() as tracker:
        out = operations.linear(x, weight, bias)
    whole = weight.nelement() * 4
    assert tracker.peak <= out.nbytes + operations.CONVERTED + 7 * 4 + 3 * 7 * 4 < whole
    expected = F.linear(x, weight.float(), bias.float())
    assert relative(out, expected) <= 1e-6
    x.requires_grad_(True)
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (
        lambda x: operations.linear(x, weight, bias), lambda x: F.linear(x, weight.float(), bias.float())
    ))  # fmt: skip
    assert relative(ours, theirs) <= 1e-6


def test_a_forward_needs_one_layer_beside_its_weights() -> None:
    """bf16 weights and float32 activations, against all of it in float32."""
    config = S3DiTConfig(dim=1152, n_layers=2, n_refiner_layers=1, n_heads=9, cap_feat_dim=320)
    model = random_s3dit(config, seeds(1)[0]).bfloat16()
    inputs = random_inputs(config, seeds(1)[0])

    def peak(network: S3DiT) -> tuple[Tensor, int]:
        with torch.no_grad(), Peak() as tracker:
            return network(*inputs), tracker.peak

    found, needed = peak(model)
    expected, plain = peak(copy.deepcopy(model).float())
    largest = 4 * max(p.nelement() for p in model.parameters())
    made = 4 * 64 * operations.CONVERTED // (4 * config.dim)  # of 64 tokens, by the rows converted at once
    assert needed - plain <= operations.CONVERTED + made + 2**12 < largest
    assert relative(found, expected) <= 1e-6


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    """Random parts in bf16."""
    tokenizer = load_tokenizer(TOKENIZER)
    encoder = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    parts = (S3DiT(DIT), Qwen3TextEncoder(encoder), AutoencoderKL(AutoencoderConfig(ch=32)))
    return ZImagePipeline(*(randomise(part, seeds(1)[0]).bfloat16() for part in parts), tokenizer)


def in_float32(pipeline: ZImagePipeline) -> ZImagePipeline:
    parts = (pipeline.transformer, pipeline.text_encoder, pipeline.autoencoder)
    return ZImagePipeline(*(copy.deepcopy(part).float() for part in parts), pipeline.tokenizer)


def test_a_picture_in_the_type_that_the_cpu_multiplies(kind: str, pipeline: ZImagePipeline) -> None:
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(seeds(1)[0]))
    run = {"latents": noise, "num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}
    with Types() as types:
        made = pipeline("a red fox", output_type="pt", **run).images
    assert set(types.found) == {BF16 if kind == "with bf16" else FP32}
    parts = (pipeline.transformer, pipeline.text_encoder, pipeline.autoencoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {BF16}
    expected = in_float32(pipeline)("a red fox", output_type="pt", **run).images
    assert made.dtype == FP32
    if kind == "without":
        assert relative(made, expected) <= 1e-4


def test_what_a_picture_holds_for_the_vision_encoder(kind: str) -> None:
    vision = randomise(VisionEncoder(VISION), seeds(1)[0]).bfloat16()
    exact, image = copy.deepcopy(vision).float(), torch.rand(1, 64, 64, 3)
    with torch.no_grad(), Types() as types:
        found = vision.features(image)
    assert set(types.found) == {BF16 if kind == "with bf16" else FP32}
    layers = vision.vision_model.encoder.parameters()
    assert {p.dtype for p in layers} == {BF16}
    if kind == "without":
        with torch.no_grad():
            assert relative(found, exact.features(image)) <= 1e-5


@pytest.fixture(scope="module")
def writer() -> Qwen3TextEncoder:
    return randomise(Qwen3TextEncoder(WRITER, language_model=True), seeds(1)[0]).bfloat16()


def test_a_prompt_is_read_in_float32_and_a_token_in_bf16(kind: str, writer: Qwen3TextEncoder) -> None:
    """A token is bound by reading the weights once, as they are: on no CPU is one of them converted."""
    products = 1 + WRITER.num_hidden_layers * 8  # with attention and the head
    cache = KeyValueCache(WRITER, 40, CPU, BF16)
    prompt = torch.randint(WRITER.vocab_size, (1, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with Types() as types:
            writer.next_logits(prompt, cache)
        reading = {BF16: products} if kind == "with bf16" else {FP32: products - 1, BF16: 1}
        assert {dtype: n for dtype, n in types.found.items()} == reading
        with Types() as types, Peak() as tracker:
            writer.next_logits(prompt[:, :1], cache)
    assert types.found == {BF16: products}
    smallest = 2 * min(p.nelement() for p in writer.parameters() if p.ndim == 2)
    assert tracker.peak < smallest


def test_scores_are_as_near_as_those_of_transformers_in_bf16(kind: str) -> None:
    """Of eight tokens after a prompt, over some seeds; both against float64 on the same weights."""
    errors = []
    for seed in seeds(4):
        model = randomise(Qwen3TextEncoder(WRITER, language_model=True), seed).bfloat16()
        ids = torch.randint(WRITER.vocab_size, (1, 48), generator=torch.Generator().manual_seed(seed))
        cache = KeyValueCache(WRITER, ids.shape[1], CPU, BF16)
        with torch.no_grad():
            ours = [model.next_logits(ids[:, :40], cache)]
            ours += [model.next_logits(ids[:, i : i + 1], cache) for i in range(40, 48)]
            theirs = peer_of(model).bfloat16()(ids).logits[:, 39:]
            exact = peer_of(copy.deepcopy(model).double()).double()(ids).logits[:, 39:]
        errors.append((relative(torch.stack(ours, dim=1), exact), relative(theirs, exact)))
    mine, peers = (sum(column) for column in zip(*errors, strict=True))
    assert mine <= 1.05 * peers, (mine, peers)


def test_text_comes_to_its_end(kind: str, writer: Qwen3TextEncoder) -> None:
    made = generate(steps(writer, 48, CPU, BF16), list(range(32)), Sampling(temperature=0), (), 16)
    assert len(made.tokens) == 16


def test_training_in_the_type_that_the_cpu_multiplies(kind: str) -> None:
    model = nn.Linear(4, 4)
    shards = Shards(model, 2)
    assert {p.dtype for copied in shards.copies for p in copied.parameters()} == {
        BF16 if kind == "with bf16" else FP32
    }
    shards.backward([lambda shard: shard(torch.ones(1, 4, dtype=shard.weight.dtype)).sum()] * 2)
    assert model.weight.grad.dtype == FP32 and torch.equal(model.weight.grad, torch.ones(4, 4))
