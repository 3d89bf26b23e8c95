"""Z-Image Latent: every saved size keeps its meaning; a picture and megapixels decide where given."""

import math

import pytest

from tests.core.random_models import seeds
from tests.host.pictures import explained

SAVED = {  # values that graphs out there have -> width, height
    "1024x1024": (1024, 1024),
    "1344x576": (1344, 576),
    "720x1680": (720, 1680),
    "128x128 (nano)": (128, 128),
    "custom": (640, 480),
}
BARE = {"width": 640, "height": 480, "swap": False, "batch_size": 1}


def size_of(server, picture: tuple[int, int] | None = None, **inputs) -> tuple[int, int]:
    """The width and height that the node says it used, by an API graph."""
    graph = {"latent": {"class_type": "ZImageLatent", "inputs": {"size": "custom"} | BARE | inputs}}
    if picture:
        made = {"width": picture[0], "height": picture[1], "batch_size": 1, "color": 0}
        graph["picture"] = {"class_type": "EmptyImage", "inputs": made}
        graph["latent"]["inputs"]["image"] = ["picture", 0]
    for slot, name in ((1, "width"), (2, "height")):
        graph[name] = {"class_type": "PreviewAny", "inputs": {"source": ["latent", slot]}}
    result = server.run(graph)
    assert result.ok, explained(result)
    return tuple(int(result.outputs[name]["text"][0]) for name in ("width", "height"))


@pytest.mark.parametrize("size", SAVED)
def test_a_graph_without_the_later_inputs(server, size):
    assert size_of(server, size=size) == SAVED[size]
    assert size_of(server, size=size, swap=True) == SAVED[size][::-1]


def test_a_picture_decides_in_place_of_size(server):
    assert size_of(server, (336, 192), size="1024x1024") == (336, 192)
    assert size_of(server, (100, 41), size="1024x1024") == (96, 48)
    assert size_of(server, (336, 192), size="1024x1024", swap=True) == (192, 336)


@pytest.mark.parametrize("seed", seeds(4))
def test_megapixels_keep_the_shape(server, seed):
    width, height = 200 + seed % 1800, 200 + seed // 7 % 1800
    megapixels = (0.5, 1.0, 2.25)[seed % 3]
    got = size_of(server, (width, height), megapixels=megapixels)
    ideal = math.sqrt(megapixels * 2**20 * width / height), math.sqrt(megapixels * 2**20 * height / width)
    assert all(side % 16 == 0 and abs(side - wanted) <= 8 for side, wanted in zip(got, ideal, strict=True))


def test_megapixels_of_a_size_from_the_list(server):
    assert size_of(server, size="1024x1024", megapixels=4) == (2048, 2048)
    assert size_of(server, size="1280x720", megapixels=0.25) == (688, 384)


def test_a_picture_too_large_says_what_to_do(server):
    graph = {
        "picture": {
            "class_type": "EmptyImage",
            "inputs": {"width": 9008, "height": 16, "batch_size": 1, "color": 0},
        },
        "latent": {
            "class_type": "ZImageLatent",
            "inputs": {"size": "1024x1024", **BARE, "image": ["picture", 0]},
        },
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["latent", 1]}},
    }
    result = server.run(graph)
    assert not result.ok
    assert "9008x16 pixels" in result.errors[0]["message"] and "megapixels" in result.errors[0]["message"]
