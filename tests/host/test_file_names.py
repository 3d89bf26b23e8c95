"""Files are found wherever people keep them, under the names that graphs of any system have."""

from __future__ import annotations

import pytest

from tests.host.graphs import changed
from tests.host.pictures import explained

FILE, FOLDER, DEEP = "sub/deep.safetensors", "Sharded/", "them/Deep/"
GGUF = "GGUF/z-image-Q4_K.gguf"
PLACES = (
    FILE,
    GGUF,
    "good_int8_convrot.safetensors",
    "all_in_one.safetensors",
    FOLDER,
    "Plain/",
    DEEP,
    "them/Z-Image-Hub/",
)


def offered(server, widget: str) -> list[str]:
    kind, *options = server.object_info("ZImageLoader")["input"]["required"][widget]
    return kind if isinstance(kind, list) else options[0]["options"]


def test_every_place_is_offered(server) -> None:
    """All-in-one files for each of their parts; checkpoints of other models for none."""
    assert set(PLACES) <= set(offered(server, "transformer"))
    for widget in ("transformer", "text_encoder", "vae"):
        names = offered(server, widget)
        assert "all_in_one.safetensors" in names
        assert not {"lumina_2.safetensors", "sd.safetensors", "page.safetensors"} & set(names)
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [*PLACES, *(name.replace("/", "\\") for name in (FILE, GGUF, FOLDER, DEEP))])
def test_every_place_loads(server, turbo: dict, name: str) -> None:
    """By the names of graphs saved on Windows too, whose folders are separated by backslashes."""
    result = server.run(changed(turbo, ZImageLoader__transformer=name, ZImageTurboSampler__steps=1))
    assert result.ok, explained(result)


def test_the_loader_of_one_part_takes_the_same_names(server, turbo: dict) -> None:
    inputs = {"transformer": FILE.replace("/", "\\"), "weight_dtype": "auto"}
    graph = {"1": {"class_type": "ZImageModelLoader", "inputs": inputs}}
    graph["2"] = {"class_type": "ModelSave", "inputs": {"model": ["1", 0], "filename_prefix": "again"}}
    result = server.run(graph)
    assert result.ok, explained(result)


def test_a_shard_alone_says_to_choose_its_folder(server, turbo: dict) -> None:
    name = next(name for name in offered(server, "transformer") if name.endswith("1-of-00002.safetensors"))
    (error,) = server.run(changed(turbo, ZImageLoader__transformer=name)).errors
    assert "one of several shards: choose the folder" in error["message"]


def test_an_unknown_weight_type_is_refused(server, turbo: dict) -> None:
    """The host does not look at it where names are left to the node."""
    (error,) = server.run(changed(turbo, ZImageLoader__weight_dtype="fp4")).errors
    assert "fp4" in error["message"] and "fp8_e4m3fn" in error["message"]
