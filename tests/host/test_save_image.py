"""Saved pictures on a real server: what sites can read in them, what the page can, and what nobody can."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from tests.core.test_parameters import read
from tests.host.graphs import api_form, node_of, ui_form
from tests.host.inside import module_without_nodes
from tests.host.pictures import explained, pixels
from tests.host.server import PACK_ROOT, ComfyServer, Result

graph_facts = module_without_nodes("nodes.host.page.graph_facts")
TURBO = "01 Text to image (nano demo)"
USER_COMMENT, EXIF_PART = 0x9286, 0x8769
FORMATS = {"png": ("PNG", "png"), "webp": ("WEBP", "webp"), "jpeg": ("JPEG", "jpg")}


def saving(graph: dict, **inputs) -> dict:
    """A graph whose pictures our node saves, in one step."""
    saver = graph[node_of(graph, "SaveImage")]
    saver["class_type"] = "ZImageSaveImage"
    saver["inputs"] |= {"filename_prefix": "shared", **inputs}
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    return graph


def files(server: ComfyServer, result: Result) -> list[bytes]:
    assert result.ok, explained(result)
    entries = [entry for output in result.outputs.values() for entry in output.get("images", [])]
    return [server.view(entry) for entry in entries if entry["type"] == "output"]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def fields(image: Image.Image) -> str | None:
    if image.format == "PNG":
        return image.text.get("parameters")
    comment = image.getexif().get_ifd(EXIF_PART).get(USER_COMMENT)
    return None if comment is None else comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


def graphs(image: Image.Image) -> dict:
    """The graphs that a picture carries, by name, found where ComfyUI's page looks for them."""
    if image.format == "PNG":
        return {name: json.loads(text) for name, text in image.text.items() if name != "parameters"}
    texts = [value for value in image.getexif().values() if isinstance(value, str)]
    return {name: json.loads(graph) for name, _, graph in (text.partition(":") for text in texts)}


def notes(result: Result, graph: dict) -> str:
    """What the node says under itself."""
    return "".join(result.outputs[node_of(graph, "ZImageSaveImage")].get("text", []))


@pytest.mark.parametrize("kind", FORMATS)
def test_fields_and_graphs_by_format(server, kind):
    graph, workflow = saving(api_form(TURBO), format=kind), ui_form(TURBO)
    (content,) = files(server, server.run(graph, workflow))
    image = opened(content)
    assert image.format == FORMATS[kind][0] and image.size == (128, 128)
    prompt, negative, told = read(fields(image))
    assert (prompt, negative) == ("a red apple on a white background", "")
    assert told == {
        "Steps": "1", "Sampler": "Euler", "CFG scale": "1", "Seed": "7", "Size": "128x128",
        "Model": "built-in: nano", "Version": "ComfyUI",
    }  # fmt: skip
    assert graphs(image) == ({} if kind == "jpeg" else {"prompt": graph, "workflow": workflow})


@pytest.mark.parametrize("kind", FORMATS)
def test_halves_of_letters_are_replaced(server, kind):
    """JSON may hold one half of an emoji."""
    graph = saving(api_form(TURBO), format=kind)
    graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"] = "a \ud83d fox"
    (content,) = files(server, server.run(graph))
    assert read(fields(opened(content)))[0] == "a ? fox"


def test_pixels_are_those_of_comfyuis_own_node(server):
    """In what loses nothing; a JPEG of quality 95 is near."""
    graph = saving(api_form(TURBO))
    saver = node_of(graph, "ZImageSaveImage")
    images = graph[saver]["inputs"]["images"]
    for number, (kind, quality) in enumerate((("webp", 100), ("jpeg", 95), ("webp", 30))):
        settings = {"images": images, "filename_prefix": "shared", "format": kind, "quality": quality}
        graph[f"more{number}"] = {"class_type": "ZImageSaveImage", "inputs": settings}
    graph["own"] = {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": "own"}}
    result = server.run(graph)
    assert result.ok, explained(result)
    shown = {
        node: server.view(output["images"][0])
        for node, output in result.outputs.items()
        if "images" in output
    }
    made = {node: pixels(opened(content)) for node, content in shown.items()}
    assert (made[saver] == made["own"]).all() and (made["more0"] == made["own"]).all()
    assert 0 < np.abs(made["more1"] - made["own"]).mean() < 4
    assert len(shown["more2"]) < len(shown["more0"])


def test_names_count_on_in_folders_and_none_leads_out(server):
    for number in (1, 2):
        for kind, suffix in (("png", "png"), ("jpeg", "jpg")):
            graph = saving(api_form(TURBO), filename_prefix=f"sub/%width%-{kind}", format=kind)
            graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["seed"] = number
            files(server, server.run(graph))
            assert (server.base / "output" / "sub" / f"128-{kind}_{number:05}_.{suffix}").is_file()
    for prefix in ("../out", "/out", "sub/../../out"):
        result = server.run(saving(api_form(TURBO), filename_prefix=prefix))
        assert not result.ok and "outside the output folder" in result.errors[0]["message"]


@pytest.mark.parametrize("prefix", ["kept/", "kept\\..", "", " ", "kept/n%batch_num%"])
def test_no_picture_is_written_over(server, prefix):
    """Also where the prefix names folders alone, or has the picture's number in it."""
    written = []
    for color in (1, 2):
        graph = {
            "i": {
                "class_type": "EmptyImage",
                "inputs": {"width": 16, "height": 16, "batch_size": 2, "color": color},
            },
            "s": {"class_type": "ZImageSaveImage", "inputs": {"images": ["i", 0], "filename_prefix": prefix}},
        }
        result = server.run(graph)
        assert result.ok, explained(result)
        written += [(found["subfolder"], found["filename"]) for found in result.outputs["s"]["images"]]
    assert len(set(written)) == 4
    assert not [name for _, name in written if name.startswith((".", " "))]


def test_each_picture_of_a_batch_of_prompts_has_its_own(server):
    graph = saving(api_form("09 Several prompts (nano demo)"))
    lines = graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"].splitlines()
    told = [read(fields(opened(content)))[0] for content in files(server, server.run(graph))]
    assert told == lines


def test_loras_and_a_negative(server):
    (content,) = files(server, server.run(saving(api_form("07 LoRA (nano demo)"))))
    prompt, _, _ = read(fields(opened(content)))
    assert prompt == "a fox on a blue background <lora:nano_greyscale_lora:1>"
    (content,) = files(
        server, server.run(saving(api_form("15 Base with guidance (nano demo)"), format="webp"))
    )
    prompt, negative, told = read(fields(opened(content)))
    assert (prompt, negative, told["CFG scale"]) == (
        "a fox on a yellow background",
        "a blue background",
        "1.5",
    )


def test_texts_that_nodes_wrote_also_when_only_the_sampler_runs_again(server):
    """And in Chinese, through every kind of file."""
    graph = saving(api_form(TURBO))
    graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"] = ["s", 0]
    choices = {"text": "\u4e00\u53ea{\u7ea2\u8272|\u84dd\u8272}\u7684\u72d0\u72f8", "seed": 3}
    graph["w"] = {"class_type": "ZImageWildcards", "inputs": choices}
    graph["s"] = {"class_type": "ZImageStyle", "inputs": {"text": ["w", 0], "style": "painting, ink wash"}}
    for seed, kind in enumerate(FORMATS):
        graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["seed"] = seed
        graph[node_of(graph, "ZImageSaveImage")]["inputs"]["format"] = kind
        result = server.run(graph)
        (content,) = files(server, result)
        if seed == 0:
            text = result.outputs["s"]["styled"][0]
            assert result.outputs["w"]["drawn"][0] in text
        else:
            assert not {"w", "s"} & set(result.ran)
        image = opened(content)
        assert read(fields(image))[0] == text
        if kind != "jpeg":
            assert graph_facts.saved_prompts(graphs(image)["prompt"]) == [text]


def test_the_enhancers_text_is_that_of_each_picture(server):
    graph = saving(api_form("02 Prompt enhancer (nano demo)"))
    enhancer = node_of(graph, "ZImagePromptEnhancer")
    graph[enhancer]["inputs"].update(seed=71, max_tokens=24)
    for seed in (1, 2):
        graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["seed"] = seed
        result = server.run(graph)
        (content,) = files(server, result)
        if seed == 1:
            text = result.outputs[enhancer]["enhanced"][0]
        assert read(fields(opened(content)))[0] == text.strip()
    assert enhancer not in result.ran


def test_what_the_graph_does_not_tell_is_said_on_the_node(server):
    graph = saving(api_form(TURBO))
    combined = {"conditioning_1": ["2", 0], "conditioning_2": ["2", 0]}
    graph["c"] = {"class_type": "ConditioningCombine", "inputs": combined}
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"].update(conditioning=["c", 0], seed=5)
    result = server.run(graph)
    (content,) = files(server, result)
    prompt, _, told = read(fields(opened(content)))
    assert prompt == "" and told["Seed"] == "5"
    assert notes(result, graph) == "Not told by the graph, so not written: prompt."


def test_hashes_are_computed_beside_the_runs_and_kept(server):
    loras = server.base / "models" / "loras" / "folder"
    loras.mkdir(parents=True, exist_ok=True)
    file = shutil.copy(
        PACK_ROOT / "models" / "nano" / "loras" / "nano_greyscale_lora.safetensors", loras / "own.safetensors"
    )
    expected = hashlib.sha256(open(file, "rb").read()).hexdigest()[:10]
    graph = saving(api_form("07 LoRA (nano demo)"), hashes=True)
    graph[node_of(graph, "LoraLoaderModelOnly")]["inputs"]["lora_name"] = "folder/own.safetensors"
    for seed in range(100):
        graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["seed"] = seed
        result = server.run(graph)
        (content,) = files(server, result)
        if seed == 0:
            assert "Hashes are being computed, later pictures have them: folder/own" in notes(result, graph)
        told = read(fields(opened(content)))[2]
        if "Lora hashes" in told:
            break
        time.sleep(0.1)
    assert told["Lora hashes"] == f"own: {expected}" and not notes(result, graph)
    assert "Model hash" not in told  # the demo model is on no site
    kept = json.loads((server.base / "user" / "zimage" / "model_hashes.json").read_text(encoding="utf-8"))
    assert [entry[2][:10] for path, entry in kept.items() if path.endswith("own.safetensors")] == [expected]
    graph[node_of(graph, "ZImageSaveImage")]["inputs"]["hashes"] = False
    (content,) = files(server, server.run(graph))
    assert "Lora hashes" not in read(fields(opened(content)))[2]


def test_no_place_of_this_machine_is_in_a_picture(server):
    """But in the graph, which holds what was typed; here that is nothing of the kind."""
    for kind in FORMATS:
        graph = saving(api_form(TURBO), format=kind, hashes=True)
        (content,) = files(server, server.run(graph, ui_form(TURBO)))
        for place in (str(server.base), str(PACK_ROOT), "127.0.0.1", str(server.host)):
            for text in (place.encode(), place.encode("utf-16-be"), place.encode("utf-16-le")):
                assert text not in content


def test_a_size_that_a_format_cannot_hold(server):
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16384, "height": 8, "batch_size": 1, "color": 0},
        },
        "2": {"class_type": "ZImageSaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "wide"}},
    }
    graph["2"]["inputs"]["format"] = "webp"
    result = server.run(graph)
    assert not result.ok and "16384x8 pixels: webp takes 16383 a side" in result.errors[0]["message"]
    graph["2"]["inputs"]["format"] = "png"
    (content,) = files(server, server.run(graph))
    assert read(fields(opened(content)))[2] == {"Size": "16384x8", "Version": "ComfyUI"}


def test_long_prompts_and_jpeg(server):
    """Its EXIF part holds 64 KB: then the picture is saved without, and the node says so."""
    graph = saving(api_form(TURBO), format="jpeg")
    for encode in graph.values():
        if encode["class_type"] == "ZImageTextEncode":
            encode["inputs"].update(text="a fox " * 6000, max_tokens=32)
    result = server.run(graph)
    (content,) = files(server, result)
    assert fields(opened(content)) is None
    assert "longer than a JPEG can hold" in notes(result, graph)


@pytest.fixture(scope="module")
def silent(host_path, tmp_path_factory):
    with ComfyServer(host_path, tmp_path_factory.mktemp("silent"), "--disable-metadata") as server:
        yield server


@pytest.mark.parametrize("kind", FORMATS)
def test_disable_metadata_is_obeyed(silent, kind):
    graph = saving(api_form(TURBO), format=kind)
    result = silent.run(graph, ui_form(TURBO))
    (content,) = files(silent, result)
    assert "--disable-metadata" in notes(result, graph)
    image = opened(content)
    assert fields(image) is None and graphs(image) == {}
    assert not re.search(rb"apple|ZImage|a\0p\0p\0l\0e", content)
