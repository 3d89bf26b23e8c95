"""The enhancer's lock: opened by changes made by hand alone, and seen on the prompt box while closed."""

import pytest

from tests.host import graphs
from tests.web.test_enhancer import NODE, SET, run_and_wait

VALUE = """([id, name]) =>
    app.graph.getNodeById(id).widgets.find(widget => widget.name == name).value"""
PROMPT = "a red apple"
BOTH = pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])


@pytest.fixture
def locked(open_page):
    """Opens a graph with a locked enhancer, whose seed the page changes; returns page and node id."""

    def locked(nodes_2: bool, locale: str = "en"):
        workflow = graphs.ui_form("02 Prompt enhancer (nano demo)")
        (node,) = [node for node in workflow["nodes"] if node["type"] == NODE]
        node["widgets_values"][:3] = [PROMPT, "a green tree", True]
        node["widgets_values"][node["widgets_values"].index("fixed")] = "randomize"
        comfy = open_page(locale, nodes_2=nodes_2)
        comfy.load(workflow)
        comfy.page.wait_for_function("id => app.graph.getNodeById(id)", arg=node["id"])
        comfy.wait_until_at_rest()
        return comfy, node["id"]

    return locked


def value(comfy, node_id: int, name: str):
    return comfy.page.evaluate(VALUE, [node_id, name])


def box(comfy):
    """The prompt's text box on the page."""
    for area in comfy.page.locator("textarea:visible").all():
        if area.input_value().startswith(PROMPT):
            return area
    raise AssertionError("the prompt is not on the page")


def is_marked(comfy, words: str) -> bool:
    """Whether the prompt's box shows that it is not read: dimmed, or by words, or both."""
    opacity = float(box(comfy).evaluate("box => getComputedStyle(box).opacity"))
    return opacity < 1 or any(words in text for text in comfy.texts())


@BOTH
def test_typing_a_prompt_unlocks_and_undo_locks_again(locked, nodes_2):
    comfy, enhancer = locked(nodes_2)
    assert value(comfy, enhancer, "locked") is True, "loading does not unlock"
    assert is_marked(comfy, "not read while locked")
    box(comfy).click()
    comfy.page.keyboard.press("End")
    comfy.page.keyboard.type(" and a pear")
    comfy.page.wait_for_function(f"ask => !({VALUE})(ask)", arg=[enhancer, "locked"])
    assert value(comfy, enhancer, "prompt") == PROMPT + " and a pear"
    assert not is_marked(comfy, "not read while locked")
    comfy.page.mouse.click(1300, 780)  # beside all nodes: the page undoes what was done to the graph
    for _ in range(20):
        if value(comfy, enhancer, "prompt") == PROMPT:
            break
        comfy.page.keyboard.press("Control+z")
        comfy.page.wait_for_timeout(500)
    assert value(comfy, enhancer, "prompt") == PROMPT
    assert value(comfy, enhancer, "locked") is True, "undo brings the lock back"


@BOTH
def test_a_seed_that_the_page_draws_does_not_unlock(locked, server, nodes_2):
    comfy, enhancer = locked(nodes_2)
    seed = value(comfy, enhancer, "seed")
    run_and_wait(comfy, server)
    comfy.page.wait_for_function(f"([ask, seed]) => ({VALUE})(ask) != seed", arg=[[enhancer, "seed"], seed])
    assert value(comfy, enhancer, "locked") is True


@pytest.mark.parametrize(("name", "new"), [("seed", 12), ("template", "short"), ("prompt", "a pear")])
def test_another_value_unlocks(locked, name, new):
    comfy, enhancer = locked(nodes_2=False)
    comfy.page.evaluate(SET, [enhancer, name, new])
    assert value(comfy, enhancer, "locked") is False


@pytest.mark.parametrize(
    ("name", "new"), [("text", "a blue tree"), ("seed", 7), ("on_failure", "original prompt")]
)
def test_what_is_not_read_anew_leaves_the_lock(locked, name, new):
    """The text itself, a value that is the same as before, and inputs that do not ask for another text."""
    comfy, enhancer = locked(nodes_2=False)
    comfy.page.evaluate(SET, [enhancer, name, new])
    assert value(comfy, enhancer, "locked") is True


def test_the_mark_is_in_the_language_of_the_page(locked):
    comfy, _ = locked(nodes_2=False, locale="zh")
    texts = comfy.page.evaluate("fetch('/i18n').then(answer => answer.json())")
    words = texts["zh"]["zimage"]["not_read"]
    assert any(words in text for text in comfy.texts())
