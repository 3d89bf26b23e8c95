"""LoRAs named in a prompt are taken out of it."""

from __future__ import annotations

import pytest

from zimage_core.prompt.lora_tags import LoraTagError, without_lora_tags


@pytest.mark.parametrize("text, left, tags", [
    ("a cat", "a cat", []),
    ("a cat <lora:ink:0.8>", "a cat", [("ink", 0.8, 0.8)]),
    ("<lora:ink> a cat", "a cat", [("ink", 1, 1)]),
    ("<lora:ink>, a cat, <lora:b:-1:0.5>, red", "a cat, red", [("ink", 1, 1), ("b", -1, 0.5)]),
    ("a <lora:dir/ink v1.5.safetensors:.3> cat", "a cat", [("dir/ink v1.5.safetensors", 0.3, 0.3)]),
    ("one, <lora:ink>\n\n  two", "one\n\n  two", [("ink", 1, 1)]),
    ("<lora:a><lora:b>", "", [("a", 1, 1), ("b", 1, 1)]),
    ("<lora:a:1>\n---\nb", "\n---\nb", [("a", 1, 1)]),
    ("a cat <Lora:ink:0.8>", "a cat", [("ink", 0.8, 0.8)]),
    ("a < b > c <lyco:x:1>", "a < b > c <lyco:x:1>", []),
])  # fmt: skip
def test_tags(text: str, left: str, tags: list) -> None:
    assert without_lora_tags(text) == (left, tags)


BAD = ["<lora:>", "<lora::1>", "<lora:a:b>", "<lora:a:1:2:3>", "<lora:a:nan>", "<lora:a:1e400>", "<lora:a:>"]
BAD += ["<lora:a:101>"]


@pytest.mark.parametrize("tag", BAD)
def test_tags_that_cannot_be_read(tag: str) -> None:
    with pytest.raises(LoraTagError, match=f"{tag} cannot be read: expected <lora:name:0.8>"):
        without_lora_tags(f"a cat, {tag}")


@pytest.mark.parametrize("text", ["<lora:ink:0.8, a cat", "<lora:<lora:ink:1>:1>", "<LORA:a\n:1>"])
def test_a_tag_that_is_not_closed_does_not_stay_in_the_prompt(text: str) -> None:
    with pytest.raises(LoraTagError, match="a tag ends with > on its line, and no other is in it"):
        without_lora_tags(text)


@pytest.mark.parametrize("text", [" " * 100_000, " ," * 50_000, "\t" * 100_000 + ","])
def test_long_runs_of_spaces_are_read_at_once(text: str) -> None:
    """A search that tries each start and each comma of them would not come back."""
    assert without_lora_tags(f"{text}x<lora:ink>") == (f"{text}x".lstrip(" \t").removeprefix(",").strip(), [
        ("ink", 1, 1)
    ])  # fmt: skip
