"""Greedy text of ours and of transformers on the same weights, interleaved in one process.

On a GPU the whole Qwen3-4B; on a CPU a few of its layers under its whole vocabulary.
"""

from __future__ import annotations

import statistics

import torch
from transformers import Qwen3ForCausalLM

from bench.rows import row
from tests.core.test_text_encoder import peer_config
from zimage_core import Qwen3Config, Qwen3TextEncoder
from zimage_core.prompt.writing import Sampling, generate, steps

PROMPT, COUNT = 64, 32  # tokens read and written
CPU_SLICE = Qwen3Config(num_hidden_layers=4)
BAR = "<= 1.1"


@torch.inference_mode()
def rows(clock, rounds: int = 7) -> list[dict]:
    """clock(device, call) -> seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = Qwen3Config() if device == "cuda" else CPU_SLICE
    with torch.device(device):
        peer = Qwen3ForCausalLM._from_config(peer_config(config), dtype=torch.bfloat16).eval()
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

    times: dict = {ours: [], theirs: []}
    for call in times:
        call()
    for number in range(rounds):
        for call in (ours, theirs) if number % 2 else (theirs, ours):
            times[call].append(clock(device, call) / COUNT)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    label = f"{where}, bf16, text, {config.num_hidden_layers} of 36 layers"
    ratio = statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
    return [
        row(f"{label}: ours", 1000 * min(times[ours]), "ms per token, best"),
        row(f"{label}: transformers", 1000 * min(times[theirs]), "ms per token, best"),
        row(f"{label}: ours / transformers", ratio, "x, paired median", BAR, "transformers"),
    ]
