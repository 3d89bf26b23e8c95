"""The chat template and tokenisation of the reference: one user turn, thinking on, no system turn."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import REFERENCE_MAX_TOKENS

BEFORE = "<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


def apply_template(prompt: str) -> str:
    return BEFORE + prompt + AFTER


def load_tokenizer(folder: str | os.PathLike) -> Any:
    """The Qwen2 tokenizer of a folder with tokenizer.json, or vocab.json and merges.txt. Nothing is
    downloaded.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@dataclass(frozen=True)
class Tokens:
    """input_ids, mask: int and bool [B, L], right-padded; cut: how many tokens of each prompt were left
    out.
    """

    input_ids: Tensor
    mask: Tensor
    cut: list[int]


def tokenise(tokenizer: Any, prompts: list[str], max_tokens: int | None = REFERENCE_MAX_TOKENS) -> Tokens:
    """Templated prompts, padded to the longest: attention is causal, so padding to 512 as the reference does
    changes nothing.
    """
    rows = tokenizer([apply_template(p) for p in prompts], add_special_tokens=False)["input_ids"]
    kept = [row[:max_tokens] for row in rows]
    longest = max(len(row) for row in kept)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in kept])
    lengths = torch.tensor([len(row) for row in kept])
    mask = torch.arange(longest) < lengths[:, None]
    return Tokens(ids, mask, [len(row) - len(k) for row, k in zip(rows, kept, strict=True)])
