"""What nodes say under themselves is there to be read: the loader's line, a note on the size, and its end."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.host import graphs
from tests.web.comfy_page import ComfyPage
from tests.web.modes import in_languages_and_modes, in_modes
from tests.web.test_enhancer import SET

PATIENCE = 60_000  # ms
SAVED = "21 LoRAs and a smaller file (nano demo)"
# The texts on a canvas that have more lines than room.
CUT = """() => {
    const bottom = element => element.getBoundingClientRect().bottom
    return [...document.querySelectorAll(".dom-widget .overflow-y-auto")]
        .filter(box => bottom(box.firstElementChild) > bottom(box) + 1).map(box => box.innerText)
}"""
LOADED = "nano 30 MB + text 6 MB + VAE 8 MB: the demo model draws 127 things at 128x128"


def run_at(comfy: ComfyPage, width: int, height: int) -> None:
    """The size is set as by hand, and the Run button pressed."""
    (latent,) = (node["id"] for node in comfy.graph()["nodes"] if node["type"] == "ZImageLatent")
    for name, value in {"size": "custom", "width": width, "height": height}.items():
        comfy.page.evaluate(SET, [latent, name, value])
    comfy.run()


@in_languages_and_modes
def test_notes_are_read_under_their_nodes_and_go(open_page, locale: str, nodes_2: bool) -> None:
    comfy = open_page(locale=locale, nodes_2=nodes_2)
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    # another type than the run before had: what is only remembered says nothing
    graphs.set_widget(workflow, "ZImageLoader", 3, "fp16" if nodes_2 else "bf16")
    comfy.load(workflow)
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'ZImageLatent')")
    run_at(comfy, 160, 96)
    expect(comfy.page.get_by_text(LOADED).first).to_be_visible(timeout=PATIENCE)
    note = comfy.page.get_by_text("nano draws 128x128 pixels only, the latent is 160x96").first
    if comfy.frontend.text_by_preview or not nodes_2:
        expect(note).to_be_visible(timeout=PATIENCE)
    run_at(comfy, 128, 128)
    expect(note).to_be_hidden(timeout=PATIENCE)
    expect(comfy.page.get_by_text(LOADED).first).to_be_visible()


@in_languages_and_modes
def test_the_first_wrong_size_says_which_node_to_change(open_page, locale: str, nodes_2: bool) -> None:
    comfy = open_page(locale=locale, nodes_2=nodes_2)
    comfy.load(graphs.ui_form("01 Text to image (nano demo)"))
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'ZImageLatent')")
    run_at(comfy, 1024, 1024)
    sentence = "the latent is 1024x1024: choose 128x128 (nano) as size in Z-Image Latent"
    expect(comfy.page.get_by_text(sentence).first).to_be_visible(timeout=PATIENCE)


@in_modes
def test_a_text_is_shown_letter_by_letter(open_page, nodes_2: bool) -> None:
    """Neither page takes it for HTML, and Nodes 2.0 not for Markdown, whose lines and marks would be lost."""
    comfy = open_page(nodes_2=nodes_2)
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    prompt = f"{'a fox' if nodes_2 else 'a cat'}, <lora:one:1> __hat__"
    graphs.set_widget(workflow, "ZImageTextEncode", 0, prompt)
    comfy.load(workflow)
    comfy.run()
    text = comfy.page.get_by_text("loads nothing here").first
    lines = re.compile("tokens\n<lora:one:1> loads nothing .*\n__hat__ is read as text")
    expect(text).to_have_text(lines, use_inner_text=True, timeout=PATIENCE)


def saving(strength: float) -> dict:
    """The template with *Z-Image Save Quantized* turned on."""
    workflow = graphs.ui_form(SAVED)
    (save,) = (node for node in workflow["nodes"] if node["type"] == "ZImageSaveQuantized")
    save["mode"] = 0
    graphs.set_widget(workflow, "ZImageLoraLoader", 1, strength)
    return workflow


@in_languages_and_modes
def test_reports_are_read_as_a_whole(open_page, locale: str, nodes_2: bool) -> None:
    """On nodes as narrow as their template has them, which do not grow over the next."""
    comfy = open_page(locale=locale, nodes_2=nodes_2)
    # a strength of its own: what is only remembered says nothing
    comfy.load(saving(3 if nodes_2 else 2))
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'ZImageSaveQuantized')")
    comfy.run()
    for said in ("40 of 40 keys", "in output/diffusion_models"):
        expect(comfy.page.get_by_text(said).first).to_be_visible(timeout=PATIENCE)
    if not nodes_2:
        comfy.page.wait_for_function(f"() => ({CUT})().length == 0")
    assert comfy.overlapping() == []
