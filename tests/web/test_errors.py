"""A failure is shown with the node that failed and our words; the next run works."""

import re

import pytest
from playwright.sync_api import expect

from tests.host import graphs
from tests.host.server import PACK_NAME
from tests.web.modes import in_languages_and_modes
from tests.web.test_running import SEEDS, ids_of, wait_for_picture

# A file -> what the page must say of it.
FILES = {
    "truncated.safetensors": "truncated.safetensors is truncated",
    "other_family.safetensors": "Stable Diffusion",
    "gone.safetensors": "gone.safetensors",
}
NOT_CUT = "element => element.scrollHeight <= element.clientHeight"
# A node of the host's that fails, and one that makes it run.
FAILS_ELSEWHERE = {
    "nodes": [
        {
            "id": 1,
            "type": "UNETLoader",
            "pos": [100, 100],
            "size": [300, 100],
            "outputs": [{"name": "MODEL", "type": "MODEL", "links": [1]}],
            "widgets_values": ["text.safetensors", "default"],
        },
        {
            "id": 2,
            "type": "ModelSave",
            "pos": [500, 100],
            "size": [300, 100],
            "inputs": [{"name": "model", "type": "MODEL", "link": 1}],
            "widgets_values": ["never"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "MODEL"]],
    "version": 0.4,
}


# A node of the host's, in which the MODEL says what is wrong: it gets the latent of a video.
FAILS_IN_A_SAMPLER = {
    "1": {
        "class_type": "ZImageModelLoader",
        "inputs": {"transformer": "good.safetensors", "weight_dtype": "auto"},
    },
    "2": {"class_type": "ZImageTextEncoderLoader", "inputs": {"text_encoder": "built-in: nano"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "a red apple"}},
    "4": {
        "class_type": "EmptyHunyuanLatentVideo",
        "inputs": {"width": 64, "height": 64, "length": 5, "batch_size": 1},
    },
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["3", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 1,
            "steps": 1,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "ZImageVAELoader", "inputs": {"vae": "built-in: nano"}},
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["6", 0]}},
    "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
}


def with_file(name: str) -> dict:
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    graphs.set_widget(workflow, "ZImageLoader", 0, name)
    return workflow


def sentence(server) -> str:
    """What the node said that failed last."""
    *_, last = server.get_json("/history").values()
    (said,) = (data for kind, data in last["status"]["messages"] if kind == "execution_error")
    return said["exception_message"].strip()


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
@pytest.mark.parametrize("file", FILES)
def test_error_then_a_good_run(open_page, file, nodes_2):
    good = graphs.ui_form("01 Text to image (nano demo)")
    graphs.set_widget(good, "ZImageTurboSampler", 0, next(SEEDS))
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(with_file(file))
    comfy.run()
    report = comfy.what_went_wrong()
    expect(report).to_contain_text(FILES[file])
    expect(report).to_contain_text(re.compile("ZImageLoader|Z-Image Loader"))
    comfy.page.keyboard.press("Escape")
    comfy.load(good)
    comfy.run()
    (save,) = ids_of(good, "SaveImage")
    wait_for_picture(comfy, save)


@in_languages_and_modes
@pytest.mark.parametrize("file", ["truncated.safetensors", "other_family.safetensors"])
def test_the_sentence_is_shown_whole_and_bare(server, open_page, file, locale, nodes_2):
    comfy = open_page(locale, nodes_2)
    comfy.load(with_file(file))
    comfy.page.evaluate("app.queuePrompt(0)")  # the button's name is not the same in every language
    toast = comfy.page.locator(comfy.frontend.toast)
    toast.wait_for()
    said = sentence(server)
    in_toast = toast.get_by_text(said, exact=True)
    expect(in_toast).to_be_visible()
    assert in_toast.evaluate(NOT_CUT)
    report = comfy.what_went_wrong()
    in_report = report.get_by_text(said, exact=True)
    expect(in_report).to_be_visible()
    assert in_report.evaluate(NOT_CUT)
    expect(report).not_to_contain_text(f"{PACK_NAME}.zimage_core")


def test_a_sentence_of_ours_in_a_sampler_of_others(server, open_page):
    comfy = open_page()
    comfy.page.evaluate("graph => app.loadApiJson(graph, 'sampler')", FAILS_IN_A_SAMPLER)
    comfy.run()
    toast = comfy.page.locator(comfy.frontend.toast)
    toast.wait_for()
    said = sentence(server)
    assert "this model takes" in said
    expect(toast.get_by_text(said, exact=True)).to_be_visible()
    expect(comfy.what_went_wrong().get_by_text(said, exact=True)).to_be_visible()


def test_a_later_error_of_another_node_is_not_shown_in_our_words(server, open_page):
    comfy = open_page()
    comfy.load(with_file("truncated.safetensors"))
    comfy.run()
    comfy.what_went_wrong()
    ours = sentence(server)
    comfy.page.keyboard.press("Escape")
    comfy.load(FAILS_ELSEWHERE)
    expect(comfy.alarm).to_have_count(0)
    comfy.run()
    expect(comfy.what_went_wrong()).to_contain_text(re.compile("UNETLoader|Load Diffusion Model"))
    assert sentence(server) != ours
    expect(comfy.page.get_by_text(ours, exact=True)).to_have_count(0)
