"""What people write into a prompt beside words: several prompts, embeddings, and other programs' syntax."""

from __future__ import annotations

import re

DIVIDER = re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
EMBEDDING = re.compile(r"(?<!\S)embedding:([^\s<\[]+)")
PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)  # or something escaped, which is none
WEIGHT = re.compile(r"-?(\d+\.?\d*|\.\d+)")
LORA_LOADER = "Put the prompt through Z-Image LoRA Loader"
ELSEWHERE = (  # syntax of other programs -> what it is here
    (r"<(?:lora|lyco|hypernet):[^<>\n]*>", f"loads nothing here: it is read as text. {LORA_LOADER}"),
    (r"(?<!\w)__[A-Za-z0-9_/-]{1,200}?__(?!\w)", "is read as text here: Z-Image Wildcards draws it"),
    (r"(?<!\w)BREAK(?!\w)", "divides nothing here: it is read as text"),
)


def whole_letters(text: str) -> str:
    """With ? for halves of letters: JSON can hold them, but no text encoder, file or log takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def unix_lines(text: str) -> str:
    """Lines that end as on Windows or old Macs end in a line feed: the same prompt is the same text.

    Halves of letters are replaced.
    """
    return whole_letters(text).replace("\r\n", "\n").replace("\r", "\n")


def several_prompts(text: str) -> list[str]:
    """One prompt per line; or, where lines of `---` divide the text, one per block.

    Empty ones do not count, but there is always one prompt.
    """
    text = unix_lines(text)
    parts = DIVIDER.split(text) if DIVIDER.search(text) else text.splitlines()
    return [part.strip() for part in parts if part.strip()] or [""]


def foreign_syntax(text: str) -> dict[str, str]:
    """{what is written as other programs have it: what it is here}, without repeats."""
    found = {word: "has no effect on Z-Image: it is read as text" for word in weighted_words(text)}
    return found | {match[0]: why for pattern, why in ELSEWHERE for match in re.finditer(pattern, text)}


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
