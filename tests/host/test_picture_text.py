"""Z-Image Picture Text: the prompt of a picture out of its own file, whatever that file is."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.core.random_models import seeds
from tests.host.graphs import api_form, changed, node_of
from tests.host.inside import module_without_nodes
from tests.host.pictures import explained, saved_images

EDIT = "03 Edit by instruction (nano demo)"

png_text = module_without_nodes("nodes.host.page.png_text")
graph_in, PngError = png_text.graph_in, png_text.PngError
LIMIT = 8 << 20  # bytes of text, as the help page says
GRAPH = {"1": {"class_type": "X", "inputs": {"text": 'a "fox" [in {a box\\'}}}


def png(path: Path, *chunks: tuple, later: bytes = b"") -> Path:
    """A small PNG with text chunks of Pillow's: (method, keyword, text, *options); later: before its end."""
    info = PngInfo()
    for method, *given in chunks:
        getattr(info, method)(*given)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    if later:
        whole = path.read_bytes()
        path.write_bytes(whole[:-12] + later + whole[-12:])
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize(
    "written",
    [("add_text", False), ("add_text", True), ("add_itxt", False), ("add_itxt", True)],
    ids=["tEXt", "zTXt", "iTXt", "iTXt compressed"],
)
@pytest.mark.parametrize("ascii", [True, False])
def test_every_kind_of_text_is_read(tmp_path, written, ascii) -> None:
    method, packed = written
    graph = {**GRAPH, "2": {"class_type": "Y", "inputs": {"text": "\u72d0\u72f8, caf\u00e9"}}}
    text = json.dumps(graph, ensure_ascii=ascii)
    more = {"add_text": (packed,), "add_itxt": ("en", "key", packed)}[method]
    path = png(tmp_path / "a.png", ("add_text", "workflow", "{}"), (method, "prompt", text, *more))
    assert graph_in(path) == graph
    assert graph_in(path, "workflow") == {}


def test_a_text_behind_the_pixels_is_read(tmp_path) -> None:
    path = png(tmp_path / "a.png", later=chunk(b"tEXt", b"prompt\0" + json.dumps(GRAPH).encode()))
    assert graph_in(path) == GRAPH


@pytest.mark.parametrize("packed", [False, True])
def test_texts_up_to_the_limit_are_read(tmp_path, packed) -> None:
    for size, fits in ((LIMIT, True), (LIMIT + 1, False)):
        path = png(tmp_path / "a.png", ("add_text", "prompt", '"' + "a" * (size - 2) + '"', packed))
        if fits:
            assert len(graph_in(path)) == size - 2
        else:
            with pytest.raises(PngError, match="larger than 8 MB"):
                graph_in(path)


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_depth_is_bounded(tmp_path, opened) -> None:
    closed = {"[": "]"}.get(opened, "}")
    for depth, fits in ((64, True), (65, False), (100_000, False)):
        text = opened * (depth - 1) + "[]" + closed * (depth - 1)
        path = png(tmp_path / "a.png", ("add_text", "prompt", text))
        if fits:
            assert graph_in(path) == json.loads(text)
        else:
            with pytest.raises(PngError, match="deeper than 64"):
                graph_in(path)


@pytest.mark.parametrize(
    "text", ['"' + '\\\\\\"' * 1_000_000, '\\"' * 2_000_000, '"' * 4_000_001, '["{[\\"[{"]' * 100]
)
def test_texts_made_to_take_long_do_not(tmp_path, text) -> None:
    """Read at a pace that grows with the length alone: by a square of it this test would take hours."""
    path = png(tmp_path / "a.png", ("add_text", "prompt", text))
    with pytest.raises(PngError):
        graph_in(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no PNG"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is no PNG"),
        (png_text.SIGNATURE, "carries no graph"),
        (png_text.SIGNATURE + b"\xff\xff\xff\xfftEXtprompt\0{", "no valid JSON"),
        (png_text.SIGNATURE + chunk(b"tEXt", b"parameters\0a fox"), "carries no graph"),
        (png_text.SIGNATURE + chunk(b"tEXt", b"prompt\0{"), "no valid JSON"),
        (png_text.SIGNATURE + chunk(b"zTXt", b"prompt\0\0not packed"), "no valid JSON"),
        (png_text.SIGNATURE + chunk(b"iTXt", b"prompt\0"), "no valid JSON"),
    ],
)
def test_other_files_are_told(tmp_path, content, reason) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(PngError, match=reason):
        graph_in(path)


@pytest.mark.parametrize("seed", seeds(3))
def test_damage_is_told_or_leaves_a_graph(tmp_path, seed) -> None:
    whole, dice = (
        png(tmp_path / "a.png", ("add_text", "prompt", json.dumps(GRAPH), True)).read_bytes(),
        random.Random(seed),
    )
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        (tmp_path / "b.png").write_bytes(
            damaged[: dice.randint(0, len(damaged))] if dice.random() < 0.3 else damaged
        )
        try:
            graph_in(tmp_path / "b.png")
        except PngError as error:
            assert "b.png" in str(error)


def reading(image: str) -> dict:
    return {
        "read": {"class_type": "ZImagePictureText", "inputs": {"image": image}},
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["read", 0]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["read", 1]}},
    }


def read(server, image: str) -> tuple[str, str]:
    """(text, report) of a picture in the input folder."""
    result = server.run(reading(image))
    assert result.ok, explained(result)
    return result.outputs["text"]["text"][0], result.outputs["report"]["text"][0]


def kept(server, result, name: str) -> str:
    """The one saved picture as a file of the input folder, byte by byte."""
    (entry,) = [
        image
        for out in result.outputs.values()
        for image in out.get("images", [])
        if image["type"] == "output"
    ]
    path = server.base / "input" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(server.view(entry))
    return name


def test_a_typed_prompt_comes_back(server, turbo) -> None:
    result = server.run(
        changed(turbo, ZImageTextEncode__text="a red \u72d0 on a hill", ZImageTurboSampler__steps=1)
    )
    saved_images(server, result)
    name = kept(server, result, "folder/typed.png")
    assert read(server, name) == ("a red \u72d0 on a hill", "The prompt of typed.png:")
    assert read(server, f"{name} [input]")[0] == "a red \u72d0 on a hill"


def test_what_the_enhancer_wrote_comes_back(server) -> None:
    graph = changed(api_form("02 Prompt enhancer (nano demo)"), ZImageTurboSampler__steps=1)
    graph = changed(graph, ZImagePromptEnhancer__seed=71, ZImagePromptEnhancer__max_tokens=24)
    result = server.run(graph)
    text = result.outputs[node_of(graph, "ZImagePromptEnhancer")]["enhanced"][0]
    assert read(server, kept(server, result, "enhanced.png"))[0] == text != ""


def test_an_edited_picture_shows_what_it_was_edited_to_and_is_drawn_again(server) -> None:
    """Another instruction in the picture's own graph changes nothing: its target is in it."""
    graph = changed(api_form(EDIT), ZImageEdit__steps=2, ZImageEdit__route="flowedit")
    result = server.run(graph)
    (image,) = saved_images(server, result)
    text, _ = read(server, kept(server, result, "edited.png"))
    assert text == "an apple on a blue background"
    again = changed(json.loads(image.info["prompt"]), ZImageEdit__instruction="add a hat")
    (same,) = saved_images(server, server.run(again))
    assert same.tobytes() == image.tobytes()


def test_an_edit_by_a_description_shows_that(server) -> None:
    given = {"instruction": "a lemon", "source_prompt": "", "route": "img2img", "steps": 1}
    graph = changed(api_form(EDIT), **{f"ZImageEdit__{name}": value for name, value in given.items()})
    assert read(server, kept(server, server.run(graph), "described.png"))[0] == "a lemon"


def test_it_feeds_the_edit_node(server, turbo) -> None:
    result = server.run(
        changed(turbo, ZImageTextEncode__text="a fox on a red background", ZImageTurboSampler__steps=1)
    )
    name = kept(server, result, "fox.png")
    graph = changed(api_form(EDIT), ZImageEdit__steps=1, ZImageEdit__route="flowedit")
    graph |= reading(name)
    graph[node_of(graph, "ZImageEdit")]["inputs"]["source_prompt"] = ["read", 0]
    result = server.run(graph)
    assert result.ok, explained(result)
    report = result.outputs[node_of(graph, "ZImageEdit")]["text"][0]
    assert "From: a fox on a red background\n" in report


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([], "carries no graph"),
        ([("add_text", "prompt", "{")], "no valid JSON"),
        ([("add_text", "prompt", json.dumps(GRAPH))], "has no prompt"),
        ([("add_text", "prompt", "[[[1]]]")], "has no prompt"),
    ],
    ids=["none", "bad", "unknown nodes", "no graph"],
)
def test_without_a_prompt_there_is_an_empty_text_and_a_note(server, chunks, reason) -> None:
    png(server.base / "input" / "none.png", *chunks)
    text, report = read(server, "none.png")
    assert text == "" and reason in report


def test_halves_of_letters_are_replaced(server) -> None:
    """JSON may hold one half of an emoji; no text encoder takes it."""
    graph = {
        "e": {"class_type": "ZImageTextEncode", "inputs": {"text": "a \ud83d fox"}},
        "s": {"class_type": "ZImageTurboSampler", "inputs": {"conditioning": ["e", 0]}},
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0]}},
        "p": {"class_type": "SaveImage", "inputs": {"images": ["d", 0]}},
    }
    png(server.base / "input" / "half.png", ("add_text", "prompt", json.dumps(graph)))
    assert read(server, "half.png")[0] == "a ? fox"


def test_a_file_that_changed_is_read_anew(server, turbo) -> None:
    for prompt in ("a fox", "a bee"):
        graph = {
            "e": {"class_type": "ZImageTextEncode", "inputs": {"text": prompt}},
            "s": {"class_type": "ZImageTurboSampler", "inputs": {"conditioning": ["e", 0]}},
            "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0]}},
            "p": {"class_type": "SaveImage", "inputs": {"images": ["d", 0]}},
        }
        png(server.base / "input" / "changing.png", ("add_text", "prompt", json.dumps(graph)))
        assert read(server, "changing.png")[0] == prompt


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname", "gone.png", "a.png [output]", "", "a" * 999, "\0"]
)
def test_nothing_outside_of_the_input_folder_is_read(server, name) -> None:
    png(server.base / "outside.png", ("add_text", "prompt", "{}"))
    result = server.run(reading(name))
    assert not result.ok
    assert "input folder" in " ".join(error["message"] for error in result.errors)
