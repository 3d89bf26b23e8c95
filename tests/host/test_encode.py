"""ZImageTextEncode on a server: batches of prompts, and what it says of a prompt that does not fit."""

from tests.host.graphs import changed, node_of, one_of_batch
from tests.host.pictures import difference, picture, pixels, saved_images

PROMPTS = (
    "an owl",
    "a strawberry, the background is green, very large and exactly in the middle",
    "a rocket",
)
ROUNDING = 1.0  # grey levels: the same picture but for rounding


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
