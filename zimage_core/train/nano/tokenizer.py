"""A small byte-level BPE tokenizer in the Qwen2 format, learned from the captions and CLDR's names."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .captions import LANGUAGES, Concept, fill, phrasings
from .pictures import NAMES, colours, package

# at the end of the vocabulary, in this order; the first is the padding
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<think>",
    "</think>",
)

# Qwen2's split into words, single digits, punctuation and white space, before bytes are merged
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(data: Path, concepts: list[Concept]) -> list[str]:
    """Names, keywords and phrasings.

    Each name meets few phrasings, so that merges are words and not whole captions.
    """
    palette = colours()
    lines = ["user\n", "assistant\n", "system\n"] * 50
    for language in LANGUAGES:
        rows = json.loads(
            (package(data, NAMES) / "annotations" / language / "annotations.json").read_text("utf-8")
        )
        for row in rows["annotations"]["annotations"].values():
            lines += row.get("tts", []) + row.get("default", [])
        templates = [t for kind in ("trained", "short", "bare", "full") for t in phrasings(language, kind)]
        for index, concept in enumerate(concepts):
            for name in concept.names[language]:
                lines += [name, " " + name] * 8
                lines += [
                    fill(
                        templates[(index + k) % len(templates)],
                        name,
                        palette[(index + k) % len(palette)],
                        language,
                    )
                    for k in (1, 2)
                ]
        lines += [fill(t, "x", c, language) for t in templates for c in palette] * 6
    return lines


def train_tokenizer(lines: list[str], vocab_size: int, folder: Path) -> None:
    """Learn `vocab_size` tokens, special ones included, and write what transformers and ComfyUI read."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    if bpe.get_vocab_size() != vocab_size - len(SPECIAL_TOKENS):
        raise ValueError(
            f"the texts give {bpe.get_vocab_size()} tokens, {vocab_size - len(SPECIAL_TOKENS)} were wanted"
        )
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))  # vocab.json and merges.txt
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    bpe.save(str(folder / "tokenizer.json"))
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(bpe.token_to_id(token)): {"content": token, **plain, "special": True} for token in SPECIAL_TOKENS
    }
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:5]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
