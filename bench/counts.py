"""What noise cannot touch: operators, bytes, multiplications, and how often a run computes what it keeps."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace
from unittest import mock

import torch
from transformers import DynamicCache, Qwen3ForCausalLM

from bench import limits
from bench.networks import inputs, our_run
from bench.operators import OTHER, Operator, Operators, called_by
from bench.rates import H200
from bench.rows import row
from tests.core.peers import diffusers_of, diffusers_velocity, qwen3_config
from tests.core.random_models import TINY, random_inputs, random_s3dit
from zimage_core import Qwen3Config, Qwen3TextEncoder, S3DiT, S3DiTConfig
from zimage_core.conditions.packed import Packed
from zimage_core.model import fused
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.model.text_encoder import KeyValueCache

MODEL = S3DiTConfig(dim=1152, n_layers=2, n_refiner_layers=1, n_heads=9, cap_feat_dim=320)
CACHE_NAMES = ("cache", "past_key_values")  # in newer and older versions of transformers
WRITER = Qwen3Config(
    vocab_size=900, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


def written(calls: list[Operator]) -> int:
    return sum(operator.written for operator in calls)


def forward_rows() -> list[dict]:
    model = random_s3dit(MODEL, 1).bfloat16()
    peer = diffusers_of(model)
    x, sigma, caption = random_inputs(MODEL, 1, size=(32, 32), length=64)
    x, caption = x.bfloat16(), caption.bfloat16()
    run = {"condition": Prompt(Captions.whole(caption)), "memo": RunMemo()}
    model(x, sigma, **run)
    with Operators() as ours:
        model(x, sigma.clone(), **run)
    with Operators() as theirs:
        diffusers_velocity(peer, x, sigma, [caption[0]])
    on_meta = S3DiT(MODEL, device="meta")
    flops = sum(o.flops for o in called_by(lambda: on_meta(*(t.to("meta") for t in (x, sigma, caption)))))
    bytes_written = written(ours.calls) / written(theirs.calls)
    blocks = 2 * MODEL.n_refiner_layers + MODEL.n_layers
    expected = sum(limits.forward(MODEL, 256, 64, refined=False))
    label = "bf16 forward, 512x512, 2 layers"
    return [
        row(f"{label}: operators", len(ours.calls) / len(theirs.calls), "x", "<= 0.8", "diffusers"),
        row(f"{label}: operators a block", len(ours.calls) / blocks, ""),
        row(f"{label}: bytes written", bytes_written, "x", "<= 1.05", "diffusers"),
        row(f"{label}: FLOPs", flops / expected, "x", "<= 1.02", "the formula"),
    ]


def card_rows() -> list[dict]:
    """What a later step at 1024x1024 has on an H200 beside products and attention."""
    meta = torch.device("meta")
    fused.look_for_kernels(meta)  # which is done once, and not again in the forwards below
    model, rows = S3DiT(S3DiTConfig(), device=meta, dtype=torch.bfloat16), []
    for form, ready, bars in (
        ("by kernels", {meta}, ("<= 5.4", "<= 215")),
        ("by torch alone", set(), ("<= 10.2", "<= 410")),
    ):
        run = our_run(model, *inputs(model.config, 1024, "meta", torch.bfloat16), RunMemo())
        with mock.patch.object(fused, "READY", ready):
            for sigma in (torch.empty(1, device=meta), torch.empty(1, device=meta)):
                calls = called_by(lambda run=run, sigma=sigma: run(sigma))
        others = [call for call in calls if call.kind == OTHER]
        milliseconds = 1000 * sum(H200.seconds(call) for call in others)
        label = f"bf16 step, 1024x1024, {OTHER} {form}"
        rows.append(row(f"{label}: predicted on an H200", milliseconds, "ms", bars[0]))
        rows.append(row(f"{label}: operators", len(others), "", bars[1]))
    return rows


def guided_rows() -> list[dict]:
    """A guided step with captions of two lengths, when all that a run keeps is there."""
    model = random_s3dit(replace(TINY, n_layers=10), 1)
    x, sigma, caption = random_inputs(TINY, 1, size=(16, 16), length=40)
    conditions, called = [Prompt(Captions.whole(c)) for c in (caption, caption[:, :7])], []
    for passes in (conditions, [Packed(conditions)]):
        memo = RunMemo()
        for step in range(2):
            timesteps = sigma - 0.1 * step
            with Operators() as operators:
                for condition in passes:
                    model(x, timesteps, condition=condition, memo=memo)
        called.append(len(operators.calls))
    apart, together = called
    return [row("operators of a guided step, packed", together / apart, "x", "<= 0.55", "two passes")]


def run_rows() -> list[dict]:
    """Eight guided steps: two captions, sixteen forwards."""
    model = random_s3dit(TINY, 1)
    counts: Counter = Counter()
    parts = {"caption refiner": model.context_refiner[0], "timestep embedder": model.t_embedder}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: counts.update([name]))
    x, _, caption = random_inputs(TINY, 1, length=40)
    memo, conditions = RunMemo(), [Prompt(Captions.whole(c)) for c in (caption, caption[:, :7])]
    for sigma in torch.linspace(1, 0.2, 8):
        timesteps = sigma.repeat(1)
        for condition in conditions:
            model(x, timesteps, condition=condition, memo=memo)
    return [
        row("caption refinements in 8 guided steps", counts["caption refiner"], "", "== 2"),
        row("timestep embeddings in 8 guided steps", counts["timestep embedder"], "", "== 8"),
    ]


def token_rows() -> list[dict]:
    """A written token after a prompt."""
    peer = Qwen3ForCausalLM(qwen3_config(WRITER)).bfloat16().eval()
    model = Qwen3TextEncoder(WRITER, "meta", torch.bfloat16, language_model=True)
    state = peer.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    prompt, token = torch.arange(64)[None], torch.zeros(1, 1, dtype=torch.int64)
    kept = KeyValueCache(WRITER, 65, torch.device("cpu"), torch.bfloat16)
    names = [name for name in inspect.signature(peer.forward).parameters if name in CACHE_NAMES]
    theirs_kept = {(names or CACHE_NAMES)[0]: DynamicCache(config=peer.config)}
    model.next_logits(prompt, kept)
    peer(prompt, **theirs_kept)
    with Operators() as ours:
        model.next_logits(token, kept)
    with Operators() as theirs:
        peer(token, **theirs_kept)
    bytes_written = written(ours.calls) / written(theirs.calls)
    label = f"bf16 token, {WRITER.num_hidden_layers} layers"
    return [
        row(f"{label}: operators", len(ours.calls) / len(theirs.calls), "x", "<= 1.0", "transformers"),
        row(f"{label}: bytes written", bytes_written, "x", "<= 0.5", "transformers"),
    ]


@torch.no_grad()
def run() -> list[dict]:
    return [*forward_rows(), *card_rows(), *token_rows(), *guided_rows(), *run_rows()]
