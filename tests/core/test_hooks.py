"""What hooks around the blocks see and may do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.core.random_models import TINY, random_inputs, random_s3dit, relative, seeds
from zimage_core import S3DiT
from zimage_core.conditions.control import Control
from zimage_core.model.hooks import BlockCall, BlockHook, Options
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions, Span

(SEED,) = seeds(1)
THREE = replace(TINY, n_layers=3)


class Recorder(BlockHook):
    """Writes down its calls, and those of others with the same list."""

    def __init__(self, name: str, events: list[tuple]) -> None:
        self.name, self.events = name, events

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        self.events.append((self.name, "enter", stack))
        return hidden, span

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        self.events.append((self.name, "before", stack, index))
        hidden = call(hidden, span)
        self.events.append((self.name, "after", stack, index))
        return hidden

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        self.events.append((self.name, "leave", stack))
        return hidden


def test_the_first_hook_is_the_outermost() -> None:
    model, events = random_s3dit(TINY, SEED), []
    inputs = random_inputs(TINY, SEED)
    made = model(*inputs, hooks=[Recorder("outer", events), Recorder("inner", events)])
    assert torch.equal(made, model(*inputs))
    stack = "layers"
    block = [
        [("outer", "before", stack, i), ("inner", "before", stack, i)]
        + [("inner", "after", stack, i), ("outer", "after", stack, i)]
        for i in range(TINY.n_layers)
    ]
    expected = [("outer", "enter", stack), ("inner", "enter", stack), *sum(block, [])]
    expected += [("inner", "leave", stack), ("outer", "leave", stack)]
    assert [event for event in events if event[2] == stack] == expected


def test_hooks_see_every_stack_and_captions_only_once_in_a_run() -> None:
    model, events, memo = random_s3dit(TINY, SEED), [], RunMemo()
    x, sigma, caption = random_inputs(TINY, SEED)
    prompt = Prompt(Captions.whole(caption))
    steps = []
    for _ in range(2):
        model(x, sigma, condition=prompt, memo=memo, hooks=[Recorder("one", events)])
        steps.append([stack for _, kind, stack, *_ in events if kind == "enter"])
        events.clear()
    assert steps == [["context_refiner", "noise_refiner", "layers"], ["noise_refiner", "layers"]]


class FirstOnly(BlockHook):
    """Runs the first layer and none of the others."""

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        return hidden if stack == "layers" and index else call(hidden, span)


def test_a_hook_may_leave_blocks_out() -> None:
    """As the model that has no more layers."""
    model = random_s3dit(THREE, SEED)
    short = S3DiT(replace(THREE, n_layers=1))
    short.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith(("layers.1", "layers.2"))}
    )
    inputs = random_inputs(THREE, SEED)
    made = model(*inputs, hooks=[FirstOnly()])
    assert torch.equal(made, short(*inputs))
    assert relative(made, model(*inputs)) > 1e-2


class PlainAttention(BlockHook):
    """Attention written out in float64, in place of the one of the model."""

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        return hidden, span._replace(attend=self.attend)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict) -> Tensor:
        q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores.masked_fill(~bias, -torch.inf)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2).float()


def test_a_hook_may_bring_its_own_attention() -> None:
    """Also where captions of different lengths need a mask."""
    model = random_s3dit(TINY, SEED)
    x, sigma, caption = random_inputs(TINY, SEED, batch=2, length=40)
    mask = torch.arange(40) < torch.tensor([40, 9])[:, None]
    made = model(x, sigma, caption, attention_mask=mask, hooks=[PlainAttention()])
    assert relative(made, model(x, sigma, caption, attention_mask=mask)) <= 1e-6
    assert not torch.equal(made, model(x, sigma, caption, attention_mask=mask)), "it was not called"


def test_options_reach_attention_in_every_stack() -> None:
    model, seen = random_s3dit(TINY, SEED), []
    options = {"anything": object()}
    for block in (*model.context_refiner, *model.noise_refiner, *model.layers):
        attend = block.attention.attend
        block.attention.attend = lambda *given, attend=attend: seen.append(given[-1]) or attend(*given)
    model(*random_inputs(TINY, SEED), transformer_options=options)
    assert len(seen) == 2 * TINY.n_refiner_layers + TINY.n_layers
    assert all(given is options for given in seen)


def test_a_hook_with_state_of_one_forward_may_not_be_captured() -> None:
    """A recorded step would replay the control tokens of another."""
    assert Options({}).capturable
    assert not Control(torch.nn.Module(), torch.zeros(1)).capturable
