"""Train the text encoder as a small language model on the captions; afterwards it stays frozen."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Qwen3Config
from ...model.text_encoder import Qwen3TextEncoder
from ...prompt.template import apply_template, split_prompt
from ..plan import Plan
from ..trainer import fit, trained
from .captions import (
    LANGUAGES,
    CaptionSet,
    Concept,
    fill,
    keyword_examples,
    phrasings,
    writing_examples,
)
from .edits import KINDS, Edits, trained_pairs
from .muon import with_muon
from .pictures import NAMES, colours, package
from .shards import Shards

log = logging.getLogger(__name__)

PLAN = Plan(steps=2400, lr=1.5e-3, warmup=50, cooldown=0.6, weight_decay=0.01, ema=0.99, optimizer="muon")
WRITING = Plan(
    steps=4000, lr=2e-3, warmup=50, cooldown=0.6, ema=0.99, optimizer="muon"
)  # the last layer alone
BATCH = 64
MAX_TOKENS = 64
END = "<|endoftext|>"


def plain(caption: str) -> str:
    """A caption as a text of its own."""
    return f"{END}{caption}{END}"


def answered(prompt: str, answer: str) -> str:
    """A prompt in the reference's chat template with the caption that a writer should answer."""
    return f"{apply_template(prompt)}{answer}<|im_end|>"


def texts(data: Path, concepts: list[Concept]) -> list[list[str]]:
    """What the language model reads, in groups that are drawn equally often.

    Held-out phrasings and pairs are in none.
    """
    captions = CaptionSet(concepts)
    palette = colours()
    rewriting = []
    for pair in captions.all():
        if len(pair.fits) == 1:
            language = "en" if pair.caption.isascii() else "zh"
            full, name = phrasings(language, "full")[0], concepts[pair.concept].names[language][0]
            rewriting.append(answered(pair.caption, fill(full, name, palette[pair.fits[0]], language)))
    knowledge, strange = [], []
    ours = {name for concept in concepts for names in concept.names.values() for name in names}
    for language in LANGUAGES:
        rows = json.loads(
            (package(data, NAMES) / "annotations" / language / "annotations.json").read_text("utf-8")
        )
        knowledge += [
            plain(f"{row['tts'][0]}: {', '.join(row['default'])}")
            for row in rows["annotations"]["annotations"].values()
            if row.get("default") and row.get("tts")
        ]
        names = [row["tts"][0] for row in rows["annotations"]["annotations"].values() if row.get("tts")]
        strange += [(language, name) for name in names if name not in ours]
    return [
        [answered(short, full) for short, full in writing_examples(concepts)],
        rewriting,
        [plain(pair.caption) for pair in captions.all()],
        knowledge,
        [answered(words, full) for words, full in keyword_examples(concepts)],
        instruction_texts(concepts),
        copying_texts(strange),
    ]


def copying_texts(names: Sequence[tuple[str, str]], count: int = 20000, seed: int = 0) -> list[str]:
    """Captions of things that have no picture, answered in full.

    Half of them have a colour of their own, which the background must not be taken for.
    names: (language, name).
    """
    generator, palette = torch.Generator().manual_seed(seed), colours()

    def of(rows: Sequence[Any]) -> Any:
        return rows[int(torch.randint(len(rows), (1,), generator=generator))]

    templates = {
        language: [phrasing for kind in ("trained", "short") for phrasing in phrasings(language, kind)]
        for language in LANGUAGES
    }
    texts = []
    for number in range(count):
        (language, name), colour = of(names), of(palette)
        if number % 2:
            own = getattr(of(palette), language)
            name = f"{own} {name}" if language == "en" else own + name
        short, full = of(templates[language]), phrasings(language, "full")[0]
        texts.append(answered(*(fill(text, name, colour, language) for text in (short, full))))
    return texts


def instruction_texts(concepts: list[Concept], count: int = 20000, seed: int = 0) -> list[str]:
    """Editing instructions as the omni prompt has them, and captions of two things."""
    pairs = trained_pairs(concepts, count // 4, seed)
    edits, generator = Edits(concepts, pairs), torch.Generator().manual_seed(seed)
    texts = []
    for number in range(count):
        edit = edits.draw(KINDS[number % len(KINDS)], generator)
        texts.append("".join(split_prompt(edit.instruction, references=1)))
    return texts + [plain(edits.draw_pair(generator)[0]) for _ in pairs]


def encode(tokenizer: Any, group: list[str]) -> Tensor:
    """Texts -> token ids [N, MAX_TOKENS], padded with the end token and then -1 from the first padding on."""
    rows = tokenizer(group, add_special_tokens=False)["input_ids"]
    ids = torch.full((len(rows), MAX_TOKENS), -1)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row[:MAX_TOKENS])
    return ids


def next_token_loss(model: Qwen3TextEncoder, ids: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of each token after the first; ids [B,L] with -1 for padding."""
    scores = model.logits(ids[:, :-1].clamp(min=0))
    return F.cross_entropy(
        scores.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=-1, reduction=reduction
    )


def initialise(model: Qwen3TextEncoder) -> None:
    """Normal weights of 0.02, the usual start of such language models."""
    for p in model.parameters():
        if p.ndim >= 2:
            nn.init.normal_(p, std=0.02)
        else:
            nn.init.ones_(p)


def train(
    config: Qwen3Config,
    groups: list[Tensor],
    state: Path,
    plan: Plan = PLAN,
    batch: int = BATCH,
    device: str = "cpu",
    workers: int = 1,
    start: dict[str, Tensor] | None = None,
    stop_at: int | None = None,
    features: bool = True,
) -> Qwen3TextEncoder:
    """Train on groups of token ids [N,L] (first a group is drawn, then a text); averaged model.

    workers: threads that share each batch, on CPU. start: weights to go on from, random ones when None.
    features: False keeps them as they are and only trains what comes after: how the model writes.
    """
    torch.manual_seed(plan.seed)
    model = Qwen3TextEncoder(config, language_model=True).to(device)
    if not features:
        model.requires_grad_(False)
        model.model.layers[-1].requires_grad_(True)
        model.model.norm.requires_grad_(True)
    if start is None:
        initialise(model)
    else:
        model.load_state_dict(start)
    count = workers if device == "cpu" else 1
    shards = Shards(model, count)

    def backward(step: int, generator: torch.Generator) -> float:
        pick = torch.randint(len(groups), (batch,), generator=generator).tolist()
        ids = torch.stack(
            [groups[g][int(torch.randint(len(groups[g]), (1,), generator=generator))] for g in pick]
        )
        longest = int((ids >= 0).sum(1).max())
        pieces = ids[:, :longest].to(device).chunk(count)
        return shards.backward([partial(next_token_loss, ids=piece) for piece in pieces])

    model.load_state_dict(
        fit(trained(model), backward, plan, state, None, stop_at, with_muon(plan)), strict=features
    )
    return model.eval()


@torch.no_grad()
def perplexity(model: Qwen3TextEncoder, ids: Tensor, batch: int = 128) -> float:
    """Of texts [N,L] padded with -1, per token after the first."""
    total = sum(float(next_token_loss(model, chunk, "sum")) for chunk in ids.split(batch))
    return math.exp(total / int((ids[:, 1:] >= 0).sum()))


def unigram_perplexity(training: Tensor, ids: Tensor, vocab_size: int) -> float:
    """Of the same texts under token frequencies of the training texts, with one added to every count."""
    counts = Counter(training[:, 1:][training[:, 1:] >= 0].tolist())
    total = sum(counts.values()) + vocab_size
    wanted = ids[:, 1:][ids[:, 1:] >= 0].tolist()
    return math.exp(-sum(math.log((counts[t] + 1) / total) for t in wanted) / len(wanted))
