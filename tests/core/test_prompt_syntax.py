"""What a prompt holds beside words."""

import time

import pytest

from zimage_core.prompt.syntax import embedding_names, several_prompts, weighted_words


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
