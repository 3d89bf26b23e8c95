"""Lists of values on a real server, and the sheet of what they made."""

from __future__ import annotations

import numpy as np
import pytest

from tests.host.graphs import api_form, node_of
from tests.host.pictures import explained, picture, saved_images

TURBO = "01 Text to image (nano demo)"


def varied(values: str, node: str, name: str, output: int, batch: int = 1) -> dict:
    """The first template for each of the values, in one step, its pictures on a sheet."""
    graph = api_form(TURBO)
    graph[node_of(graph, "ZImageLatent")]["inputs"]["batch_size"] = batch
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["steps"] = 1
    graph["v"] = {"class_type": "ZImageVariations", "inputs": {"values": values}}
    graph[node_of(graph, node)]["inputs"][name] = ["v", output]
    saver = graph[node_of(graph, "SaveImage")]["inputs"]
    graph["s"] = {"class_type": "ZImageSheet", "inputs": {"images": saver["images"], "labels": ["v", 2]}}
    saver["images"] = ["s", 0]
    return graph


def alone(name: str, value: object) -> dict:
    graph = api_form(TURBO)
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"] |= {"steps": 1, name: value}
    return graph


def places(sheet: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Where on a sheet a picture stands, exactly: (top, left)."""
    height, width = part.shape[:2]
    ends = (sheet.shape[0] - height + 1, sheet.shape[1] - width + 1)
    corner = (sheet[: ends[0], : ends[1]] == part[0, 0]).all(-1)
    found = map(tuple, np.argwhere(corner).tolist())
    return [(y, x) for y, x in found if (sheet[y : y + height, x : x + width] == part).all()]


@pytest.mark.parametrize(
    "values, name, output, used",
    [
        ("3, 4, 5", "seed", 0, [3, 4, 5]),
        ("0.25, 1", "denoise", 1, [0.25, 1.0]),
        ("1\n2\n3\n1\n2", "steps", 0, [1, 2, 3]),
    ],
)
def test_a_run_for_each_and_all_on_the_sheet(server, values, name, output, used):
    result = server.run(varied(values, "ZImageTurboSampler", name, output))
    sheet = picture(server, result)
    for value in used:
        assert places(sheet, picture(server, server.run(alone(name, value))))


def test_prompts_and_batches_have_rows(server):
    sheet = picture(server, server.run(varied("a fox\nan owl", "ZImageTextEncode", "text", 2, batch=3)))
    assert sheet.shape[1] > 3 * 128 and sheet.shape[0] > 2 * 128
    assert sheet.shape[1] < 4 * 128 and sheet.shape[0] < 3 * 128


def test_labels_stand_above_and_without_them_there_is_no_room(server):
    graph = {
        "i": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255},
        },
        "s": {"class_type": "ZImageSheet", "inputs": {"images": ["i", 0]}},
        "o": {"class_type": "SaveImage", "inputs": {"images": ["s", 0], "filename_prefix": "sheet"}},
        "t": {"class_type": "PrimitiveString", "inputs": {"value": "0.5"}},
    }
    bare = picture(server, server.run(graph))
    graph["s"]["inputs"]["labels"] = ["t", 0]
    labelled = picture(server, server.run(graph))
    assert labelled.shape[0] > bare.shape[0] and labelled.shape[1] == bare.shape[1]
    added = labelled[: labelled.shape[0] - bare.shape[0] + 12]
    assert (added == 0).all(-1).any() and not (bare == 0).all(-1).any()


@pytest.mark.parametrize("label", ["a long prompt, " * 5000, "half \ud83d"], ids=["long", "half a letter"])
def test_labels_that_do_not_fit(server, label):
    graph = {
        "i": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "t": {"class_type": "PrimitiveString", "inputs": {"value": label}},
        "s": {"class_type": "ZImageSheet", "inputs": {"images": ["i", 0], "labels": ["t", 0]}},
        "o": {"class_type": "SaveImage", "inputs": {"images": ["s", 0], "filename_prefix": "sheet"}},
    }
    made = picture(server, server.run(graph, timeout=60))
    above = made[: made.shape[0] - 64 - 12]
    assert (above < 128).all(-1).any() and (above[:, -12:] == 255).all()


def test_what_cannot_be_used_says_why_and_the_rest_runs(server):
    result = server.run(varied("1.5, 2", "ZImageTurboSampler", "seed", 0))
    assert not result.ok or not saved(server, result)
    assert "'1.5' is not one of whole numbers" in " ".join(error["message"] for error in result.errors)
    assert server.run(varied("0.5, 1", "ZImageTurboSampler", "denoise", 1)).ok
    empty = server.run(varied(" ", "ZImageTurboSampler", "seed", 0))
    assert "no values" in empty.errors[0]["message"]


def saved(server, result) -> list:
    return saved_images(server, result) if result.ok else []


def test_labels_of_another_list_are_refused(server):
    graph = varied("1, 2, 3", "ZImageTurboSampler", "seed", 0)
    graph["w"] = {"class_type": "ZImageVariations", "inputs": {"values": "a\nb"}}
    graph["s"]["inputs"]["labels"] = ["w", 2]
    result = server.run(graph)
    assert not result.ok and "3 pictures and 2 labels" in result.errors[0]["message"], explained(result)
