"""The Run button: progress, a live preview, the finished pictures."""

import itertools
import re

import pytest

from tests.host import graphs
from tests.web.modes import in_modes

SEEDS = itertools.count(10_001)  # a seed of its own for each run, so that none is only remembered
RUNNABLE = [name for name in graphs.NAMES if not graphs.models_needed(graphs.ui_form(name))]
PICTURE_NODES = ("SaveImage", "PreviewImage", "ZImageSaveImage")


def ids_of(workflow: dict, *types: str) -> list[int]:
    return [node["id"] for node in workflow["nodes"] if node["type"] in types]


def wait_for_picture(comfy, node_id: int) -> None:
    """Until a node shows a finished picture (previews have addresses of another kind)."""
    comfy.bring_into_view(node_id)
    for _ in range(600):
        if any("/view?" in address for address in comfy.pictures(node_id)):
            return
        assert comfy.alarm.count() == 0, comfy.what_went_wrong().inner_text()
        comfy.page.wait_for_timeout(200)
    raise AssertionError(f"no picture on node {node_id}")


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_progress_and_a_live_preview_are_seen(open_page, nodes_2):
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    graphs.set_widget(workflow, "ZImageTurboSampler", 0, next(SEEDS))
    graphs.set_widget(workflow, "ZImageTurboSampler", 2, 30)
    (sampler,), (save,) = ids_of(workflow, "ZImageTurboSampler"), ids_of(workflow, "SaveImage")
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(workflow)
    comfy.watch(sampler)
    comfy.run()
    wait_for_picture(comfy, save)
    seen = comfy.seen()
    steps = {re.search(r"\[(\d+)%\] ZImageTurboSampler", title) for title in seen["titles"]} - {None}
    assert len({step[1] for step in steps}) > 2, seen["titles"]
    previews = [address for address in seen["pictures"] if address.startswith("blob:")]
    assert len(previews) > 2, seen["pictures"]


@in_modes
@pytest.mark.parametrize("name", RUNNABLE)
def test_every_workflow_with_nano_runs_by_the_button(open_page, name, nodes_2):
    comfy = open_page(nodes_2=nodes_2)
    workflow = graphs.short_form(name)
    comfy.load(workflow)
    comfy.run()
    outputs = ids_of(workflow, *PICTURE_NODES)
    assert outputs
    for node_id in outputs:
        wait_for_picture(comfy, node_id)
    assert comfy.overlapping() == []
