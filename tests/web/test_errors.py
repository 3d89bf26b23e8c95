"""A failure is shown with the node that failed and our words; the next run works."""

import re

import pytest
from playwright.sync_api import expect

from tests.host import graphs
from tests.web.test_running import SEEDS, ids_of, wait_for_picture

# A file -> what the page must say of it.
FILES = {
    "truncated.safetensors": "truncated.safetensors is truncated",
    "other_family.safetensors": "Stable Diffusion",
    "gone.safetensors": "gone.safetensors",
}


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
@pytest.mark.parametrize("file", FILES)
def test_error_then_a_good_run(open_page, file, nodes_2):
    good = graphs.ui_form("z_image_turbo_text_to_image")
    graphs.set_widget(good, "ZImageTurboSampler", 0, next(SEEDS))
    bad = graphs.ui_form("z_image_turbo_text_to_image")
    graphs.set_widget(bad, "ZImageLoader", 0, file)
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(bad)
    comfy.run()
    report = comfy.what_went_wrong()
    expect(report).to_contain_text(FILES[file])
    expect(report).to_contain_text(re.compile("ZImageLoader|Z-Image Loader"))
    comfy.page.keyboard.press("Escape")
    comfy.load(good)
    comfy.run()
    (save,) = ids_of(good, "SaveImage")
    wait_for_picture(comfy, save)
