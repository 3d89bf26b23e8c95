"""Tokens and encodings of the host's CLIP: cut, kept, joined to batches."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import comfy.sd
import torch
import torch.nn.functional as F

from ....zimage_core.config import REFERENCE_MAX_TOKENS, S3DiTConfig
from ....zimage_core.model.sequence import Captions
from ....zimage_core.prompt.syntax import EMBEDDING, unix_lines
from ....zimage_core.prompt.template import TEMPLATE, apply_template
from ..built_in import vocabulary
from ..loading.clip import NanoTokenizer
from ..running.first_not_finite import check_features

KEPT_TOKENS = 8192  # of each text encoder: 84 MB at full size
NAMED = 6  # unknown words in a note
AS_IT_IS = "{}"  # the host's word for a template that adds nothing
BASE_PATCHES = {"manual_cast_dtype"}  # newer hosts set this on every CLIP

Conditioning = list[list]  # the host's: [features [B, L, width], {"attention_mask": [B, L], ...}] per entry


class Encodings:
    """The latest encodings of one text encoder, as many as KEPT_TOKENS allows."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Conditioning] = OrderedDict()

    def get(self, key: Hashable) -> Conditioning | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, conditioning: Conditioning) -> None:
        self._kept[key] = conditioning
        while sum(c.shape[1] for entry in self._kept.values() for c, _ in entry) > KEPT_TOKENS:
            self._kept.popitem(last=False)


_encodings: weakref.WeakKeyDictionary[torch.nn.Module, Encodings] = weakref.WeakKeyDictionary()


def tokens_of(clip: Any, text: str, system_prompt: str = "", template: str = "") -> dict:
    """The host's tokens of a templated prompt.

    Raises ValueError without a CLIP, and when the template has no place for the prompt.
    """
    if clip is None:
        raise ValueError(
            "clip is empty: the checkpoint that it comes from has no text encoder. Use the Z-Image loader."
        )
    text, system_prompt, template = map(unix_lines, (text, system_prompt, template))
    if EMBEDDING.search(text) and not text[-1:].isspace():
        text += " "  # 0.3.75 takes what the template puts after the text for a part of the embedding's name
    if not system_prompt and not template:
        return _without_foreign_embeddings(clip, clip.tokenize(text))
    text = apply_template(text, system_prompt, template or TEMPLATE)
    return _without_foreign_embeddings(clip, clip.tokenize(text, llama_template=AS_IT_IS))


def _without_foreign_embeddings(clip: Any, tokens: dict) -> dict:
    """Embeddings as wide as this encoder's only: ComfyUI would pad in their place, and some models fail."""
    wide = getattr(_tokenizer(clip), "embedding_size", None)
    return {
        name: [
            [pair for pair in chunk if not torch.is_tensor(pair[0]) or len(pair[0]) == wide] for chunk in rows
        ]
        for name, rows in tokens.items()
    }


def _tokenizer(clip: Any) -> Any:
    """The one inside the host's tokenizer that knows about embeddings."""
    return getattr(clip.tokenizer, getattr(clip.tokenizer, "clip", ""), None)


def length_note(prompts: list[dict], max_tokens: int) -> str:
    """How long the prompts are, and what of the longest is or would be cut; that goes into the log too."""
    counts = [sum(len(chunk) for chunks in tokens.values() for chunk in chunks) for tokens in prompts]
    longest = max(counts)
    note = f"{longest} tokens"
    if len(counts) > 1:
        note = f"{len(counts)} prompts of {min(counts)} to {longest} tokens"
    more = longest - REFERENCE_MAX_TOKENS
    if max_tokens and longest > max_tokens:
        note += f", cut at {max_tokens}: {longest - max_tokens} are not read"
    elif more > 0:
        note += (
            f", {more} more than the reference pipeline reads; none are cut here. Long prompts take longer: "
            f"max_tokens {REFERENCE_MAX_TOKENS} cuts them"
        )
    if more > 0:
        logging.warning("Z-Image prompt: %s", note)
    return note


def cut(tokens: dict, longest: int) -> dict:
    """The first tokens, as the reference cuts: what the template puts after the prompt goes first."""
    return {name: [chunk[:longest] for chunk in chunks] for name, chunks in tokens.items()}


def encode(clip: Any, tokens: dict) -> Conditioning:
    """The host's encoding; the same tokens with the same weights and patches are encoded once."""

    def encoded() -> Conditioning:
        return clip.encode_from_tokens_scheduled(tokens)

    key = _key(clip, tokens)
    if key is None:
        conditioning = encoded()
        check_features(clip, conditioning, encoded)
        return conditioning
    kept = _encodings.setdefault(clip.cond_stage_model, Encodings())
    conditioning = kept.get(key)
    if conditioning is None:
        conditioning = encoded()
        check_features(clip, conditioning, encoded)
        kept.put(key, conditioning)
    return [[features, dict(extra)] for features, extra in conditioning]  # nodes write into these


def _key(clip: Any, tokens: dict) -> Hashable | None:
    """None where something may change the result that a key does not tell: hooks, injections, embeddings."""
    if not isinstance(clip, comfy.sd.CLIP):
        return None
    patcher = clip.patcher
    hooks = (
        clip.use_clip_schedule or clip.apply_hooks_to_conds or patcher.forced_hooks or patcher.hook_patches
    )
    if hooks or patcher.injections or patcher.object_patches.keys() - BASE_PATCHES:
        return None
    chunks = tuple((name, tuple(chunk)) for name, rows in tokens.items() for chunk in rows)
    if not all(isinstance(token, int) for _, chunk in chunks for token, _ in chunk):
        return None
    return patcher.patches_uuid, clip.layer_idx, chunks


def joined(conditionings: list[Conditioning]) -> Conditioning:
    """Conditionings of one prompt each -> one batch, with an attention mask where lengths differ."""
    return [_joined(list(entries)) for entries in zip(*conditionings, strict=True)]


def _joined(entries: list[list]) -> list:
    captions = Captions.joined([Captions.masked(f, e.get("attention_mask")) for f, e in entries])
    features, mask = captions.features, captions.mask
    if not mask.all():  # 0.3.75's own Z-Image fails on lengths that are no multiple
        missing = -features.shape[1] % S3DiTConfig.pad_multiple
        features, mask = F.pad(features, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    extra = {key: value for key, value in entries[0][1].items() if key != "attention_mask"}
    if not mask.all():
        extra["attention_mask"] = mask.long()
    return [features, extra]


def vocabulary_note(clip: Any, text: str) -> list[str]:
    """A sentence about the words that the built-in model has never read; other encoders know any."""
    unknown = vocabulary().unknown(text) if isinstance(clip.tokenizer, NanoTokenizer) else []
    if not unknown:
        return []
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return [
        f"nano does not know {', '.join(unknown[:NAMED])}{more}: it draws {len(vocabulary().things)} things, "
        "models/nano/README.md lists them"
    ]


def unusable_embeddings(clip: Any, names: list[str]) -> dict[str, str]:
    """Which textual inversions the host leaves out, and why."""
    tokenizer = _tokenizer(clip)
    if getattr(tokenizer, "embedding_directory", None) is None:
        return dict.fromkeys(names, "is read as words: this text encoder takes no embeddings")
    reasons = {}
    for name in names:
        tokens = clip.tokenize(f"embedding:{name} ", llama_template=AS_IT_IS)
        vectors = [
            t for chunks in tokens.values() for chunk in chunks for t, _ in chunk if torch.is_tensor(t)
        ]
        if not vectors:
            reasons[name] = "is left out: there is no such file in models/embeddings"
        elif len(vectors[0]) != tokenizer.embedding_size:
            reasons[name] = (
                f"is left out: it is {len(vectors[0])} wide, this text encoder {tokenizer.embedding_size}"
            )
    return reasons
