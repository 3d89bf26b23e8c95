"""On a canvas nodes are as tidy as in Nodes 2.0: advanced inputs folded, the room for the prompt."""

from tests.host import graphs

NODE = "ZImageTextEncode"
BUTTON = """() => {
    const [node] = app.graph.nodes
    const button = node.widgets.find(widget => widget.type == "button")
    return app.canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + button.y + 10])
}"""
HIGHER = """() => {
    const [node] = app.graph.nodes
    node.setSize([node.size[0], node.size[1] + 200])
    app.graph.setDirtyCanvas(true, true)
}"""
BOXES = """() => [...document.querySelectorAll("textarea")].filter(box => box.checkVisibility())
    .map(box => box.getBoundingClientRect().height)"""

PROMPT_HAS_THE_ROOM = f"""() => {{
    const [prompt, ...others] = ({BOXES})()
    return prompt > 200 && Math.max(...others) < 80
}}"""


def saved(comfy) -> dict:
    (node,) = comfy.graph()["nodes"]
    return node


def test_advanced_inputs_are_folded_and_shown_by_a_button(open_page):
    comfy = open_page(advanced=False)
    comfy.add_alone(NODE)
    assert comfy.never_shown({"text", "batch", "Show advanced inputs"}) == set()
    assert not {"max_tokens", "system_prompt", "template"} & set(comfy.texts())
    before = saved(comfy)
    comfy.page.mouse.click(*comfy.page.evaluate(BUTTON))
    assert comfy.never_shown({"max_tokens", "system_prompt", "template", "Hide advanced inputs"}) == set()
    assert saved(comfy)["size"][1] > before["size"][1]
    comfy.page.mouse.click(*comfy.page.evaluate(BUTTON))
    assert comfy.never_shown({"Show advanced inputs"}) == set()
    assert not {"max_tokens", "system_prompt", "template"} & set(comfy.texts())
    assert saved(comfy)["size"] == before["size"]
    assert saved(comfy)["widgets_values"][:5] == ["", False, 0, "", ""], "as a page without this saves it"


def test_a_linked_input_is_not_folded(open_page):
    graph = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 7}},
        "2": {"class_type": NODE, "inputs": {"text": "an apple", "max_tokens": ["1", 0]}},
    }
    comfy = open_page(advanced=False)
    comfy.page.evaluate("graph => app.loadApiJson(graph, 'linked')", graph)
    assert comfy.never_shown({"batch", "max_tokens"}) == set()
    assert "system_prompt" not in comfy.texts()


def test_advanced_inputs_stay_when_the_page_is_told_so(open_page):
    comfy = open_page(advanced=True)
    comfy.add_alone(NODE)
    assert comfy.never_shown({"max_tokens", "system_prompt", "template"}) == set()
    assert "Show advanced inputs" not in comfy.texts()


def test_the_prompt_gets_the_room(open_page):
    comfy = open_page(advanced=True)
    comfy.add_alone(NODE)
    comfy.page.wait_for_function(f"({BOXES})().length == 3")
    comfy.page.evaluate(HIGHER)
    comfy.page.wait_for_function(PROMPT_HAS_THE_ROOM)


def test_values_of_hidden_inputs_are_loaded_and_sent(open_page):
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    graphs.set_widget(workflow, NODE, 2, 77)
    comfy = open_page(advanced=False)
    comfy.load(workflow)
    sent = comfy.page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    (inputs,) = [node["inputs"] for node in sent if node["class_type"] == NODE]
    assert inputs["max_tokens"] == 77
