"""The shipped workflows, and the step from their UI form to their API form."""

from __future__ import annotations

import json
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
BLUEPRINTS = WORKFLOWS.parent / "subgraphs"
NAMES = tuple(sorted(path.stem for path in WORKFLOWS.glob("*.json")))
BLUEPRINT_NAMES = tuple(sorted(path.stem for path in BLUEPRINTS.glob("*.json")))
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20  # the ids that stand for a subgraph's own sockets
SHORT = {  # values of widgets with which nodes run in seconds
    "ZImageTrainLora": {"steps": 4, "batch": 2, "prior_captions": "a fox on black", "sample_every": 2}
}
# Node types that exist only in the page.
NOTES = {"Note", "MarkdownNote"}
MUTED = 2  # the mode of a node that does not run
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def ui_form(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def short_form(name: str) -> dict:
    """The UI form; one that would run for minutes does in seconds."""
    workflow = ui_form(name)
    for node in workflow["nodes"]:
        slots = [socket["name"] for socket in node["inputs"] if "widget" in socket]
        for widget, value in SHORT.get(node["type"], {}).items():
            node["widgets_values"][slots.index(widget)] = value
    return workflow


def api_form(name: str) -> dict:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def blueprint(name: str) -> dict:
    return json.loads((BLUEPRINTS / f"{name}.json").read_text(encoding="utf-8"))


def inside(blueprint: dict) -> dict:
    """The one subgraph that a blueprint defines, with its inner links as a workflow has them."""
    (definition,) = blueprint["definitions"]["subgraphs"]
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {**definition, "links": [[link[key] for key in keys] for link in definition["links"]]}


def blueprint_to_api(definition: dict, contracts: dict, given: dict) -> dict:
    """What `inside` returned -> API form; its picture is saved.

    given: links or values of the subgraph's inputs; the others keep the inner widgets' values.
    """
    graph = to_api(definition, contracts)
    nodes = {node["id"]: node for node in definition["nodes"]}
    for _, source, out_slot, target, in_slot, _ in definition["links"]:
        if source == SUBGRAPH_INPUT and definition["inputs"][out_slot]["name"] in given:
            name = nodes[target]["inputs"][in_slot]["name"]
            graph[str(target)]["inputs"][name] = given[definition["inputs"][out_slot]["name"]]
        if target == SUBGRAPH_OUTPUT:
            save = {"images": [str(source), out_slot], "filename_prefix": "zimage/blueprint"}
            graph["save"] = {"class_type": "SaveImage", "inputs": save}
    return graph


def widget_slots(contract: dict) -> list[str | None]:
    """Input names in the order of `widgets_values`; None is the page's own slot.

    It has one behind a seed (control after generate) and one behind a picture (the upload button).
    """
    slots: list[str | None] = []
    order, inputs = contract["input_order"], contract["input"]
    for name in order.get("required", []) + order.get("optional", []):
        kind, *rest = inputs.get("required", {}).get(name) or inputs["optional"][name]
        options = rest[0] if rest else {}
        if not (isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
            continue
        slots.append(name)
        seed = options.get("control_after_generate") or name in ("seed", "noise_seed")
        if seed or options.get("image_upload"):
            slots.append(None)
    return slots


def widget_values(node: dict, contract: dict) -> dict:
    """What a node of a saved graph has in its widgets, by input.

    The page gives optional ones that were appended since their defaults.
    """
    slots, values = widget_slots(contract), node.get("widgets_values", [])
    later = {name for name in slots[len(values) :] if name}
    if len(values) > len(slots) or later - set(contract["input_order"].get("optional", [])):
        raise ValueError(f"node {node['id']} ({node['type']}): widgets {slots}, values {values}")
    return {name: value for name, value in zip(slots, values, strict=False) if name}


def to_api(workflow: dict, contracts: dict) -> dict:
    """UI form -> API form, by the contracts of /object_info.

    Plain graphs: no subgraph. Muted nodes and their links are left out. Inside a subgraph, inputs that come
    from outside keep their widgets' values.
    """
    left_out = {SUBGRAPH_INPUT} | {node["id"] for node in workflow["nodes"] if node.get("mode") == MUTED}
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"] if link[1] not in left_out}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node["id"] in left_out:
            continue
        inputs = widget_values(node, contracts[node["type"]])
        inputs.update({i["name"]: sources[i["link"]] for i in node["inputs"] if i.get("link") in sources})
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def set_widget(workflow: dict, node_type: str, slot: int, value) -> None:
    """Set one entry of `widgets_values` on each node of a type in a UI-form workflow."""
    for node in workflow["nodes"]:
        if node["type"] == node_type:
            node["widgets_values"][slot] = value


def models_needed(workflow: dict) -> set[str]:
    """The files that a workflow's loaders have chosen and it says where to download."""
    return {
        model["name"]
        for node in workflow["nodes"]
        for model in node["properties"].get("models", [])
        if model["name"] in node.get("widgets_values", [])
    }


def node_of(graph: dict, class_type: str) -> str:
    """The id of the first node of a type in an API graph."""
    return next(key for key, node in graph.items() if node["class_type"] == class_type)


def changed(graph: dict, **inputs) -> dict:
    """A copy of an API graph; `ZImageTextEncode__text="a cat"` sets that input on each node of that type."""
    copy = json.loads(json.dumps(graph))
    for target, value in inputs.items():
        class_type, name = target.split("__")
        for node in copy.values():
            if node["class_type"] == class_type:
                node["inputs"][name] = value
    return copy


def one_of_batch(graph: dict, sampler: str, index: int) -> dict:
    """A copy whose sampler gets one sample of its batch of latents, with the noise that it has in there."""
    copy = changed(graph)
    inputs = copy[node_of(copy, sampler)]["inputs"]
    taken = {"samples": inputs["latent_image"], "batch_index": index, "length": 1}
    copy["one"] = {"class_type": "LatentFromBatch", "inputs": taken}
    inputs["latent_image"] = ["one", 0]
    return copy
