"""What a graph in API form says of the picture at one of its nodes; nothing is run and nothing is guessed.

Only nodes of ComfyUI and of this extension are understood (graph_facts.json). What lies behind any other
node, or where two ways meet, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ....zimage_core.prompt.lora_tags import LoraTag, LoraTagError, without_lora_tags
from ....zimage_core.prompt.syntax import several_prompts

_SPEC = json.loads(Path(__file__).with_name("graph_facts.json").read_text(encoding="utf-8"))
_SAMPLERS: dict[str, dict] = _SPEC["samplers"]
_PARTS: dict[str, dict] = _SPEC["parts"]
_THROUGH: dict[str, dict] = _SPEC["through"]
LORA_LOADER, NO_LORA = "ZImageLoraLoader", "none"
_VALUES = {"texts": (str,), "numbers": (int, float), "choices": (str,)}
_CHOICES = {"sampler", "scheduler"}
_MOST_PICTURES = 100
_MOST_TEXTS = 50  # nodes whose text is that of another
_LONGEST_WAY = 1000  # nodes; a graph that nobody has run may go in a circle


class Link(NamedTuple):
    """An output: the node's id and the output's number."""

    node: str
    output: int


class LoraUse(NamedTuple):
    """A LoRA file as the graph names it, and its strength on the model."""

    file: str
    strength: float


@dataclass(frozen=True)
class GraphFacts:
    """What the graph says of one picture; None where it does not."""

    prompt: str | None = None
    negative: str | None = None
    steps: int | None = None
    sampler: str | None = None
    scheduler: str | None = None
    cfg: float | None = None
    seed: int | None = None
    denoise: float | None = None
    model: str | None = None  # the file as the graph names it
    loader: str | None = None  # the class of the node that names it
    loras: tuple[LoraUse, ...] = ()


def saved_prompts(graph: Any) -> list[str]:
    """The prompts of the pictures that a graph saves, or shows if it saves none; without repeats.

    At most _MOST_PICTURES are looked at: a graph out of a file may have a hundred thousand.
    """
    graph = _readable(graph)
    for classes in (_SPEC["saves"], _SPEC["shows"]):
        ends = [(node, classes[kind]) for node in graph if (kind := _kind(graph, node)) in classes]
        if ends:
            prompts = [_facts(graph, *end).prompt for end in ends[:_MOST_PICTURES]]
            return list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    return []


def facts_of(graph: dict, node: str, name: str, index: int = 0) -> GraphFacts:
    """Of picture `index` in the batch that comes to the input `name` of a node. graph: {id: node}."""
    return _facts(_readable(graph), node, name, index)


def _facts(graph: dict, node: str, name: str, index: int = 0) -> GraphFacts:
    passed: list[str] = []
    link = _way(graph, _link(graph, node, name), "picture", lambda kind: kind in _SAMPLERS, passed.append)
    several = any(_kind(graph, node) in _SPEC["joins"] for node in passed)
    return (
        GraphFacts()
        if link is None
        else GraphFacts(**_sampling(graph, link.node, None if several else index))
    )


def _readable(graph: Any) -> dict[str, dict]:
    """Without what is no node: a graph may come out of a file."""
    return {
        key: node
        for key, node in (graph.items() if isinstance(graph, dict) else ())
        if isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    }


def _sampling(graph: dict, node: str, index: int | None) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for part, spec in _sampler_and_parts(graph, node):
        said |= spec.get("fixed", {})
        for fact, name in spec.get("inputs", {}).items():
            said[fact] = _value(graph, part, name, "choices" if fact in _CHOICES else "numbers")
        if "text" in spec:
            said["prompt"] = _value(graph, part, spec["text"], "texts") or None
        for fact in {"prompt", "negative"} & spec.keys():
            said[fact] = _encoded(graph, _link(graph, part, spec[fact]), index)
        if "model" in spec:
            said |= _model(graph, _link(graph, part, spec["model"]))
    guidance = said.pop("guidance", None)
    if guidance is not None:
        said["cfg"] = guidance + 1
    return said


def _sampler_and_parts(graph: dict, node: str) -> Iterator[tuple[str, dict]]:
    spec = _SAMPLERS[_kind(graph, node)]
    yield node, spec
    for name in spec.get("parts", ()):
        link = _link(graph, node, name)
        if link is not None and _kind(graph, link.node) in _PARTS:
            yield link.node, _PARTS[_kind(graph, link.node)]


def _model(graph: dict, link: Link | None) -> dict[str, Any]:
    """model, loader and loras."""
    loras: list[LoraUse] = []

    def is_loader(kind: str) -> bool:
        return kind in _SPEC["models"]

    def note(node: str) -> None:
        loras[:0] = _loras(graph, node)

    end = _way(graph, link, "model", is_loader, note)
    if end is None:
        return {"loras": tuple(loras)}
    loader = _kind(graph, end.node)
    file = _value(graph, end.node, _SPEC["models"][loader], "choices")
    return {"model": file, "loader": loader, "loras": tuple(loras)}


def _loras(graph: dict, node: str) -> Iterator[LoraUse]:
    """Those that one node loads, and whose strength is told: from its slots, then from its prompt."""
    kind = _kind(graph, node)
    for name, strength_name in _SPEC["loras"].get(kind, ()):
        file = _value(graph, node, name, "choices")
        strength = _value(graph, node, strength_name, "numbers")
        if file not in (None, NO_LORA) and strength:
            yield LoraUse(file, strength)
    if kind == LORA_LOADER:
        tags = _split_tags(_value(graph, node, "prompt", "texts"))[1]
        yield from (LoraUse(tag.name, tag.model) for tag in tags if tag.model)


def _split_tags(text: str | None) -> tuple[str | None, list[LoraTag]]:
    try:
        return (None, []) if text is None else without_lora_tags(text)
    except LoraTagError:
        return None, []


def _encoded(graph: dict, link: Link | None, index: int | None) -> str | None:
    """The text that a conditioning was made of; of several the picture's own, if it has but one."""
    end = _way(graph, link, "conditioning", lambda kind: kind in _SPEC["prompts"])
    if end is None:
        return None
    kind = _kind(graph, end.node)
    text = _value(graph, end.node, _SPEC["prompts"][kind], "texts")
    batch = graph[end.node]["inputs"].get("batch", False)
    if text is None or batch is False:
        return text
    if index is None:
        return None
    prompts = several_prompts(text)
    return prompts[index % len(prompts)] if batch is True else None


def _text_at(graph: dict, link: Link, passed: tuple[str, ...]) -> str | None:
    """The text that an output gives, where the graph has it: typed, or written by a node that ran."""
    end = _way(graph, link, "text", lambda kind: kind in _SPEC["texts"])
    if end is None or end.node in passed or len(passed) > _MOST_TEXTS:
        return None
    kind = _kind(graph, end.node)
    if end.output != _SPEC["text_outputs"].get(kind, 0):
        return None
    if kind == "ZImagePromptEnhancer" and graph[end.node]["inputs"].get("locked") is not True:
        return None  # then the text is not in the graph, or is not what was used
    text = _value(graph, end.node, _SPEC["texts"][kind], "texts", (*passed, end.node))
    if kind == LORA_LOADER:
        return _split_tags(text)[0]
    if kind == "ZImageStyle":
        return text or None  # without its words where it has not run
    if kind == "ZImageWildcards" and not text:  # not run for this picture: the host compares the drawn texts
        compared = graph[end.node].get("is_changed")
        text = compared[0] if isinstance(compared, list) and len(compared) == 1 else None
    return text if isinstance(text, str) else None


def _value(graph: dict, node: str, name: str, kind: str, passed: tuple[str, ...] = ()) -> Any:
    """A widget's value, or that of a node that holds one; else None. kind: see _VALUES.

    passed: nodes whose texts led here.
    """
    value = graph[node]["inputs"].get(name)
    for _ in range(_LONGEST_WAY):
        link = _as_link(value)
        if link is None:
            return value if isinstance(value, _VALUES[kind]) and not isinstance(value, bool) else None
        if kind == "texts":
            return _text_at(graph, link, passed)
        holder = _SPEC["numbers"].get(_kind(graph, link.node))
        value = graph[link.node]["inputs"].get(holder) if holder else None
    return None


def _way(
    graph: dict,
    link: Link | None,
    through: str,
    ends: Callable[[str], bool],
    note: Callable[[str], None] = lambda node: None,
) -> Link | None:
    """Up the graph through nodes that hand on what they get, to the first whose class `ends`; else None."""
    for _ in range(_LONGEST_WAY):
        kind = None if link is None else _kind(graph, link.node)
        if kind is None:
            return None
        if ends(kind):
            return link
        note(link.node)
        name = _THROUGH[through].get(kind)
        if isinstance(name, list):  # one for each output
            name = name[link.output] if link.output < len(name) else None
        link = None if name is None else _link(graph, link.node, name)
    return None


def _kind(graph: dict, node: str) -> str | None:
    return graph.get(node, {}).get("class_type")


def _link(graph: dict, node: str, name: str) -> Link | None:
    return _as_link(graph.get(node, {}).get("inputs", {}).get(name))


def _as_link(value: Any) -> Link | None:
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str):
        return Link(value[0], value[1]) if type(value[1]) is int and value[1] >= 0 else None
    return None
