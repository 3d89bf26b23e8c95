"""Workflows are made from templates/: the files are what the sources say, both variants are one graph."""

import re

import pytest

from templates.make import BUILT_IN, FILES, GRAPHS, SUFFIXES, WORKFLOWS, all_forms, names, variants
from tests.contracts.object_info import load

BOTH = [name for name in names() if variants(load(GRAPHS / f"{name}.json")) == list(SUFFIXES)]
NOTE = "MarkdownNote"
CHINESE = re.compile("[\u4e00-\u9fff]")
ASKED = {"01 Text to image", "02 Prompt enhancer", "03 Edit by instruction", "04 Inpaint and outpaint"} | {
    "05 Image to image",
    "06 Control by edges",
    "15 Base with guidance",
}


def workflow(name: str) -> dict:
    return load(WORKFLOWS / f"{name}.json")


def everything() -> list[str]:
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def test_the_files_are_what_the_sources_make():
    """When they are not: python -m templates.make"""
    made = all_forms()
    found = {path.relative_to(WORKFLOWS).as_posix() for path in WORKFLOWS.rglob("*.json")}
    assert found == made.keys()
    on_disk = {path: (WORKFLOWS / path).read_text(encoding="utf-8") for path in made}
    assert [path for path, text in made.items() if on_disk[path] != text] == []


def test_what_people_come_for_is_there_in_both_variants():
    assert ASKED <= set(BOTH)


def of_nano_only(name: str) -> set[str]:
    return {node["type"] for node in load(GRAPHS / f"{name}.json")["nodes"].values() if "only" in node}


def notes_of(workflow: dict) -> list[str]:
    return [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == NOTE]


def models_of(workflow: dict) -> set[str]:
    """The names of the files that the loaders say where to get."""
    return {model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])}


def skeleton(workflow: dict, left_out: set[str]) -> tuple[list, set]:
    """Nodes and links by types and titles, without values; notes aside."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in {NOTE, *left_out}}
    label = {key: (node["type"], node.get("title"), node["mode"]) for key, node in nodes.items()}
    ends = {
        (label[source], out_slot, label[target], in_slot)
        for _, source, out_slot, target, in_slot, _ in workflow["links"]
        if source in nodes and target in nodes
    }
    return sorted(label.values(), key=str), ends


@pytest.mark.parametrize("name", BOTH)
def test_full_size_and_demo_are_one_graph(name):
    full, demo = workflow(name), workflow(name + SUFFIXES["nano"])
    assert skeleton(full, set()) == skeleton(demo, of_nano_only(name))
    assert BUILT_IN not in str(full)
    assert "1024x1024" in str(full) and "128x128 (nano)" not in str(full)


DEMOS_ONLY = ("07", "21")  # their notes name the template that offers the files


@pytest.mark.parametrize("name", everything())
def test_notes_are_in_both_languages_and_link_every_file(name):
    english, chinese = notes_of(workflow(name))
    assert len(CHINESE.findall(english)) < 10 < len(CHINESE.findall(chinese)), "an example may be Chinese"
    for file in FILES.values():
        if file["name"] in models_of(workflow(name)) and not name.startswith(DEMOS_ONLY):
            link = f"[{file['name']}]({file['url']})"
            for note in (english, chinese):
                assert link in note and file["size"] in note and file["licence"] in note
                assert f"models/{file['directory']}" in note


EDITS = ("03", "04", "05", "06", "13", "14")


@pytest.mark.parametrize("name", [name for name in everything() if name.startswith(EDITS)])
def test_a_picture_of_ones_own_has_its_place(name):
    """Muted, so that the template runs as it stands; the notes say how to turn it on."""
    (load_image,) = [node for node in workflow(name)["nodes"] if node["type"] == "LoadImage"]
    assert load_image["mode"] == 2
    title = load_image["title"].split(" / ")
    for note, word in zip(notes_of(workflow(name)), title, strict=True):
        assert word in note and "Ctrl+M" in note
