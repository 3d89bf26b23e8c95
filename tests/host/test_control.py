"""Control networks on a server, with the nano model and its autoencoder."""

from __future__ import annotations

import numpy as np
import pytest

from tests.host.graphs import api_form, changed, node_of
from tests.host.pictures import difference, explained, picture, saved_images


def with_control(graph: dict, control: str, **inputs) -> dict:
    """The graph with a control on its MODEL, steered by its own picture of another prompt unless told."""
    loader, sampler = node_of(graph, "ZImageLoader"), node_of(graph, "ZImageTurboSampler")
    graph = changed(graph)
    picture_of = {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 160, "batch_size": 1}}
    picture_of["inputs"]["color"] = inputs.pop("color", 0xFF8800)
    given = {"strength": 0.8, "start_percent": 0.0, "end_percent": 1.0, "image": ["picture", 0]} | inputs
    given |= {"model": [loader, 0], "vae": [loader, 2], "control": ["loader", 0]}
    graph["picture"] = picture_of
    graph["loader"] = {"class_type": "ZImageControlLoader", "inputs": {"control": control}}
    graph["control"] = {"class_type": "ZImageControl", "inputs": given}
    graph[sampler]["inputs"] |= {"model": ["control", 0], "steps": 2, "seed": 3}
    return graph


@pytest.fixture(scope="module")
def turbo() -> dict:
    return api_form("01 Text to image (nano demo)")


@pytest.fixture(scope="module")
def plain(server, turbo: dict) -> np.ndarray:
    graph = with_control(turbo, "nano_1.0.safetensors")
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["model"] = [node_of(graph, "ZImageLoader"), 0]
    return picture(server, server.run(graph))


def test_an_untrained_control_changes_nothing(server, turbo: dict, plain: np.ndarray) -> None:
    made = picture(server, server.run(with_control(turbo, "nano_untrained.safetensors")))
    assert difference(made, plain) == 0


def test_the_control_picture_decides(server, turbo: dict, plain: np.ndarray) -> None:
    """In a size of its own; a file of either folder."""
    for control in ("nano_1.0.safetensors", "nano_2.1.safetensors"):
        first, second = (
            picture(server, server.run(with_control(turbo, control, color=color)))
            for color in (0xFF8800, 0x0044CC)
        )
        assert difference(first, plain) > 1
        assert difference(first, second) > 0.5


def test_what_is_masked_decides(server, turbo: dict) -> None:
    def inpainted(value: float) -> np.ndarray:
        graph = with_control(
            turbo,
            "nano_2.1.safetensors",
            mask=["mask", 0],
            inpaint_image=["picture", 0],
            image=["picture", 0],
        )
        mask = {"value": value, "width": 96, "height": 160}
        graph["mask"] = {"class_type": "SolidMask", "inputs": mask}
        del graph["control"]["inputs"]["image"]
        return picture(server, server.run(graph))

    assert difference(inpainted(0.0), inpainted(1.0)) > 0.5


def test_a_guided_batch_in_another_size(server, turbo: dict) -> None:
    """The host's KSampler at cfg 3 makes two pictures, wider than the control's; they differ."""
    graph = changed(
        with_control(turbo, "nano_2.1.safetensors"),
        ZImageLatent__size="custom",
        ZImageLatent__width=160,
        ZImageLatent__height=128,
        ZImageLatent__batch_size=2,
    )
    sampler = node_of(graph, "ZImageTurboSampler")
    given = graph[sampler]["inputs"]
    graph[sampler] = {
        "class_type": "KSampler",
        "inputs": {
            **{"model": ["control", 0], "positive": given["conditioning"], "negative": given["conditioning"]},
            **{"latent_image": given["latent_image"], "seed": 3, "steps": 2, "cfg": 3.0, "denoise": 1.0},
            **{"sampler_name": "euler", "scheduler": "simple"},
        },
    }
    result = server.run(graph)
    assert result.ok, explained(result)
    images = saved_images(server, result)
    assert [image.size for image in images] == [(160, 128)] * 2
    first, second = (np.asarray(image.convert("RGB")).astype(np.int16) for image in images)
    assert difference(first, second) > 1


def test_the_loader_says_what_it_loaded(server, turbo: dict) -> None:
    """A file that nothing loaded before: nodes whose result is kept say nothing."""
    result = server.run(with_control(turbo, "nano_2.0.safetensors"))
    assert result.ok, explained(result)
    (note,) = result.outputs["loader"]["text"]
    assert "nano_2.0.safetensors" in note and "version 2.0, 2 blocks, can inpaint" in note


WRONG = {
    "transformer.safetensors": ({}, "holds no Z-Image ControlNet: it is a Z-Image transformer"),
    "lacking.safetensors": ({}, "tensors of the Z-Image ControlNet: control_layers.1.attention"),
    "nano_1.0.safetensors": (
        {"mask": ["mask", 0], "inpaint_image": ["picture", 0]},
        "cannot inpaint, as version 1.0 cannot",
    ),
    "nano_2.1.safetensors": ({"mask": ["mask", 0]}, "mask is connected and inpaint_image is not"),
}


@pytest.mark.parametrize("control", WRONG)
def test_what_does_not_fit_is_said_at_its_node(server, turbo: dict, plain: np.ndarray, control: str) -> None:
    inputs, message = WRONG[control]
    graph = with_control(turbo, control, **inputs)
    graph["mask"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 96, "height": 160}}
    result = server.run(graph)
    assert not result.ok
    (error,) = result.errors
    assert message in error["message"]
    assert error["class_type"] == ("ZImageControl" if inputs else "ZImageControlLoader")


def test_without_any_picture_it_says_so(server, turbo: dict) -> None:
    graph = with_control(turbo, "nano_1.0.safetensors")
    del graph["control"]["inputs"]["image"]
    (error,) = server.run(graph).errors
    assert "connect image, or inpaint_image and mask" in error["message"]
