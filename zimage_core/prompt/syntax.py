"""What people write into a prompt beside words: several prompts, embeddings, and weights of words."""

from __future__ import annotations

import re

DIVIDER = re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
EMBEDDING = re.compile(r"(?<!\S)embedding:([^\s<\[]+)")
PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)  # or something escaped, which is none
WEIGHT = re.compile(r"-?(\d+\.?\d*|\.\d+)")


def several_prompts(text: str) -> list[str]:
    """One prompt per line; or, where lines of `---` divide the text, one per block.

    Empty ones do not count, but there is always one prompt.
    """
    parts = DIVIDER.split(text) if DIVIDER.search(text) else text.splitlines()
    return [part.strip() for part in parts if part.strip()] or [""]


def weighted_words(text: str) -> list[str]:
    """The places written like (word:1.2), without repeats; (16:9) is a ratio."""
    phrases, opened = {}, []
    for mark in PARENTHESIS.finditer(text):
        if mark[0] == "(":
            opened.append(mark.start())
        elif mark[0] == ")" and opened:
            start = opened.pop()
            words, _, weight = text[start + 1 : mark.start()].rpartition(":")
            if WEIGHT.fullmatch(weight) and any(c.isalpha() for word in words.split()[-1:] for c in word):
                phrases[text[start : mark.end()]] = None
    return list(phrases)


def embedding_names(text: str) -> list[str]:
    """The names of textual inversions written like embedding:name, without repeats."""
    return list(dict.fromkeys(name.rstrip(",") for name in EMBEDDING.findall(text)))
