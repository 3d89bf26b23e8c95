"""Text from a language model, one token at a time: sampling, the end, choices, and the text as it grows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.text_encoder import KeyValueCache, Qwen3TextEncoder

LONGEST_PIECE = 16  # tokens that may end within a character before the text is given out all the same

# int [1, n], the tokens not seen yet -> [1, vocab_size], the scores of the next
NextLogits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are Qwen3's own for answers without thinking."""

    temperature: float = 0.7  # 0: always the likeliest
    top_k: int = 20  # 0: all
    top_p: float = 0.8
    min_p: float = 0.0  # of the likeliest token's probability
    repetition_penalty: float = 1.0  # on what has been written; the prompt's own words may come again
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """tokens: without the stop token; ended: whether one came, or the cap cut the text off."""

    tokens: list[int]
    ended: bool


def penalised(logits: Tensor, penalty: float, written: Tensor) -> Tensor:
    """Scores [V], float32: those of tokens in `written`, bool [V], are made smaller by the factor."""
    logits = logits.float()
    if penalty == 1.0:
        return logits
    return torch.where(written, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Scores [V] -> the ids and probabilities of what may come next, likeliest first; 0 where it may not.

    Order and meaning as in transformers: temperature, top-k, top-p, min-p.
    """
    scores, ids = (logits / sampling.temperature).topk(min(sampling.top_k or len(logits), len(logits)))
    likely = scores.softmax(dim=0)
    kept = likely >= sampling.min_p * likely[0]
    if sampling.top_p < 1:
        kept &= likely.cumsum(dim=0) - likely < sampling.top_p
        kept[0] = True
    likely = likely * kept
    return ids, likely / likely.sum()


class Sampler:
    """Chooses tokens. Its random numbers come from the seed and the CPU: the same ones for every device."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.written: Tensor | None = None  # bool [V]

    def choose(self, logits: Tensor) -> Tensor:
        """Scores [V] -> the chosen id, int [1], still on its device."""
        if self.written is None:
            self.written = torch.zeros_like(logits, dtype=torch.bool)
        logits = penalised(logits, self.sampling.repetition_penalty, self.written)
        if self.sampling.temperature == 0:
            token = logits.argmax(dim=0, keepdim=True)
        else:
            ids, likely = candidates(logits, self.sampling)
            heaped = likely.cumsum(dim=0)
            drawn = torch.rand(1, generator=self.generator).to(heaped.device, non_blocking=True)
            token = ids[torch.searchsorted(heaped, drawn * heaped[-1])]
        self.written[token] = True
        return token


@torch.inference_mode()
def generate(
    next_logits: NextLogits,
    prompt: Sequence[int],
    sampling: Sampling,
    stop: Collection[int],
    max_tokens: int,
    on_token: Callable[[int], None] | None = None,
    device: torch.device | str = "cpu",
) -> Written:
    """Continues the prompt until a stop token or max_tokens. An exception from on_token ends it at once."""
    sampler, tokens = Sampler(sampling), []
    ids = torch.tensor([list(prompt)], device=device)
    for _ in range(max_tokens):
        chosen = sampler.choose(next_logits(ids)[0])
        token = int(chosen)
        if token in stop:
            return Written(tokens, ended=True)
        tokens.append(token)
        if on_token is not None:
            on_token(token)
        ids = chosen[None]
    return Written(tokens, ended=False)


@torch.inference_mode()
def choose(
    next_logits: NextLogits,
    prompt: Sequence[int],
    allowed: Sequence[Sequence[int]],
    temperature: float,
    seed: int,
    on_choice: Callable[[list[int]], None] | None = None,
    device: torch.device | str = "cpu",
) -> list[int]:
    """Continues the prompt by one token out of each list, drawn from its scores among these alone.

    Returns the place of each in its list; on_choice hears those so far, and its exception ends it at once. At
    temperature 0 the likeliest is taken.
    """
    generator, places = torch.Generator().manual_seed(seed), []
    ids = torch.tensor([list(prompt)], device=device)
    for tokens in allowed:
        scores = next_logits(ids)[0, list(tokens)].float().cpu()
        if temperature == 0:
            place = int(scores.argmax())
        else:
            likely = (scores / temperature).softmax(dim=0)
            place = int(torch.multinomial(likely, 1, generator=generator))
        places.append(place)
        if on_choice is not None:
            on_choice(places)
        ids = torch.tensor([[tokens[place]]], device=device)
    return places


def steps(model: Qwen3TextEncoder, capacity: int, device: torch.device, dtype: torch.dtype) -> NextLogits:
    """The model as `generate` asks for it, with room for `capacity` tokens."""
    cache = KeyValueCache(model.config, capacity, device, dtype)
    return lambda ids: model.next_logits(ids, cache)


class TextStream:
    """Tokens -> text as soon as its characters are whole: a character may be spread over several tokens.

    names: tokens that stand for a text that the tokenizer does not give, or leaves out as special.
    """

    def __init__(self, tokenizer: Any, names: dict[int, str]) -> None:
        self.tokenizer, self.names = tokenizer, names
        self.text = ""
        self.pending: list[int] = []

    def add(self, token: int) -> str:
        """Returns all the text so far."""
        if token in self.names:
            self.finish()
            self.text += self.names[token]
            return self.text
        self.pending.append(token)
        piece = self._decoded()
        if not piece.endswith("\N{REPLACEMENT CHARACTER}") or len(self.pending) >= LONGEST_PIECE:
            self.text += piece
            self.pending.clear()
        return self.text

    def finish(self) -> str:
        """The same, with what is left of an unfinished character."""
        self.text += self._decoded()
        self.pending.clear()
        return self.text

    def _decoded(self) -> str:
        return self.tokenizer.decode(self.pending, skip_special_tokens=True) if self.pending else ""
