"""What a person sees while a graph runs: progress, previews, cancel, caching. And pictures follow inputs."""

import io

import pytest
import websocket
from PIL import Image

from tests.host.graphs import changed, node_of
from tests.host.pictures import difference, explained, picture, saved_images

CLEARLY = 2.0  # grey levels: pictures that differ by more are different pictures


def test_progress_and_previews_arrive_while_it_samples(server, turbo):
    sampler = node_of(turbo, "ZImageTurboSampler")
    result = server.run(changed(turbo, ZImageTurboSampler__seed=101))
    assert result.ok, explained(result)
    # A host may drop some messages in a quick run, so that the number of them says nothing.
    progress = [data for data in result.of_type("progress") if str(data["node"]) == sampler]
    assert progress
    assert {data["max"] for data in progress} == {8}
    values = [data["value"] for data in progress]
    assert values == sorted(values) and values[-1] == 8
    assert result.previews
    for preview in result.previews:
        image = Image.open(io.BytesIO(preview))
        assert image.format == "JPEG" and image.width == image.height


def test_the_last_preview_resembles_the_picture(server, turbo):
    """Previews have fitted colours: a wrong matrix shows as a wrong mean colour."""
    result = server.run(changed(turbo, ZImageTurboSampler__seed=102))
    image = saved_images(server, result)[0].convert("RGB").resize((1, 1))
    preview = Image.open(io.BytesIO(result.previews[-1])).convert("RGB").resize((1, 1))
    distance = [abs(a - b) for a, b in zip(image.getpixel((0, 0)), preview.getpixel((0, 0)), strict=True)]
    assert max(distance) < 48


def test_cancel_in_mid_run_and_go_on(server, turbo):
    sampler = node_of(turbo, "ZImageTurboSampler")
    seen = []

    def cancel(event):
        if event["type"] == "progress" and str(event["data"]["node"]) == sampler:
            if not seen:
                server.interrupt()
            seen.append(event["data"]["value"])

    long = changed(turbo, ZImageTurboSampler__seed=103, ZImageTurboSampler__steps=500)
    result = server.run(long, on_event=cancel)
    assert result.interrupted and not result.ok and not result.errors
    assert seen and max(seen) < 400, "it went on long after the cancel"
    after = server.run(changed(turbo, ZImageTurboSampler__seed=104))
    assert after.ok, explained(after)


def test_the_same_graph_again_runs_nothing(server, turbo):
    graph = changed(turbo, ZImageTurboSampler__seed=105)
    first = server.run(graph)
    again = server.run(graph)
    assert first.ok and again.ok
    assert again.cached == set(graph)
    assert not again.ran


def test_another_prompt_reloads_no_model(server, turbo):
    server.run(changed(turbo, ZImageTurboSampler__seed=106))
    result = server.run(changed(turbo, ZImageTurboSampler__seed=106, ZImageTextEncode__text="a green tree"))
    assert result.ok, explained(result)
    assert {node_of(turbo, "ZImageLoader"), node_of(turbo, "ZImageLatent")} <= result.cached
    assert set(result.ran) == {
        node_of(turbo, kind) for kind in ("ZImageTextEncode", "ZImageTurboSampler", "VAEDecode", "SaveImage")
    }


@pytest.mark.parametrize(
    "widget, value, part",
    [
        ("transformer", "good.safetensors", "transformer"),
        ("weight_dtype", "bf16", "transformer"),
        ("vae", "nano_copy.safetensors", "autoencoder"),
    ],
)
def test_the_loader_reloads_only_the_part_that_changed(server, turbo, widget, value, part):
    """Counted in the log, where each part that is read leaves a line."""
    assert server.run(turbo).ok
    mark = len(server.log)
    result = server.run(changed(turbo, **{f"ZImageLoader__{widget}": value}))
    assert result.ok, explained(result)
    log = server.log[mark:]
    read = {kind: log.count(f"Z-Image {kind}:") for kind in ("transformer", "text encoder", "autoencoder")}
    assert read == {kind: int(kind == part) for kind in read}


def test_pictures_follow_prompt_and_seed(server, turbo):
    def made(text, seed):
        graph = changed(turbo, ZImageTextEncode__text=text, ZImageTurboSampler__seed=seed)
        return picture(server, server.run(graph))

    apple = made("a red apple on a white background", 1)
    tree = made("a green tree on a blue background", 1)
    other_apple = made("a red apple on a white background", 2)
    assert difference(apple, tree) > CLEARLY
    assert difference(apple, other_apple) > 0
    # Runs in between, so that nothing of this one is cached any more.
    assert difference(apple, made("a red apple on a white background", 1)) == 0


def test_a_batch_differs_within_and_starts_like_a_single_run(server, turbo):
    single = server.run(changed(turbo, ZImageTurboSampler__seed=107))
    batch = server.run(changed(turbo, ZImageTurboSampler__seed=107, ZImageLatent__batch_size=2))
    images = saved_images(server, batch)
    assert len(images) == 2
    assert images[0].tobytes() != images[1].tobytes()
    assert saved_images(server, single)[0].size == images[0].size == (128, 128)


def test_custom_size_and_swap(server, turbo):
    graph = changed(turbo, ZImageLatent__size="custom", ZImageLatent__width=96, ZImageLatent__height=160)
    assert saved_images(server, server.run(graph))[0].size == (96, 160)
    assert saved_images(server, server.run(changed(graph, ZImageLatent__swap=True)))[0].size == (160, 96)


def test_text_node_shows_the_token_count(server, turbo):
    result = server.run(changed(turbo, ZImageTextEncode__text="one two three"))
    shown = result.outputs[node_of(turbo, "ZImageTextEncode")]["text"]
    assert any(character.isdigit() for character in shown[0])


def test_every_weight_type_makes_nearly_the_same_picture(server, turbo):
    def made(dtype):
        return picture(server, server.run(changed(turbo, ZImageLoader__weight_dtype=dtype)))

    reference = made("fp32")
    for dtype, bound in (("bf16", 12.0), ("fp8_e4m3fn", 40.0)):
        assert difference(made(dtype), reference) < bound, dtype


def test_texts_reach_the_page_that_ran_the_graph_and_no_other(server, turbo):
    """Two pages may have the same template open, whose nodes have the same ids."""
    other = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId=other", timeout=2)
    try:
        result = server.run(changed(turbo, ZImageTextEncode__text="a green boat"))
        assert result.ok, explained(result)
        assert any("tokens" in text for text in result.texts)
        with pytest.raises(websocket.WebSocketTimeoutException):
            while True:
                message = other.recv()
                assert isinstance(message, str) or b"tokens" not in message
    finally:
        other.close()
