"""ZImageTextEncode: the reference's cut, batches of prompts, templates, embeddings, and no encoding twice."""

import pytest

from tests.host import inside
from tests.host.graphs import changed, node_of, one_of_batch
from tests.host.pictures import difference, picture, pixels, saved_images

PROMPTS = (
    "an owl",
    "a strawberry, the background is green, very large and exactly in the middle",
    "a rocket",
)
ROUNDING = 1.0  # grey levels: the same picture but for rounding


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    return inside.run("encode_inside.py", tmp_path_factory.mktemp("encode"))


def test_features_equal_transformers_tokens_through_our_encoder(measured):
    """Plain, cut at 512 as the reference cuts, not cut, with a system prompt, with a template."""
    assert max(measured["distances"].values()) < 1e-5, measured["distances"]


def test_a_batch_holds_what_single_prompts_give(measured):
    assert max(measured["batch"].values()) == 0


def test_embeddings(measured):
    found = measured["embedding"]
    assert found["distance"] < 1e-5
    assert found["text"].count("red apple") == 2
    assert "embedding" not in found["note"]


def test_what_has_no_effect_is_named(measured):
    said = measured["embedding"]["unusable"]
    assert "embedding:gone" in said and "embedding:narrow" in said and "768" in said
    assert "(big:1.2)" in said and "small" not in said and "16:9" not in said


def test_nothing_is_encoded_twice_and_nothing_is_stale(measured):
    assert measured["encodings"] == {
        "a new prompt": 1,
        "another node, the same prompt": 0,
        "four prompts": 4,
        "one of four changed": 1,
        "another template": 1,
        "patched": 1,
        "patched, again": 0,
        "without the patch": 0,
        "stale": 0,
        "fills the room": 1,
        "after that": 1,
    }


def test_a_batch_makes_the_pictures_of_single_prompts(server, turbo):
    """Prompts that pad to 32 and to 64 tokens; the latent takes its batch_size from the prompts."""
    graph = changed(turbo, ZImageTurboSampler__steps=4, ZImageTextEncode__text="\n\n".join(PROMPTS))
    encode = node_of(graph, "ZImageTextEncode")
    graph = changed(graph, ZImageTextEncode__batch=True, ZImageLatent__batch_size=[encode, 1])
    result = server.run(graph)
    assert result.outputs[encode]["text"][0].startswith("3 prompts")
    batch = saved_images(server, result)
    assert len(batch) == len(PROMPTS)
    single = changed(graph, ZImageTextEncode__batch=False, ZImageLatent__batch_size=len(PROMPTS))
    for index, (image, prompt) in enumerate(zip(batch, PROMPTS, strict=True)):
        alone = one_of_batch(single, "ZImageTurboSampler", index)
        alone = picture(server, server.run(changed(alone, ZImageTextEncode__text=prompt)))
        assert difference(alone, pixels(image)) <= ROUNDING, prompt


def test_a_template_without_a_place_for_the_prompt(server, turbo):
    result = server.run(changed(turbo, ZImageTextEncode__template="a picture"))
    (error,) = result.errors
    assert error["class_type"] == "ZImageTextEncode" and "{prompt}" in error["message"]


def test_where_the_reference_would_cut_is_said_in_the_log(server, turbo):
    mark = len(server.log)
    graph = changed(turbo, ZImageTextEncode__text="owl " * 600, ZImageTurboSampler__steps=1)
    result = server.run(graph)
    said = result.outputs[node_of(graph, "ZImageTextEncode")]["text"][0]
    assert "more than the reference pipeline reads" in said
    assert said in server.log[mark:]
