"""A MODEL saved on a real server is in the lists of loaders, and draws the picture that it drew."""

from __future__ import annotations

from tests.host.graphs import node_of
from tests.host.pictures import explained, picture
from tests.host.server import ComfyServer

NAME = "small_00001_.safetensors"
FAR = 8  # of 255, on average: the built-in weights in int8, which draw the same picture


def test_saved_listed_and_drawn(server: ComfyServer, turbo: dict) -> None:
    before = server.run(turbo)
    saving = {
        "model": {
            "class_type": "ZImageModelLoader",
            "inputs": {"transformer": "built-in: nano", "weight_dtype": "auto"},
        },
        "save": {
            "class_type": "ZImageSaveQuantized",
            "inputs": {"model": ["model", 0], "filename_prefix": "small", "format": "int8"},
        },
    }
    written = server.base / "output" / "diffusion_models" / NAME
    try:
        saved = server.run(saving)
        assert saved.ok, explained(saved)
        (text,) = saved.outputs["save"]["text"]
        assert text.splitlines()[:2] == [NAME, "in output/diffusion_models"] and "Error: 0.0" in text
        choices = server.object_info("ZImageLoader")["input"]["required"]["transformer"][1]["options"]
        assert NAME in choices
        turbo[node_of(turbo, "ZImageLoader")]["inputs"]["transformer"] = NAME
        after = server.run(turbo)
        assert after.ok, explained(after)
        first, second = (picture(server, result).astype(float) for result in (before, after))
        assert 0 < abs(first - second).mean() < FAR
    finally:
        written.unlink(missing_ok=True)
