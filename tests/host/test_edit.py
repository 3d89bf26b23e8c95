"""ZImageEdit on a real server: each route, what stays the same to the bit, and what the report says."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.core.random_models import random_s3dit, seeds
from tests.core.test_instruction import CASES
from tests.host import graphs
from tests.host.graphs import changed, node_of
from tests.host.matrix import CAPTION
from tests.host.pictures import difference, explained, picture, saved_images
from tests.host.server import PACK_ROOT
from zimage_core import S3DiTConfig
from zimage_core.sampling.edit_plan import BLACK_MASK, HOW_TO_SAY, NO_MASK, NO_OMNI, NO_SOURCE, PAINT

FOX, SIDE = "a fox on a blue background", 128
PLAIN = "edit_plain.safetensors"  # the nano model without what omni weights have more
ODD = (109, 83)  # width, height: no multiples of anything


@pytest.fixture(scope="module")
def inputs(server, turbo_graph) -> dict[str, np.ndarray]:
    """The files in the server's input folder, as pixels: a fox that the nano model drew, and masks."""
    graph = changed(turbo_graph, ZImageTextEncode__text=FOX, ZImageTurboSampler__seed=7)
    (fox,) = saved_images(server, server.run(graph))
    fox = fox.convert("RGB")
    left = np.zeros((SIDE, SIDE), np.uint8)
    left[:, :48] = 255
    stripes = np.zeros((SIDE, SIDE), np.uint8)
    stripes[:, 44:88], stripes[:, 88:] = 110, 255
    files = {
        "fox.png": fox,
        "odd.png": fox.resize(ODD),
        "left.png": Image.fromarray(left),
        "odd_left.png": Image.fromarray(left).resize(ODD, Image.Resampling.NEAREST),
        "stripes.png": Image.fromarray(stripes),
        "nothing.png": Image.new("L", (64, 64)),  # what Load Image gives for a picture without a mask
    }
    for name, image in files.items():
        image.save(server.base / "input" / name)
    nano = load_file(PACK_ROOT / "models" / "nano" / "transformer.safetensors")
    plain = {name: tensor for name, tensor in nano.items() if not name.startswith("siglip")}
    save_file(plain, server.base / "models" / "diffusion_models" / PLAIN)
    return {name: np.asarray(image).astype(np.int16) for name, image in files.items()}


@pytest.fixture(scope="module")
def turbo_graph() -> dict:
    return graphs.api_form("01 Text to image (nano demo)")


@pytest.fixture
def edit(turbo_graph, inputs):
    """edit(image, mask, **inputs) -> an API graph that edits files of the input folder."""

    def graph(image: str = "fox.png", mask: str | None = None, **given) -> dict:
        loader = node_of(turbo_graph, "ZImageLoader")
        parts = {"model": ["model", 0], "clip": [loader, 1], "vae": [loader, 2]}
        settings = {"route": "auto", "strength": 0.0, "steps": 4, "seed": 3}
        nodes = {
            loader: turbo_graph[loader],
            "model": model_loader(PLAIN),
            "image": {"class_type": "LoadImage", "inputs": {"image": image}},
            "edit": {
                "class_type": "ZImageEdit",
                "inputs": {**parts, "image": ["image", 0], **settings, **given},
            },
            "save": saving(["edit", 1]),
        }
        if mask:
            nodes["mask"] = {"class_type": "LoadImageMask", "inputs": {"image": mask, "channel": "red"}}
            nodes["edit"]["inputs"].setdefault("mask", ["mask", 0])
        return nodes

    return graph


def model_loader(file: str) -> dict:
    return {"class_type": "ZImageModelLoader", "inputs": {"transformer": file, "weight_dtype": "auto"}}


def saving(images: list) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": "edit"}}


def report(result) -> str:
    assert result.ok, explained(result)
    return result.outputs["edit"]["text"][0]


def border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate((pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)))


CENTRE = np.s_[44:92, 44:92]


def test_flowedit_changes_the_thing_and_keeps_its_surroundings(server, edit, inputs):
    graph = edit(instruction="replace the fox with an apple", source_prompt=FOX, steps=8)
    result = server.run(graph)
    before, after = inputs["fox.png"], picture(server, result)
    assert "To: an apple on a blue background" in report(result)
    assert np.abs(border(after) - border(before)).mean() < 16
    red, green, blue = after[CENTRE].reshape(-1, 3).mean(axis=0)
    assert red > green + 60 and red > blue + 60
    assert difference(after[CENTRE], before[CENTRE]) > 30


def test_flowedit_changes_the_surroundings_and_keeps_the_thing(server, edit, inputs):
    result = server.run(edit(instruction="make the background green", source_prompt=FOX, steps=8))
    before, after = inputs["fox.png"], picture(server, result)
    red, green, blue = border(after).mean(axis=0)
    assert green > red + 40 and green > blue + 40
    assert difference(after[CENTRE], before[CENTRE]) < 30 < np.abs(border(after) - border(before)).mean()


@pytest.mark.parametrize(
    ("given", "route", "said"),
    [
        ({"instruction": "replace the fox with an apple"}, "flowedit", ["From: fox", NO_OMNI, NO_MASK]),
        ({"instruction": "an apple", "source_prompt": FOX}, "flowedit", [f"From: {FOX}\n", "To: an apple\n"]),
        ({"instruction": "an apple", "mask": "left.png"}, "inpaint", ["To: an apple\n", "a mask is given"]),
        ({"instruction": "an apple"}, "img2img", [NO_OMNI, NO_MASK, NO_SOURCE, HOW_TO_SAY]),
        ({"instruction": "an apple", "mask": "nothing.png"}, "img2img", [BLACK_MASK, PAINT]),
        ({"instruction": "replace the fox with an apple", "route": "img2img"}, "img2img", ["it was chosen"]),
        (
            {"instruction": "an apple", "image_2": ["image", 0]},
            "img2img",
            ["Not used: image_2; only omni weights look at it."],
        ),
    ],
)
def test_auto_takes_the_best_route_and_says_why(server, edit, inputs, given, route, said):
    result = server.run(edit(steps=2, **given))
    text = report(result)
    assert text.startswith(f"Route: {route}, because ")
    assert [words for words in said if words not in text] == []
    assert difference(picture(server, result), inputs["fox.png"]) > 1


def test_chinese_instructions(server, edit):
    case = next(c for c in CASES if not c["instruction"].isascii() and c["kind"] == "replace" and c["given"])
    text = report(server.run(edit(instruction=case["instruction"], source_prompt=case["given"], steps=1)))
    assert f"From: {case['source']}\n" in text and f"To: {case['target']}\n" in text


@pytest.mark.parametrize("route", ["inpaint", "flowedit", "img2img"])
@pytest.mark.parametrize(("image", "mask"), [("fox.png", "left.png"), ("odd.png", "odd_left.png")])
def test_outside_of_the_mask_nothing_changes(server, edit, inputs, route, image, mask):
    instruction = "replace the fox with an apple"
    graph = edit(image, mask, instruction=instruction, route=route, grow=2, feather=10, steps=2)
    graph["before"] = saving(["image", 0])
    images = {k: v for k, v in server.run(graph).outputs.items() if k in ("save", "before")}
    before, after = (
        np.asarray(Image.open(io.BytesIO(server.view(images[k]["images"][0]))).convert("RGB")).astype(int)
        for k in ("before", "save")
    )
    assert after.shape == before.shape == inputs[image].shape
    reach = 2 + 10 + int((inputs[mask][0] > 0).sum())  # grown and feathered
    assert (after[:, reach:] == before[:, reach:]).all()
    assert difference(after[:, : reach - 12], before[:, : reach - 12]) > 1


def test_grey_in_the_mask_changes_less(server, edit, inputs):
    result = server.run(
        edit(mask="stripes.png", instruction="a lemon on a black background", grow=0, feather=0, steps=8)
    )
    change = np.abs(picture(server, result) - inputs["fox.png"]).mean(axis=(0, 2))
    black, grey, white = change[:44].max(), change[44:88].mean(), change[88:].mean()
    assert black == 0 and 1 < grey < 0.7 * white


def test_a_picture_grows_with_the_hosts_padding(server, edit, inputs):
    graph = edit(instruction=FOX)
    pad = {"image": ["image", 0], "left": 40, "top": 0, "right": 0, "bottom": 24, "feathering": 8}
    graph["pad"] = {"class_type": "ImagePadForOutpaint", "inputs": pad}
    graph["edit"]["inputs"] |= {"image": ["pad", 0], "mask": ["pad", 1], "grow": 0, "feather": 8}
    result = server.run(graph)
    pixels = picture(server, result)
    assert "Route: inpaint" in report(result)
    assert pixels.shape == (SIDE + 24, SIDE + 40, 3)
    kept = pixels[: SIDE - 16, 40 + 16 :]
    assert np.abs(kept - inputs["fox.png"][: SIDE - 16, 16:]).max() <= 1  # 8 bit, read and written
    new = pixels[:SIDE, :24]
    assert np.abs(new - 127).mean() > 20, "the grey of the padding is gone"
    assert np.abs(new.reshape(-1, 3).mean(axis=0) - border(inputs["fox.png"]).mean(axis=0)).max() < 40


def test_a_batch_of_pictures_and_one_mask(server, edit, inputs):
    graph = edit(
        mask="left.png", instruction="an apple on a blue background", route="inpaint", grow=0, feather=0
    )
    graph["flip"] = {"class_type": "ImageInvert", "inputs": {"image": ["image", 0]}}
    both = {"image1": ["image", 0], "image2": ["flip", 0]}
    graph["batch"] = {"class_type": "ImageBatch", "inputs": both}
    graph["edit"]["inputs"]["image"] = ["batch", 0]
    images = [np.asarray(i.convert("RGB")).astype(int) for i in saved_images(server, server.run(graph))]
    assert len(images) == 2
    for after, before in zip(images, (inputs["fox.png"], 255 - inputs["fox.png"]), strict=True):
        assert np.abs(after[:, 48:] - before[:, 48:]).max() <= 1
        assert difference(after[:, :48], before[:, :48]) > 1


def test_a_batch_by_flowedit_is_edited_one_by_one(server, edit, inputs):
    """Source and target of two pictures take turns in one call: neither sees the other."""
    given = {"instruction": "make the background green", "source_prompt": FOX, "steps": 4}
    graph = edit(**given)
    graph["batch"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["image", 0], "amount": 2}}
    graph["edit"]["inputs"]["image"] = ["batch", 0]
    for image in saved_images(server, server.run(graph)):
        _, green, blue = border(np.asarray(image.convert("RGB")).astype(int)).mean(axis=0)
        assert green > blue + 40


def test_strengths_between_two_steps_differ(server, edit):
    """The 8-step grid starts at 5/8 for both of these; here each starts where it says."""
    made = [
        picture(server, server.run(edit(instruction=FOX, route="img2img", strength=s))) for s in (0.51, 0.62)
    ]
    assert difference(*made) > 0.2


def test_guidance_is_for_both_prompts(server, edit):
    given = {"instruction": "replace the fox with an apple", "source_prompt": FOX, "steps": 2}
    plain = picture(server, server.run(edit(**given)))
    guided = picture(server, server.run(edit(**given, guidance_scale=3.0)))
    other = picture(server, server.run(edit(**given, guidance_scale=3.0, source_guidance_scale=3.0)))
    assert difference(plain, guided) > 1 and difference(guided, other) > 1
    graph = edit(**given, guidance_scale=3.0)
    text = {"clip": graph["edit"]["inputs"]["clip"], "text": "a red apple"}
    graph["negative"] = {"class_type": "ZImageTextEncode", "inputs": text}
    graph["edit"]["inputs"]["negative"] = ["negative", 0]
    assert difference(picture(server, server.run(graph)), guided) > 1


def test_noises_per_step_and_plain_steps_have_their_effect(server, edit):
    given = {"instruction": "replace the fox with an apple", "source_prompt": FOX, "steps": 3}
    made = [picture(server, server.run(edit(**given, **more))) for more in ({}, {"n_avg": 2}, {"n_min": 2})]
    assert difference(made[0], made[1]) > 0.5 and difference(made[0], made[2]) > 0.5


def test_equal_prompts_give_back_the_picture(server, edit, inputs):
    result = server.run(edit(instruction=FOX, source_prompt=FOX))
    assert "the picture is given back as it is" in report(result)
    assert np.abs(picture(server, result) - inputs["fox.png"]).max() <= 1


def test_the_page_gets_both_pictures(server, edit, inputs):
    result = server.run(edit(instruction="an apple on a blue background"))
    shown = {
        name: np.asarray(Image.open(io.BytesIO(server.view(*result.outputs["edit"][name]))).convert("RGB"))
        for name in ("before", "after")
    }
    assert np.abs(shown["before"].astype(int) - inputs["fox.png"]).max() <= 1
    assert np.array_equal(shown["after"].astype(int), picture(server, result))


def test_the_report_is_an_output(server, edit):
    graph = edit(instruction=FOX)
    graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["edit", 2]}}
    result = server.run(graph)
    assert result.outputs["shown"]["text"][0] == report(result)


def test_flowedit_shows_progress_and_previews(server, edit):
    result = server.run(edit(instruction="replace the fox with a bee", source_prompt=FOX, steps=6, seed=11))
    progress = [data for data in result.of_type("progress") if str(data["node"]) == "edit"]
    assert progress and {data["max"] for data in progress} == {6} and progress[-1]["value"] == 6
    assert result.previews


def test_flowedit_can_be_cancelled_and_the_server_goes_on(server, edit):
    def cancel(event):
        if event["type"] == "progress" and str(event["data"]["node"]) == "edit":
            server.interrupt()

    given = {"instruction": "replace the fox with a bee", "source_prompt": FOX}
    result = server.run(edit(**given, steps=500), on_event=cancel)
    assert result.interrupted and not result.ok and not result.errors
    assert server.run(edit(**given, steps=1)).ok


@pytest.fixture
def omni(server, edit):
    """omni(...) -> the same with small random weights that have omni keys."""
    config = S3DiTConfig(
        dim=256, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=CAPTION, siglip_feat_dim=48
    )
    file = server.base / "models" / "diffusion_models" / "edit_omni.safetensors"
    if not file.exists():
        save_file(random_s3dit(config, seeds(1)[0]).state_dict(), file)

    def graph(*args, **given) -> dict:
        nodes = edit(*args, **{"steps": 2, **given})
        nodes["model"] = model_loader(file.name)
        return nodes

    return graph


def test_omni_weights_are_given_the_instruction_and_every_picture(server, omni, inputs):
    instruction = "replace the fox with an apple"
    result = server.run(omni(instruction=instruction))
    one = picture(server, result)
    text = report(result)
    assert text.startswith("Route: omni, because the weights have omni keys")
    assert f"Instruction: {instruction}\n" in text
    graph = omni(instruction=instruction)
    graph["flip"] = {"class_type": "ImageInvert", "inputs": {"image": ["image", 0]}}
    graph["edit"]["inputs"]["image_2"] = ["flip", 0]
    result = server.run(graph)
    assert "Not used" not in report(result)
    assert difference(picture(server, result), one) > 0.5
    graph["edit"]["inputs"] |= {"image": ["flip", 0], "guidance_scale": 3.0}
    assert difference(picture(server, server.run(graph)), one) > 0.5


def test_omni_weights_keep_what_is_not_masked_in_each_picture_of_a_batch(server, omni, inputs):
    graph = omni(mask="left.png", instruction="an apple", grow=0, feather=0)
    graph["flip"] = {"class_type": "ImageInvert", "inputs": {"image": ["image", 0]}}
    both = {"image1": ["image", 0], "image2": ["flip", 0]}
    graph["batch"] = {"class_type": "ImageBatch", "inputs": both}
    graph["edit"]["inputs"]["image"] = ["batch", 0]
    images = [np.asarray(i.convert("RGB")).astype(int) for i in saved_images(server, server.run(graph))]
    for after, before in zip(images, (inputs["fox.png"], 255 - inputs["fox.png"]), strict=True):
        assert np.abs(after[:, 48:] - before[:, 48:]).max() <= 1
        assert difference(after[:, :48], before[:, :48]) > 1


def test_other_routes_run_on_omni_weights(server, omni):
    for route in ("flowedit", "img2img"):
        result = server.run(omni(instruction="replace the fox with an apple", route=route, steps=1))
        assert report(result).startswith(f"Route: {route}, because it was chosen")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"instruction": "an apple", "route": "flowedit"}, [NO_SOURCE, "source_prompt"]),
        ({"instruction": "an apple", "route": "inpaint"}, [NO_MASK, "Connect one to mask"]),
        ({"instruction": "an apple", "route": "inpaint", "mask": "nothing.png"}, [BLACK_MASK, PAINT]),
        ({"instruction": "an apple", "route": "omni"}, [NO_OMNI, "route auto"]),
        ({"instruction": "  "}, ["instruction is empty"]),
    ],
)
def test_what_is_missing_is_said_and_the_next_run_works(server, edit, given, words):
    result = server.run(edit(steps=1, **given))
    assert not result.ok
    assert result.errors[0]["class_type"] == "ZImageEdit"
    assert [word for word in words if word not in result.errors[0]["message"]] == []
    assert server.run(edit(steps=1, instruction="an apple")).ok
