"""What a prompt holds beside words."""

import time

import pytest

from zimage_core.prompt.syntax import (
    embedding_names,
    foreign_syntax,
    several_prompts,
    unix_lines,
    weighted_words,
)


@pytest.mark.parametrize(
    "text, found",
    [
        ("a (red hair:1.2) and (b:.5)", ["(red hair:1.2)", "(b:.5)"]),
        ("((word:1.2)), (word:1.2)", ["(word:1.2)"]),
        ("((word):1.1)", ["((word):1.1)"]),
        ("(v2:1.3)", ["(v2:1.3)"]),
        ("(a, b:-1)", ["(a, b:-1)"]),
        ("\\(word:1.2\\)", []),
        ("(16:9), (at 12:30), (2.35:1)", []),
        ("a (small) dog (see: 3) (a:b) f(x):2 (word:1.2", []),
    ],
)
def test_weights(text, found):
    assert weighted_words(text) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("a fox <lora:my style v2:0.8>, (red:1.2)", ["(red:1.2)", "<lora:my style v2:0.8>"]),
        ("<lyco:a> <lora:a:1> <lora:a:1>", ["<lyco:a>", "<lora:a:1>"]),
        ("an __animal__ and a __deep/er_name__, __animal__", ["__animal__", "__deep/er_name__"]),
        ("a fox BREAK a house", ["BREAK"]),
        ("a <b>, x__init__y, __, ____, a break, BREAKFAST, NO_BREAK, a < lora:b", []),
    ],
)
def test_syntax_of_other_programs(text, found):
    assert list(foreign_syntax(text)) == found


@pytest.mark.parametrize("text", ["__a/" * 50000, "_" * 200000, "<lora:" * 50000, "BREAK" * 50000])
def test_no_foreign_syntax_takes_long(text):
    begun = time.process_time()
    foreign_syntax(text)
    assert time.process_time() - begun < 10


def test_lines_of_every_system_are_one_text():
    for end in ("\r\n", "\r"):
        assert unix_lines(f"an owl{end}{end}at night") == "an owl\n\nat night"
        assert several_prompts(f"an owl{end}at night{end}---{end}a fox") == ["an owl\nat night", "a fox"]


@pytest.mark.parametrize("text", ["(" * 30000 + ")" * 30000, "(" + "a " * 100000, "(a:1" * 50000])
def test_no_text_takes_long(text):
    begun = time.process_time()
    weighted_words(text)
    embedding_names(text)
    assert time.process_time() - begun < 10


def test_prompts_are_lines_or_blocks():
    assert several_prompts("an owl\n\n  a fox \n") == ["an owl", "a fox"]
    assert several_prompts("an owl\nat night\n---\n\na fox\n ----\n") == ["an owl\nat night", "a fox"]
    assert several_prompts("a well-known --- fox") == ["a well-known --- fox"]
    assert several_prompts(" \n---\n") == [""]


def test_embeddings():
    text = "embedding:one, embedding:a/two.pt embedding:one\nembedding:three<|im_end|> my_embedding:four"
    assert embedding_names(text) == ["one", "a/two.pt", "three"]
