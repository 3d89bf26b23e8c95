"""The chat template and tokenisation of the reference: one user turn, thinking on; a system turn if asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import REFERENCE_MAX_TOKENS
from ..model.sequence import real_tokens

BEFORE = "<|im_start|>user\n"
TURN_END = "<|im_end|>"
AFTER = TURN_END + "\n<|im_start|>assistant\n"
IMAGE_BEFORE, IMAGE_AFTER = "<|vision_start|>", "<|vision_end|>"
SYSTEM_BEFORE = "<|im_start|>system\n"
SLOT = "{prompt}"
TEMPLATE = BEFORE + SLOT + AFTER


def apply_template(prompt: str, system_prompt: str = "", template: str = TEMPLATE) -> str:
    """What the text encoder reads. A system prompt becomes a turn of its own, before the template.

    Raises ValueError when the template has no place for the prompt.
    """
    if SLOT not in template:
        raise ValueError(f"the template has no {SLOT}, so the prompt would not be read: {template!r:.80}")
    system = f"{SYSTEM_BEFORE}{system_prompt}{TURN_END}\n" if system_prompt else ""
    return system + template.replace(SLOT, prompt)


def split_prompt(prompt: str, references: int) -> list[str]:
    """The templated prompt in references + 2 segments, each of which the text encoder sees alone.

    An image stands between every two, the picture to be made between the last two. Without references the
    prompt is one segment.
    """
    if references == 0:
        return [apply_template(prompt)]
    return [
        BEFORE + IMAGE_BEFORE,
        *[IMAGE_AFTER + IMAGE_BEFORE] * (references - 1),
        IMAGE_AFTER + prompt + AFTER + IMAGE_BEFORE,
        IMAGE_AFTER + TURN_END,
    ]


def load_tokenizer(folder: str | os.PathLike) -> Any:
    """The Qwen2 tokenizer of a folder with tokenizer.json, or vocab.json and merges.txt.

    Nothing is downloaded. Raises FileNotFoundError where the folder has neither.
    """
    files = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise FileNotFoundError(
            f"{folder} has no tokenizer: expected a folder with tokenizer.json, or with vocab.json and "
            "merges.txt. Take the tokenizer folder of the model's repository."
        )
    from transformers import AutoTokenizer  # takes seconds to import

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@dataclass(frozen=True)
class Tokens:
    """Prompts as the text encoder reads them.

    input_ids, mask: int and bool [B, L], right-padded. cut: how many tokens of each prompt were left out.
    """

    input_ids: Tensor
    mask: Tensor
    cut: list[int]


def tokenise(
    tokenizer: Any,
    prompts: list[str],
    max_tokens: int | None = REFERENCE_MAX_TOKENS,
    system_prompt: str = "",
    template: str = TEMPLATE,
) -> Tokens:
    """Templated prompts, padded to the longest.

    Attention is causal, so padding to 512 as the reference does changes nothing.
    """
    texts = [apply_template(prompt, system_prompt, template) for prompt in prompts]
    return tokenise_texts(tokenizer, texts, max_tokens)


def tokenise_texts(tokenizer: Any, texts: list[str], max_tokens: int | None = REFERENCE_MAX_TOKENS) -> Tokens:
    """Texts as they are, such as the segments of `split_prompt`."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = [torch.tensor(row[:max_tokens]) for row in rows]
    ids = pad_sequence(kept, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = real_tokens([len(row) for row in kept], ids.shape[1])
    return Tokens(ids, mask, [len(row) - len(k) for row, k in zip(rows, kept, strict=True)])
