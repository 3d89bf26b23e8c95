"""What a graph says of its picture is read from the graph alone; what it does not say is left out."""

from __future__ import annotations

import pytest

from tests.contracts.object_info import HOSTS, NODES, inputs, load
from tests.host.graphs import api_form, changed, node_of
from tests.host.inside import module_without_nodes

graph_facts = module_without_nodes("nodes.host.page.graph_facts")
facts_of, saved_prompts, LoraUse = graph_facts.facts_of, graph_facts.saved_prompts, graph_facts.LoraUse
TURBO = "01 Text to image (nano demo)"
NANO = "built-in: nano"


def facts(graph: dict, index: int = 0):
    return facts_of(graph, node_of(graph, "SaveImage"), "images", index)


def linked(graph: dict, class_type: str, name: str, node: dict, output: int = 0) -> dict:
    """A copy in which that input comes from a new node."""
    copy = changed(graph)
    copy[node_of(copy, class_type)]["inputs"][name] = ["new", output]
    return {**copy, "new": node}


def test_the_first_template():
    found = facts(api_form(TURBO))
    assert found == graph_facts.GraphFacts(
        prompt="a red apple on a white background",
        steps=8,
        sampler="euler",
        cfg=1.0,
        seed=7,
        denoise=1.0,
        model=NANO,
        loader="ZImageLoader",
    )


def test_the_hosts_own_sampler():
    """Its empty negative is an encoding without a text: none is told."""
    found = facts(api_form("16 KSampler of ComfyUI (nano demo)"))
    assert (found.prompt, found.negative) == ("a rocket on a black background", None)
    assert (found.sampler, found.scheduler, found.cfg, found.seed) == ("euler", "simple", 1.0, 7)


def test_custom_sampling_with_a_guider():
    found = facts(api_form("15 Base with guidance (nano demo)"))
    assert (found.prompt, found.negative) == ("a fox on a yellow background", "a blue background")
    assert (found.sampler, found.steps, found.seed, found.cfg, found.model) == ("euler", 12, 7, 1.5, NANO)


def test_loras_in_the_order_of_their_use_and_none_that_is_off():
    graph = api_form("07 LoRA (nano demo)")
    first = graph[node_of(graph, "LoraLoaderModelOnly")]
    second = {
        "class_type": "LoraLoader",
        "inputs": {"model": first["inputs"]["model"], "lora_name": "x/b.safetensors"},
    }
    for strength, more in ((0.5, (LoraUse("x/b.safetensors", 0.5),)), (0.0, ())):
        second["inputs"]["strength_model"] = strength
        found = facts(linked(graph, "LoraLoaderModelOnly", "model", second))
        assert found.loras == (*more, LoraUse("nano_greyscale_lora.safetensors", 1.0)) and found.model == NANO


def test_the_stack_of_loras_and_those_named_in_its_prompt():
    """Typed and linked; the prompt is told without their tags."""
    graph = api_form("07 LoRA (nano demo)")
    stack = graph[node_of(graph, "LoraLoaderModelOnly")]
    stack["class_type"] = "ZImageLoraLoader"
    stack["inputs"] = {"model": stack["inputs"]["model"], "lora_1": "a.safetensors", "strength_1": 0.5}
    stack["inputs"] |= {"lora_2": "none", "strength_2": 1.0, "lora_3": "b.safetensors", "strength_3": 0.0}
    stack["inputs"]["prompt"] = "a fox, <lora:ink:0.8>, <lora:off:0:1> red"
    text = {"class_type": "PrimitiveString", "inputs": {"value": stack["inputs"]["prompt"]}}
    graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"] = [node_of(graph, "ZImageLoraLoader"), 3]
    for prompt in (stack["inputs"]["prompt"], ["words", 0]):
        stack["inputs"]["prompt"] = prompt
        found = facts(graph | {"words": text})
        assert found.loras == (LoraUse("a.safetensors", 0.5), LoraUse("ink", 0.8)) and found.model == NANO
        assert found.prompt == "a fox, red"
    stack["inputs"]["prompt"] = "<lora:ink:strong>"
    assert facts(graph).prompt is None


def test_the_last_sampler_made_the_picture():
    graph = api_form("12 Draft and refine (nano demo)")
    assert (facts(graph).seed, facts(graph).denoise) == (8, 0.5)


def test_each_picture_of_a_batch_of_prompts_has_its_own():
    graph = api_form("09 Several prompts (nano demo)")
    lines = graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"].splitlines()
    assert [facts(graph, index).prompt for index in range(len(lines))] == lines


def test_a_sheet_of_pictures_says_what_they_have_in_common():
    sheet = {"class_type": "ZImageSheet", "inputs": {"images": ["5", 0]}}
    graph = linked(api_form(TURBO), "SaveImage", "images", sheet)
    graph["new"]["inputs"]["images"] = api_form(TURBO)[node_of(graph, "SaveImage")]["inputs"]["images"]
    assert facts(graph) == facts(api_form(TURBO))
    varied = linked(graph, "ZImageTurboSampler", "seed", {"class_type": "ZImageVariations", "inputs": {}})
    varied |= {"new": graph["new"], "v": varied["new"]}
    varied[node_of(varied, "ZImageTurboSampler")]["inputs"]["seed"] = ["v", 0]
    assert (facts(varied).seed, facts(varied).prompt) == (None, facts(graph).prompt)
    graph[node_of(graph, "ZImageTextEncode")]["inputs"]["batch"] = True
    assert facts(graph).prompt is None


def test_values_of_nodes_that_hold_one():
    graph = linked(api_form(TURBO), "ZImageTextEncode", "text", {
        "class_type": "PrimitiveStringMultiline", "inputs": {"value": "a fox"}})  # fmt: skip
    assert facts(graph).prompt == "a fox"
    graph = linked(api_form(TURBO), "ZImageTurboSampler", "seed", {
        "class_type": "PrimitiveInt", "inputs": {"value": 42}})  # fmt: skip
    assert facts(graph).seed == 42


def test_the_enhancers_text_only_where_the_graph_has_it():
    graph = api_form("02 Prompt enhancer (nano demo)")
    assert facts(graph).prompt is None
    written = changed(
        graph, ZImagePromptEnhancer__text="a red apple, still life", ZImagePromptEnhancer__locked=True
    )
    assert facts(written).prompt == "a red apple, still life"
    report = linked(
        written, "ZImageTextEncode", "text", written[node_of(written, "ZImagePromptEnhancer")], output=1
    )
    assert facts(report).prompt is None


UNKNOWN = {
    "class_type": "SomebodysNode",
    "inputs": {"model": ["1", 0], "text": "a cat", "samples": ["4", 0], "seed": 3},
}


@pytest.mark.parametrize(
    "class_type, name, lost",
    [
        ("ZImageTurboSampler", "model", {"model"}),
        ("ZImageTurboSampler", "conditioning", {"prompt"}),
        ("ZImageTurboSampler", "seed", {"seed"}),
        ("ZImageTextEncode", "text", {"prompt"}),
        ("VAEDecode", "samples", {"prompt", "steps", "sampler", "cfg", "seed", "denoise", "model"}),
    ],
)
def test_what_an_unknown_node_makes_is_left_out(class_type, name, lost):
    whole, found = facts(api_form(TURBO)), facts(linked(api_form(TURBO), class_type, name, UNKNOWN))
    for fact in ("prompt", "steps", "sampler", "cfg", "seed", "denoise", "model"):
        assert getattr(found, fact) == (None if fact in lost else getattr(whole, fact))


def test_two_prompts_joined_are_none():
    joined = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["2", 0], "conditioning_2": ["2", 0]},
    }
    assert facts(linked(api_form(TURBO), "ZImageTurboSampler", "conditioning", joined)).prompt is None


WRONG_TYPES = {
    "6": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}},
    "7": {"class_type": "KSampler", "inputs": {"positive": ["8", 0], "seed": True, "sampler_name": {}}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": 5}},
}


def text_nodes(last: list) -> dict:
    """A picture whose prompt is the text of a node, which is that of another, and so on: a thousand."""
    nodes = {
        f"t{n}": {"class_type": "ZImageStyle", "inputs": {"styled": [f"t{n + 1}", 0]}} for n in range(1000)
    }
    nodes["t1000"] = {"class_type": "ZImageStyle", "inputs": {"styled": last}}
    encoded = {"8": {"class_type": "CLIPTextEncode", "inputs": {"text": ["t0", 0]}}}
    return WRONG_TYPES | encoded | nodes


BEFORE_THE_FIRST = WRONG_TYPES | {
    "7": {"class_type": "KSampler", "inputs": {"positive": ["8", -9]}},
    "8": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["9", 0]}},
}


@pytest.mark.parametrize(
    "graph",
    [
        None,
        [],
        {},
        {"6": None},
        {"6": {"class_type": ["SaveImage"], "inputs": {}}},
        {"6": {"class_type": "SaveImage", "inputs": []}},
        {"6": {"class_type": "SaveImage", "inputs": {"images": ["6", "0"]}}},
        {"6": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}},
        {"6": {"class_type": "SaveImage", "inputs": {"images": ["6", 0]}}},
        WRONG_TYPES,
        text_nodes(["t1000", 0]),
        text_nodes(["t0", 0]),
        text_nodes("a fox"),
        BEFORE_THE_FIRST,
    ],
)
def test_a_damaged_graph_says_nothing(graph):
    assert saved_prompts(graph) == []
    assert facts_of(graph, "6", "images") in (graph_facts.GraphFacts(), graph_facts.GraphFacts(loras=()))


def test_a_graph_of_very_many_pictures_is_read_in_part():
    """As many as fit into a text that is read: going through all of them again for each would take days."""
    graph = api_form(TURBO) | {f"n{n}": {"class_type": "SaveImage", "inputs": {}} for n in range(150_000)}
    assert saved_prompts(graph) == ["a red apple on a white background"]


def test_prompts_of_saved_pictures_come_before_those_that_are_only_shown():
    """An edited picture does not have the prompt of the picture that was edited."""
    graph = api_form("03 Edit by instruction (nano demo)")
    assert saved_prompts(graph) == []
    graph[node_of(graph, "ZImageEdit")]["inputs"]["target_prompt"] = "an apple on a blue background"
    assert saved_prompts(graph) == ["an apple on a blue background"]
    del graph[node_of(graph, "SaveImage")]
    assert saved_prompts(graph) == ["a fox on a blue background"]


def test_what_is_read_exists_in_comfyui():
    """Every input that the table names, of each node whose contract is recorded."""
    known = load(NODES)
    for path in HOSTS.glob("*.json"):
        known |= load(path)
    spec = graph_facts._SPEC
    named = [
        (kind, name)
        for table in ("models", "prompts", "texts", "saves", "shows")
        for kind, name in spec[table].items()
    ]
    for table in ("samplers", "parts"):
        for kind, entry in spec[table].items():
            named += [(kind, name) for name in entry.get("inputs", {}).values()]
            named += [(kind, entry[role]) for role in ("model", "prompt", "negative") if role in entry]
    named += [(kind, name) for kind, slots in spec["loras"].items() for slot in slots for name in slot]
    named += [
        (kind, name)
        for way in spec["through"].values()
        for kind, name in way.items()
        if isinstance(name, str)
    ]
    checked = [(kind, name) for kind, name in named if kind in known]
    assert len(checked) > 40
    assert [pair for pair in checked if pair[1] not in inputs(known[pair[0]])] == []
