"""Greedy text of ours and of transformers on the same weights, in turns in one process."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM

from bench.cases import Case
from bench.counts import CACHE_NAMES
from bench.forwards import device_name
from bench.paired import measure
from bench.paired import rows as paired_rows
from tests.core.peers import qwen3_config
from zimage_core import Qwen3Config, Qwen3TextEncoder
from zimage_core.model.arithmetic import cpu_multiplies
from zimage_core.model.text_encoder import KeyValueCache
from zimage_core.prompt.writing import NextLogits, Sampling, generate, steps

PROMPT, COUNT, LATER = 64, 32, 8  # tokens read, written in a run, and of a run that has begun
BAR, BAR_ON_A_CPU_WITH_BF16 = "<= 1.0", "<= 0.6"


@torch.inference_mode()
def rows(config: Qwen3Config, device: str, rounds: int = 7, until: float = math.inf) -> Iterator[dict]:
    with torch.device(device):
        peer = Qwen3ForCausalLM._from_config(qwen3_config(config), dtype=torch.bfloat16).eval()
    model = Qwen3TextEncoder(config, "meta", torch.bfloat16, language_model=True)
    model.load_state_dict(
        {name: value for name, value in peer.state_dict().items() if name in model.state_dict()}, assign=True
    )
    prompt = list(range(1000, 1000 + PROMPT))
    ids = torch.tensor([prompt], device=device)
    greedy = Sampling(temperature=0)

    def ours() -> list[int]:
        next_logits = steps(model, PROMPT + COUNT, torch.device(device), torch.bfloat16)
        return generate(next_logits, prompt, greedy, (), COUNT, device=device).tokens

    def theirs() -> list[int]:
        made = peer.generate(ids, do_sample=False, min_new_tokens=COUNT, max_new_tokens=COUNT)
        return made[0, PROMPT:].tolist()

    cache = KeyValueCache(config, PROMPT + LATER, torch.device(device), torch.bfloat16)
    model.next_logits(ids, cache)
    names = [name for name in inspect.signature(peer.forward).parameters if name in CACHE_NAMES]
    kept = {(names or CACHE_NAMES)[0]: DynamicCache(config=peer.config)}
    peer(ids, **kept)

    def our_later() -> Tensor:
        cache.length = PROMPT
        return greedily(ids[:, -1:], lambda token: model.next_logits(token, cache))

    def their_later() -> Tensor:
        given = copy.deepcopy(kept)  # of the prompt alone, which is little beside the weights
        return greedily(ids[:, -1:], lambda token: peer(token, logits_to_keep=1, **given).logits[:, -1])

    calls = {"ours": ours, "transformers": theirs}
    layers = (config.num_hidden_layers, Qwen3Config().num_hidden_layers)
    case = Case("writing", "bf16", tokens=COUNT, layers=layers)
    quick = device == "cpu" and cpu_multiplies(torch.bfloat16)
    bars = {"transformers": BAR_ON_A_CPU_WITH_BF16 if quick else BAR}
    yield from paired_rows(case, device_name(device), measure(calls, device, rounds, until), bars)
    later = {"ours": our_later, "transformers": their_later}
    case, bars = Case("later_tokens", "bf16", tokens=LATER, layers=layers), {"transformers": BAR}
    yield from paired_rows(case, device_name(device), measure(later, device, rounds, until), bars)


def greedily(token: Tensor, next_logits: NextLogits) -> Tensor:
    """The token [1, 1] after so many that follow the given one."""
    for _ in range(LATER):
        token = next_logits(token).argmax(dim=-1, keepdim=True)
    return token
