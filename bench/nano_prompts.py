"""Does the text encoder that ships write better prompts?

Pictures from keywords that no caption contains, and from names, asked for directly and through the enhancer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.judge import nearest_concept, shows_colour
from bench.rows import row
from zimage_core import Qwen3TextEncoder
from zimage_core.prompt.template import apply_template
from zimage_core.prompt.writing import Sampling, generate, steps
from zimage_core.train.nano.captions import (
    LANGUAGES,
    Concept,
    fill,
    keyword_prompts,
    other_keywords,
    phrasings,
)
from zimage_core.train.nano.pictures import colours

LONGEST = 64  # tokens of an answer
END = "<|im_end|>"


def requests(concepts: list[Concept], seed: int = 0) -> list[dict]:
    """Per concept a prompt by keywords in each language that has any, and one by name, on any background.

    Names take the languages in turn.
    """
    palette, generator = colours(), torch.Generator().manual_seed(seed)

    def of(rows: list) -> Any:
        return rows[int(torch.randint(len(rows), (1,), generator=generator))]

    found = []
    for index, keywords in enumerate(other_keywords(concepts)):
        for language in LANGUAGES:
            colour = int(torch.randint(len(palette), (1,), generator=generator))
            asked = {"concept": index, "colour": colour, "language": language}
            if keywords[language]:
                words = of(keyword_prompts(keywords[language], language))
                template = of(phrasings(language, "keyword"))
                prompt = template.format(words=words, colour=getattr(palette[colour], language))
                found.append({**asked, "kind": "keywords", "prompt": prompt})
            if language != LANGUAGES[index % len(LANGUAGES)]:
                continue
            name, template = concepts[index].names[language][0], of(phrasings(language, "held_out"))
            prompt = fill(template, name, palette[colour], language)
            found.append({**asked, "kind": "name", "prompt": prompt})
    return found


def write(model: Qwen3TextEncoder, tokenizer: Any, prompt: str) -> str:
    """The caption that the encoder answers a prompt with; the prompt itself where it finds no end."""
    ids = tokenizer(apply_template(prompt), add_special_tokens=False)["input_ids"]
    step = steps(model, len(ids) + LONGEST, torch.device("cpu"), torch.float32)
    stop = {tokenizer.convert_tokens_to_ids(END)}
    written = generate(step, ids, Sampling(temperature=0), stop, LONGEST)
    return tokenizer.decode(written.tokens) if written.ended else prompt


def prompt_rows(
    draw: Callable[[list[str]], Tensor],
    model: Qwen3TextEncoder,
    tokenizer: Any,
    concepts: list[Concept],
    drawings: Tensor,
) -> list[dict]:
    """draw: prompts -> pictures [N,3,H,W] in [0,1]."""
    asked = requests(concepts)
    plain = [wanted["prompt"] for wanted in asked]

    def matches(prompts: list[str]) -> list[bool]:
        return [
            nearest_concept(image, drawings) == wanted["concept"] and shows_colour(image, wanted["colour"])
            for image, wanted in zip(draw(prompts), asked, strict=True)
        ]

    before, after = matches(plain), matches([write(model, tokenizer, prompt) for prompt in plain])
    rows = []
    for kind, bar in (("keywords", ">= 0.65"), ("name", ">= 0")):
        chosen = [i for i, wanted in enumerate(asked) if wanted["kind"] == kind]
        shares = [sum(values[i] for i in chosen) / len(chosen) for values in (before, after)]
        against = f"thing and background right, {len(chosen)} prompts, en and zh"
        rows.append(row(f"prompt match by {kind}, as asked", shares[0], "share", None, against))
        rows.append(row(f"prompt match by {kind}, enhanced", shares[1], "share", None, against))
        rows.append(row(f"gain of the enhancer, by {kind}", shares[1] - shares[0], "share", bar, against))
    return rows
