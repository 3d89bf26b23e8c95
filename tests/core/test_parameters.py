"""The text that sharing sites read in pictures; here it is read as they do."""

from __future__ import annotations

import json
import random
import re

import pytest

from tests.core.random_models import seeds
from zimage_core.prompt.parameters import parameters

FIELD = re.compile(r'\s*([^:,]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


def read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and fields."""
    *lines, last = text.split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt: ")
    fields = {key: json.loads(value) if value[:1] == '"' else value for key, value in FIELD.findall(last)}
    return "\n".join(lines[:start]), negative, fields


def test_everything_that_is_known_can_be_read() -> None:
    text = parameters(
        size=(1024, 768),
        prompt=' a fox,\nin "snow" ',
        negative="blurry, dark",
        steps=28,
        sampler="euler_ancestral",
        scheduler="karras",
        cfg=4.5,
        seed=2**64 - 1,
        denoise=0.6,
        model="zimage\\base, v1.safetensors",
        loras=[("mine/grey.safetensors", 0.8), ("b.v2.sft", 1.0)],
        hashes={"zimage\\base, v1.safetensors": "0123456789abcdef", "b.v2.sft": "fedcba9876543210"},
    )
    assert read(text) == (
        'a fox,\nin "snow" <lora:grey:0.8> <lora:b.v2:1>',
        "blurry, dark",
        {
            "Steps": "28",
            "Sampler": "Euler a",
            "Schedule type": "Karras",
            "CFG scale": "4.5",
            "Seed": "18446744073709551615",
            "Size": "1024x768",
            "Model hash": "0123456789",
            "Model": "base, v1",
            "Denoising strength": "0.6",
            "Lora hashes": "b.v2: fedcba9876",
            "Version": "ComfyUI",
        },
    )


def test_what_is_unknown_is_left_out() -> None:
    assert read(parameters(size=(8, 8))) == ("", "", {"Size": "8x8", "Version": "ComfyUI"})
    assert read(parameters(size=(8, 8), negative=" ", denoise=1.0, model="nano/"))[1:] == (
        "",
        {"Size": "8x8", "Model": "nano", "Version": "ComfyUI"},
    )


@pytest.mark.parametrize("seed", seeds(1))
def test_names_of_every_kind_come_back(seed: int) -> None:
    letters = random.Random(seed)
    for _ in range(200):
        name = "".join(letters.choice('a,:"\\ .\u72d0') for _ in range(8)).strip(" \\.") or "a"
        name = name.rpartition("\\")[2] or "a"
        assert read(parameters(size=(8, 8), model=f"x/{name}.safetensors"))[2]["Model"] == name
