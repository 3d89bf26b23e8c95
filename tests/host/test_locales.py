"""The page gets every text of every node in English and Chinese."""

import re

import pytest

from tests.contracts.object_info import NODES, load
from tests.contracts.update import texts

RELEASED = load(NODES)
LANGUAGES = ("en", "zh")
CHINESE = re.compile("[\u4e00-\u9fff]")
UNTRANSLATED = {"CLIP", "Latent", "Sigmas", "VAE"}  # names that ComfyUI's own Chinese page keeps
MESSAGE_SYNTAX = re.compile(r"[{}@|]")  # the page reads these as placeholders, links and plurals


@pytest.fixture(scope="module")
def served(server) -> dict:
    return server.get_json("/i18n")


@pytest.fixture(scope="module")
def schema(server, served) -> dict:
    english = served["en"]["nodeDefs"]
    return {name: texts(server.object_info(name), RELEASED[name], english.get(name, {})) for name in RELEASED}


def leaves(tree: dict, path: str = ""):
    """(path, text) of every text."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def test_english_is_the_schema(served, schema):
    """When it is not: python -m tests.contracts.update"""
    assert {name: served["en"]["nodeDefs"].get(name) for name in schema} == schema


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_or_left_over(served, schema, language):
    ours = {name: entry for name, entry in served[language]["nodeDefs"].items() if name.startswith("ZImage")}
    assert dict(leaves(ours)).keys() == dict(leaves(schema)).keys()
    assert all(text for _, text in leaves(ours))


def test_chinese_texts_are_chinese(served):
    for path, text in leaves(served["zh"]["nodeDefs"]):
        if "/options/" not in path:
            assert CHINESE.search(text) or (path.endswith("/name") and text in UNTRANSLATED), (
                f"{path}: {text}"
            )


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_read_as_message_syntax(served, language):
    assert not [path for path, text in leaves(served[language]) if MESSAGE_SYNTAX.search(text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_menu_has_a_name_for_our_category(served, language):
    """The page looks up each part of a category; all parts but the first are names that it has itself."""
    assert served[language]["nodeCategories"].keys() == {"Z-Image"}
