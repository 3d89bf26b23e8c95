"""ZImageDiversity on a real server: nothing at 0, another picture per seed above, the same one again."""

import itertools

import pytest

from tests.host.graphs import changed, one_of_batch
from tests.host.pictures import difference, explained, picture, pixels, saved_images
from tests.host.test_host_nodes import with_model_node

ROUNDING = 1.0  # grey levels: the same picture but for rounding
CLEARLY = 1.0  # another picture


def varied(graph: dict, strength: float, **inputs) -> dict:
    return with_model_node(graph, "ZImageDiversity", strength=strength, **inputs)


@pytest.fixture
def graph(turbo) -> dict:
    text = "a strawberry, the background is green"
    return changed(
        turbo, ZImageTextEncode__text=text, ZImageTurboSampler__steps=4, ZImageTurboSampler__seed=5
    )


def test_strength_0_and_no_steps_change_nothing(server, graph):
    plain = picture(server, server.run(graph))
    assert difference(plain, picture(server, server.run(varied(graph, 0.0)))) == 0
    assert difference(plain, picture(server, server.run(varied(graph, 1.0, until=0.0)))) == 0


def test_the_same_seed_gives_the_same_picture(server, graph):
    plain = picture(server, server.run(graph))
    graph = varied(graph, 1.0, until=0.6)
    first = picture(server, server.run(graph))
    other = picture(server, server.run(changed(graph, ZImageTurboSampler__seed=6)))
    again = picture(server, server.run(graph))
    assert difference(first, again) == 0
    assert difference(first, plain) > CLEARLY
    assert difference(first, other) > CLEARLY


def test_each_picture_of_a_batch_has_its_own(server, graph):
    """The one that its noise gives alone."""
    graph = varied(changed(graph, ZImageLatent__batch_size=3), 1.0)
    made = [pixels(image) for image in saved_images(server, server.run(graph))]
    assert all(difference(*pair) > CLEARLY for pair in itertools.combinations(made, 2))
    alone = one_of_batch(graph, "ZImageTurboSampler", 2)
    assert difference(made[2], picture(server, server.run(alone))) <= ROUNDING


@pytest.mark.parametrize("sampler", ["euler", "res_multistep", "dpmpp_2s_ancestral"])
def test_with_the_hosts_samplers_and_guidance(server, host_ksampler, sampler):
    graph = changed(host_ksampler, KSampler__sampler_name=sampler, KSampler__steps=4, KSampler__cfg=2.0)
    plain, result = server.run(graph), server.run(varied(graph, 1.0, until=0.6))
    assert result.ok, explained(result)
    assert difference(picture(server, plain), picture(server, result)) > CLEARLY


def test_image_to_image_that_starts_later_is_left_alone(server, host_ksampler):
    """Its first step comes after those that read the noisy prompt."""
    graph = changed(host_ksampler, KSampler__denoise=0.5, KSampler__steps=4)
    plain = picture(server, server.run(graph))
    assert difference(plain, picture(server, server.run(varied(graph, 1.0)))) == 0
