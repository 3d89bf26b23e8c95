"""Every workflow that ships is well-formed in both forms, and runs as it stands."""

import itertools
import json
import os
import shutil
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from templates.make import BUILT_IN, FILES, SUFFIXES
from tests.host import graphs, weight_files
from tests.host.graphs import changed, node_of
from tests.host.pictures import difference, explained, picture, pixels, saved_images
from tests.host.server import PACK_NAME
from tests.host.well_formed import check_downloads, check_links, check_no_overlap, check_nodes

LARGEST_THUMBNAIL = 200_000  # bytes
# Its loaders are ComfyUI's own, which cannot open the nano model: it asks for the full-size files.
ACCELERATE = "17 Accelerate"
WRITES = {  # what nodes write into the graph that a picture carries, as it was before
    "ZImagePromptEnhancer": {"text": "", "locked": False},
    "ZImageWildcards": {"drawn": ""},
    "ZImageEdit": {"target_prompt": ""},
}
# Widgets that measure pixels, and how long a run takes.
SIZES = {"size", "width", "height", "x", "y", "left", "top", "right", "bottom"}
SIZES |= {"feathering", "scale_by", "steps"}
DEMOS = [name for name in graphs.NAMES if name.endswith(SUFFIXES["nano"])]
FULL = [name for name in graphs.NAMES if name not in DEMOS and name != ACCELERATE]


def our_nodes(contracts: dict) -> set[str]:
    return {name for name, info in contracts.items() if info["python_module"].endswith(PACK_NAME)}


def test_there_are_workflows_and_each_has_both_forms():
    assert len(DEMOS) > 10 and len(FULL) > 10
    assert set(graphs.NAMES) == {path.stem for path in (graphs.WORKFLOWS / "api").glob("*.json")}
    ids = [graphs.ui_form(name)["id"] for name in graphs.NAMES]
    assert len(set(ids)) == len(ids)


def test_each_node_is_in_a_workflow(server):
    used = {node["type"] for name in graphs.NAMES for node in graphs.ui_form(name)["nodes"]}
    assert our_nodes(server.object_info()) - used == set()


@pytest.mark.parametrize("name", graphs.NAMES)
def test_both_forms_are_the_same_graph(server, name):
    assert graphs.to_api(graphs.ui_form(name), server.object_info()) == graphs.api_form(name)


@pytest.mark.parametrize("name", graphs.NAMES)
def test_ui_form_is_consistent(server, name):
    workflow = graphs.ui_form(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] >= max(nodes)
    assert workflow["last_link_id"] >= max(link[0] for link in workflow["links"])
    check_links(nodes, workflow["links"])
    check_nodes(workflow["nodes"], server.object_info())
    check_no_overlap(workflow["nodes"])
    check_downloads(workflow["nodes"])
    assert any(node["type"] in graphs.NOTES for node in nodes.values()), "a note says what the workflow shows"


@pytest.mark.parametrize("name", graphs.NAMES)
def test_thumbnail(name):
    path = graphs.WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size <= LARGEST_THUMBNAIL
    with Image.open(path) as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 128


def test_no_two_thumbnails_are_alike():
    small = {}
    for name in graphs.NAMES:
        with Image.open(graphs.WORKFLOWS / f"{name}.jpg") as thumbnail:
            small[name] = pixels(thumbnail.resize((32, 32)))
    for one, other in itertools.combinations(small, 2):
        assert difference(small[one], small[other]) > 5, f"{one} and {other}"


@pytest.mark.parametrize("name", DEMOS)
def test_runs_as_it_stands_and_the_picture_carries_it(server, name):
    workflow = graphs.short_form(name)
    graph = graphs.to_api(workflow, server.object_info())
    result = server.run(graph, workflow)
    assert result.ok, explained(result)
    images = saved_images(server, result)
    assert images
    for image in images:
        darkest, brightest = image.convert("L").getextrema()
        assert darkest < brightest, "the picture is one flat colour"
        carried, prompt = (json.loads(image.info[key]) for key in ("workflow", "prompt"))
        for node in carried["nodes"]:
            node["properties"].pop("zimage_target", None)  # what an edit made its target of
            slots = graphs.widget_slots(server.object_info(node["type"])) if node["type"] in WRITES else []
            for widget, before in WRITES.get(node["type"], {}).items():
                node["widgets_values"][slots.index(widget)] = before
        for node in prompt.values():
            node.pop("is_changed", None)  # the host's own
            node["inputs"].update(WRITES.get(node["class_type"], {}))
        assert carried == workflow
        assert prompt == graph


@pytest.mark.parametrize("name", FULL)
def test_full_size_lacks_nothing_but_its_files(server, name):
    """Here nobody has them: what comes back is the name of the first one that a loader looks for."""
    result = server.run(graphs.api_form(name))
    assert len(result.errors) == 1
    needed = graphs.models_needed(graphs.ui_form(name))
    assert any(f"named {file!r}" in result.errors[0]["message"] for file in needed)


@pytest.fixture
def small_files_of_official_names(base):
    """nano's parts where the full-size files belong, under their names; at the end they are taken away."""
    parts = {"turbo": "transformer", "base": "transformer", "ae": "autoencoder", "control": "control"}
    made = []
    for file, part in parts.items():
        made.append(base / "models" / FILES[file]["directory"] / FILES[file]["name"])
        shutil.copy(weight_files.NANO / f"{part}.safetensors", made[-1])
    yield
    for path in made:
        path.unlink()


# Between them the graphs have every loader that takes files, and what only one variant has.
@pytest.mark.parametrize("name", ["03 Edit by instruction", "06 Control by edges", "10 Batch"])
def test_full_size_runs_on_files_of_the_official_names(server, small_files_of_official_names, name):
    """All that it needs are the files; small ones here, so that sizes are nano's, too.

    A loader takes no small text encoder from a file.
    """
    demo = graphs.api_form(name + SUFFIXES["nano"])
    graph = graphs.api_form(name)
    for key, node in graph.items():
        if "text_encoder" in node["inputs"]:
            node["inputs"]["text_encoder"] = BUILT_IN
        for widget in SIZES & node["inputs"].keys():
            node["inputs"][widget] = demo[key]["inputs"][widget]
    assert saved_images(server, server.run(graph))


def test_accelerate_runs_on_files_of_the_official_names(server, base):
    """As it stands it lacks nothing but the three files, and with a transformer of the official name it runs.

    Only the text encoder and the VAE are small ones here, the picture small and its steps few.
    """
    graph = graphs.api_form(ACCELERATE)
    refused = server.run(graph)
    assert {error["class_type"] for error in refused.errors} == {"UNETLoader", "CLIPLoader", "VAELoader"}
    assert {error["type"] for error in refused.errors} == {"value_not_in_list"}

    file = base / "models" / "diffusion_models" / graph[node_of(graph, "UNETLoader")]["inputs"]["unet_name"]
    save_file(weight_files.wide_transformer(), file)
    try:
        for theirs, ours, widget in (
            ("CLIPLoader", "ZImageTextEncoderLoader", "text_encoder"),
            ("VAELoader", "ZImageVAELoader", "vae"),
        ):
            nano = {"class_type": ours, "inputs": {widget: "built-in: nano"}}
            graph[node_of(graph, theirs)] = nano
        less = {"EmptySD3LatentImage__width": 64, "EmptySD3LatentImage__height": 64, "KSampler__steps": 2}
        graph = changed(graph, **less)
        result = server.run(graph)
        accelerated = picture(server, result)
        note = result.outputs[node_of(graph, "ZImageAccelerate")]["text"]
        assert "1 layers" in note[0]
        plain = changed(graph, ModelSamplingAuraFlow__model=[node_of(graph, "UNETLoader"), 0])
        assert difference(accelerated, picture(server, server.run(plain))) < 1
    finally:
        file.unlink()  # gigabytes
        server.post("/free", {"unload_models": True, "free_memory": True})


def test_the_control_turns_the_thing_round(server):
    """The edges are those of a mirrored picture. What the prompt alone draws faces the other way."""
    graph = graphs.api_form("06 Control by edges (nano demo)")
    steered = picture(server, server.run(graph))
    alone = picture(server, server.run(changed(graph, ZImageControl__strength=0.0)))
    assert difference(steered[:, ::-1], alone) < 0.5 * difference(steered, alone)


def saturation(pixels: np.ndarray) -> float:
    """Mean distance of a pixel's strongest colour channel from its weakest."""
    return float((pixels.max(axis=-1) - pixels.min(axis=-1)).mean())


def test_the_lora_takes_the_colour_out(server):
    graph = graphs.api_form("07 LoRA (nano demo)")
    with_lora = picture(server, server.run(graph))
    without = picture(server, server.run(changed(graph, LoraLoaderModelOnly__strength_model=0.0)))
    assert saturation(without) > 100
    assert saturation(with_lora) < 0.1 * saturation(without)
    assert np.ptp(with_lora) > 100, "the picture is still there"


def test_image_to_image_changes_the_drawing_and_keeps_the_background(server):
    graph = graphs.api_form("05 Image to image (nano demo)")
    changed_picture = picture(server, server.run(graph))
    shown = graph[node_of(graph, "PreviewImage")]["inputs"]["images"]
    first = picture(server, server.run(changed(graph, SaveImage__images=shown)))
    assert difference(first, changed_picture) > 5
    assert difference(first[:4], changed_picture[:4]) < 16


def test_guidance_changes_the_picture(server):
    graph = graphs.api_form("15 Base with guidance (nano demo)")
    guided = picture(server, server.run(graph))
    assert (
        difference(guided, picture(server, server.run(changed(graph, ZImageGuider__guidance_scale=0.0)))) > 1
    )


def test_a_batch_is_four_different_pictures(server):
    images = saved_images(server, server.run(graphs.api_form("10 Batch (nano demo)")))
    assert len(images) == 4
    for first, second in itertools.combinations(images, 2):
        assert difference(*(np.asarray(image).astype(np.int16) for image in (first, second))) > 1


def test_the_second_pass_is_larger(server):
    graph = graphs.api_form("12 Draft and refine (nano demo)")
    side = graph[node_of(graph, "ZImageLatent")]["inputs"]["width"]
    assert picture(server, server.run(graph)).shape[:2] == (2 * side, 2 * side)


def test_the_page_lists_them_in_the_order_of_their_numbers(server):
    listed = server.get_json("/workflow_templates")[PACK_NAME]
    assert listed == sorted(graphs.NAMES)
    assert server.get_json("/api/workflow_templates")[PACK_NAME] == listed


@pytest.mark.parametrize("name", graphs.NAMES)
def test_the_page_can_fetch_it(server, name):
    assert name in server.get_json("/workflow_templates")[PACK_NAME]
    for path in (f"{name}.json", f"{name}.jpg"):
        served = server.get(f"/api/workflow_templates/{PACK_NAME}/{quote(path)}")
        assert served == (graphs.WORKFLOWS / path).read_bytes()


def test_no_workflow_names_a_place_on_this_machine():
    home = os.path.expanduser("~")
    for path in (*graphs.WORKFLOWS.rglob("*.json"), *graphs.BLUEPRINTS.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert home not in text and "://localhost" not in text
