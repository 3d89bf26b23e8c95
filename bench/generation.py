"""Greedy text of ours and of transformers on the same weights, interleaved in one process."""

from __future__ import annotations

import math
import statistics

import torch
from transformers import Qwen3ForCausalLM

from bench.rows import row
from bench.timing import interleaved
from tests.core.peers import qwen3_config
from zimage_core import Qwen3Config, Qwen3TextEncoder
from zimage_core.prompt.writing import Sampling, generate, steps

PROMPT, COUNT = 64, 32  # tokens read and written
BAR = "<= 1.1"


@torch.inference_mode()
def rows(config: Qwen3Config, device: str, rounds: int = 7, until: float = math.inf) -> list[dict]:
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

    calls = {"ours": ours, "transformers": theirs}
    times = interleaved(calls, device, rounds, until)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    label = f"{where}, bf16, text, {config.num_hidden_layers} of 36 layers"
    best = {name: 1000 * min(seconds) / COUNT for name, seconds in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["transformers"], strict=True))
    return [
        *(row(f"{label}: {name}", value, "ms per token, best") for name, value in best.items()),
        row(f"{label}: ours / transformers", ratio, "x, paired median", BAR, "transformers"),
    ]
