"""Extracts of a host's /object_info: what saved graphs depend on, and which changes of it would break them.

An extract has the host's own form, less everything that is only for the eye. Combos are always
["COMBO", {"options": [...]}]; a list of files has no options, for it differs from machine to machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

from tests.host.server import ComfyServer

FOLDER = Path(__file__).parent
NODES = FOLDER / "nodes.json"  # this extension's nodes
HOSTS = FOLDER / "hosts"  # an extract per ComfyUI version: its own nodes that the shipped graphs use
# forceInput and control_after_generate decide which widgets there are; upload buttons are widgets too.
KEPT = ("default", "min", "max", "step", "control_after_generate", "forceInput", "image_upload")
FIXED = (
    "default",
    "step",
    "control_after_generate",
    "forceInput",
)  # may not change; ranges and options may grow
FILE = "zimage-contract"  # put into each folder of files: a combo that lists it is a list of files
GROUPS = ("required", "optional")


class Input(NamedTuple):
    kind: str
    settings: dict
    optional: bool


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, contracts: dict) -> None:
    path.write_text(json.dumps(contracts, indent=1) + "\n", encoding="utf-8")


def inputs(contract: dict) -> dict[str, Input]:
    """Inputs by name in their order, from /object_info or an extract of it."""
    found = {}
    for group in GROUPS:
        for name in contract["input_order"].get(group, []):
            kind, *rest = contract["input"][group][name]
            settings = dict(rest[0]) if rest else {}
            if isinstance(kind, list):
                kind, settings = "COMBO", {**settings, "options": kind}
            found[name] = Input(kind, settings, group == "optional")
    return found


def outputs(contract: dict) -> list[tuple[str, str]]:
    """(name, type) of each output."""
    return list(zip(contract["output_name"], contract["output"], strict=True))


def extract(contract: dict, is_files: Callable[[str, list], bool]) -> dict:
    """What of one node's /object_info is kept; is_files(input, options) tells a list of files."""
    kept: dict = {"category": contract["category"], "input": {}, "input_order": {}}
    for name, (kind, settings, optional) in inputs(contract).items():
        said = {key: settings[key] for key in KEPT if settings.get(key) is not None}
        if kind == "COMBO" and is_files(name, settings["options"]):
            said.pop("default", None)
        elif kind == "COMBO":
            said["options"] = settings["options"]
        group = GROUPS[optional]
        kept["input"].setdefault(group, {})[name] = [kind, said]
        kept["input_order"].setdefault(group, []).append(name)
    # an output's type may be a list of choices
    kinds = ["COMBO" if isinstance(kind, list) else kind for kind in contract["output"]]
    return {**kept, "output": kinds, "output_name": contract["output_name"]}


def of_server(server: ComfyServer, wanted: Callable[[str, dict], bool]) -> dict:
    """The extract of each node that wanted(id, contract) names, from a running server of its own."""
    for folder in server.get_json("/models"):
        path = server.base / "models" / folder / f"{FILE}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for suffix in ("png", "wav", "mp4", "latent"):
        (server.base / "input" / f"{FILE}.{suffix}").touch()
    pictures = server.base / "input" / FILE
    pictures.mkdir()
    (pictures / f"{FILE}.png").touch()

    def is_files(_: str, options: list) -> bool:
        return any(FILE in str(option) for option in options)

    found = server.object_info()
    return {name: extract(found[name], is_files) for name in sorted(found) if wanted(name, found[name])}


def broken(released: dict, now: dict) -> Iterator[str]:
    """A sentence for each thing that graphs saved with the released nodes rely on and that is gone."""
    for node_id, contract in released.items():
        if node_id not in now:
            yield f"{node_id} is gone"
            continue
        before, after = inputs(contract), inputs(now[node_id])
        if list(after)[: len(before)] != list(before):
            yield f"{node_id}: inputs were {', '.join(before)}; are {', '.join(after)}"
            continue
        for name, was in before.items():
            yield from (f"{node_id}.{name}: {change}" for change in _broken_input(was, after[name]))
        for name in list(after)[len(before) :]:
            if not after[name].optional:
                yield f"{node_id}.{name} is new and required: graphs saved without it are refused"
        gave, gives = outputs(contract), outputs(now[node_id])
        if gives[: len(gave)] != gave:
            yield f"{node_id}: outputs were {gave}, are {gives}"


def _broken_input(was: Input, now: Input) -> Iterator[str]:
    before, after = was.settings, now.settings
    if now.kind != was.kind:
        yield f"type was {was.kind}, is {now.kind}"
    if was.optional and not now.optional:
        yield "was optional, is required"
    for key in FIXED:
        if after.get(key) != before.get(key):
            yield f"{key} was {before.get(key)}, is {after.get(key)}"
    if after.get("min", -inf) > before.get("min", -inf):
        yield f"min was {before.get('min')}, is {after['min']}"
    if after.get("max", inf) < before.get("max", inf):
        yield f"max was {before.get('max')}, is {after['max']}"
    if lost := [option for option in before.get("options", ()) if option not in after.get("options", ())]:
        yield f"options {lost} are gone"


def illegal(graph: dict, contracts: dict) -> Iterator[str]:
    """A sentence for each thing in an API graph that the host would refuse."""
    for key, node in graph.items():
        kind, given = node["class_type"], node["inputs"]
        where = f"node {key} ({kind})"
        linked = {name: link for name, link in given.items() if isinstance(link, list)}
        widgets = {name: value for name, value in given.items() if name not in linked}
        yield from illegal_widgets(where, kind, widgets, contracts)
        declared = inputs(contracts[kind]) if kind in contracts else {}
        for name, (wanted, _, optional) in declared.items():
            if name in linked:
                source, slot = linked[name]
                output = contracts.get(graph[source]["class_type"], {}).get("output")
                if output and not _connects(output[slot], wanted):
                    yield f"{where}: {name} takes {wanted}, is linked to {output[slot]}"
            elif name not in given and not optional:
                yield f"{where}: {name} is missing"
        yield from (f"{where}: there is no input {name}" for name in linked.keys() - declared.keys())


def illegal_widgets(where: str, kind: str, values: dict, contracts: dict) -> Iterator[str]:
    """A sentence for each value that a node of this kind does not take."""
    if kind not in contracts:
        yield f"{where}: there is no {kind}"
        return
    declared = inputs(contracts[kind])
    for name, value in values.items():
        if name not in declared:
            yield f"{where}: there is no input {name}"
        elif not _legal(value, declared[name].kind, declared[name].settings):
            yield f"{where}: {name} cannot be {value!r}"


def _connects(given: str, wanted: str) -> bool:
    takes, gives = set(wanted.split(",")), set(given.split(","))
    return bool(takes & gives) or "*" in takes | gives


def _legal(value: object, kind: str, settings: dict) -> bool:
    if kind == "COMBO":
        return value in settings["options"] if "options" in settings else isinstance(value, str)
    if kind in ("INT", "FLOAT"):
        numbers = (int,) if kind == "INT" else (int, float)
        low, high = settings.get("min", -inf), settings.get("max", inf)
        return isinstance(value, numbers) and not isinstance(value, bool) and low <= value <= high
    return isinstance(value, {"STRING": str, "BOOLEAN": bool}.get(kind, object))
