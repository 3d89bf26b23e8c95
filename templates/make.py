"""python -m templates.make: write workflows/ and workflows/api/ from the graphs and notes beside this file.

Each graph is written twice: with the official full-size files, and as a demo with the built-in nano model.
What differs between the two stands in the graph as {"nano": ..., "full": ...}. Thumbnails are made by
tests.tools.make_thumbnails.
"""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path

from templates.layout import placed, view
from templates.notes import WORDS, note_text
from tests.contracts.object_info import HOSTS, NODES, inputs, load
from tests.contracts.shipped import EARLIER
from tests.host.graphs import MUTED, to_api, widget_slots

HERE = Path(__file__).parent
GRAPHS = HERE / "graphs"  # name -> nodes with their links and values, and the columns that they lie in
FILES = load(HERE / "files.json")  # the full-size files, by the names that graphs use
WORKFLOWS = HERE.parent / "workflows"
SUFFIXES = {"full": "", "nano": " (nano demo)"}  # of a workflow's name
BUILT_IN = "built-in: nano"
HOST = "0.3.75"  # whose nodes' contracts are used: the oldest, for later ones only append
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}


def contracts() -> dict:
    return load(HOSTS / f"{HOST}.json") | load(NODES)


def names() -> list[str]:
    return sorted(path.stem for path in GRAPHS.glob("*.json"))


def variants(graph: dict) -> list[str]:
    """A graph that cannot be both says so."""
    return graph.get("variants", list(SUFFIXES))


def chosen(value, variant: str):
    """The value itself, or that of the variant."""
    return value[variant] if isinstance(value, dict) else value


def nodes_of(graph: dict, variant: str) -> dict[str, dict]:
    """A graph's nodes that the variant has, by name."""
    return {name: node for name, node in graph["nodes"].items() if node.get("only", variant) == variant}


def widgets(node: dict, contract: dict, variant: str) -> dict:
    """{input: value} in the page's order; "seed: then" is what stands in the page's own slot behind it."""
    declared, slots = inputs(contract), widget_slots(contract)
    given = {name: chosen(value, variant) for name, value in node.get("values", {}).items()}
    for name, file in node.get("files", {}).items():
        given[name] = BUILT_IN if variant == "nano" else FILES[file]["name"]
    if unknown := given.keys() - set(slots):
        raise ValueError(f"{node['type']} has no widgets {sorted(unknown)}")
    values: dict = {}
    for name in filter(None, slots):
        settings = declared[name].settings
        value = given.get(name, settings.get("default", settings.get("options", [None])[0]))
        if value is None and name in node.get("links", {}):
            value = ""  # it is not read
        if value is None:
            raise ValueError(f"{node['type']}.{name} has no default: the graph has to give a value")
        if slots[slots.index(name) + 1 :][:1] == [None]:
            usual = "image" if settings.get("image_upload") else "fixed"
            value, then = value if isinstance(value, list) else (value, usual)
            values |= {name: value, f"{name}: then": then}
        else:
            values[name] = value
    return values


def ui_node(number: int, node: dict, contract: dict, variant: str) -> dict:
    """A node of the UI form, without its place and without links; widgets come last, as on the page."""
    values = widgets(node, contract, variant)
    ours = node["type"].startswith("ZImage")
    made = {
        "id": number,
        "type": node["type"],
        "flags": {},
        "order": number - 1,
        "mode": MUTED if node.get("muted") else 0,
        "inputs": [
            {"name": name, "type": each.kind}
            | ({"widget": {"name": name}} if name in values else {})
            | {"link": None}
            for name, each in sorted(inputs(contract).items(), key=lambda item: item[0] in values)
        ],
        "outputs": [
            {"name": name, "type": kind, "links": None}
            for name, kind in zip(contract["output_name"], contract["output"], strict=True)
        ],
        "properties": {"Node name for S&R": node["type"], "cnr_id": "zimage" if ours else "comfy-core"},
        "widgets_values": list(values.values()),
    }
    models = [
        {key: FILES[file][key] for key in ("name", "url", "directory")}
        for file in node.get("files", {}).values()
        if file in FILES
    ]
    if models:
        made["properties"]["models"] = models
    if "title" in node:
        made["title"] = " / ".join(node["title"])
    return made


def connect(made: dict[str, dict], nodes: dict[str, dict]) -> list[list]:
    """Put each link into both of its ends; the list of links as the page saves it."""
    links: list[list] = []
    for name, node in nodes.items():
        for socket_name, origin in node.get("links", {}).items():
            source, output_name = origin.split(".")
            if source not in made:
                continue  # what the other variant has
            out_slot, output = next(
                (i, o) for i, o in enumerate(made[source]["outputs"]) if o["name"] == output_name
            )
            in_slot, socket = next(
                (i, s) for i, s in enumerate(made[name]["inputs"]) if s["name"] == socket_name
            )
            number = len(links) + 1
            links.append([number, made[source]["id"], out_slot, made[name]["id"], in_slot, output["type"]])
            socket["link"] = number
            output["links"] = [*(output["links"] or []), number]
    return links


def notes_of(name: str, graph: dict, variant: str, first: int) -> dict[str, dict]:
    """The notes of a graph, one a language."""
    used = [file for node in graph["nodes"].values() for file in node.get("files", {}).values()]
    files = [FILES[file] for file in dict.fromkeys(used) if file in FILES]
    marks = {variant, "demo"} if variant == "nano" and "full" in variants(graph) else {variant}
    made = {}
    for number, (language, words) in enumerate(WORDS.items(), first):
        made[f"note {language}"] = {
            "id": number,
            "type": "MarkdownNote",
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {"cnr_id": "comfy-core"},
            "widgets_values": [note_text(name, language, marks, files)],
            "title": words["title"],
            **NOTE_COLOURS,
        }
    return made


def ui_form(name: str, graph: dict, variant: str, contracts: dict) -> dict:
    """The workflow as the page saves it."""
    nodes = nodes_of(graph, variant)
    made = {
        key: ui_node(number, node, contracts[node["type"]], variant)
        for number, (key, node) in enumerate(nodes.items(), 1)
    }
    links = connect(made, nodes)
    notes = notes_of(name, graph, variant, len(made) + 1)
    made |= notes
    placed(made, graph["columns"], list(notes))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"zimage/{name}/{variant}")),
        "revision": 0,
        "last_node_id": len(made),
        "last_link_id": len(links),
        "nodes": list(made.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"ds": view(list(made.values()))},
        "version": 0.4,
    }


def all_forms() -> dict[str, str]:
    """{path under workflows/: content} of every workflow in both forms."""
    known, made = contracts(), {}
    for name in names():
        graph = load(GRAPHS / f"{name}.json")
        for variant in variants(graph):
            workflow = ui_form(name, graph, variant, known)
            for path, content in (("", workflow), ("api/", to_api(workflow, known))):
                text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
                made[f"{path}{name}{SUFFIXES[variant]}.json"] = text
    return made


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    made = all_forms()
    for path in {*WORKFLOWS.glob("*.json"), *WORKFLOWS.glob("api/*.json")}:
        if path.relative_to(WORKFLOWS).as_posix() not in made:
            path.rename(EARLIER / "workflows" / path.relative_to(WORKFLOWS))  # people have it
    for path, text in made.items():
        (WORKFLOWS / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
