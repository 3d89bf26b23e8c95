"""Captions by a model: what it is asked, what is made of its answer, where pictures go, and without one."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from tests.core import small_vlm
from tests.core.test_endpoint import Server, says, serve, whole  # noqa: F401  (serve is a fixture)
from zimage_core.prompt.endpoint_settings import EndpointError, read_endpoints
from zimage_core.train.data.__main__ import main
from zimage_core.train.data.captioners import EndpointCaptioner, LocalCaptioner, destination, local_models
from zimage_core.train.data.captions import (
    KINDS,
    LANGUAGES,
    SPEC,
    Asked,
    CaptionError,
    caption_all,
    captions_of,
    cleaned_caption,
    cleaned_name,
    difference,
)
from zimage_core.train.data.picture_text import TextLine
from zimage_core.train.data.records import PictureRecord
from zimage_core.train.data.store import load

TEXTS = json.loads(Path(__file__).with_name("training_data.json").read_text("utf-8"))
FIVE = {kind: f"the {kind} one" for kind in KINDS}


class Answers:
    """A captioner that says what the test wants and keeps what it was asked."""

    name = "answers of a test"

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []

    def answer(self, images: Sequence[Image.Image], question: str, max_tokens: int) -> str:
        self.asked.append((len(images), question))
        return self.answers.pop(0)


PICTURE = Image.new("RGB", (32, 32), "red")


@pytest.mark.parametrize("form", ["{}", "```json\n{}\n```", "Here it is:\n{}\nDone."])
def test_all_kinds_in_one_answer(form: str) -> None:
    captioner = Answers(form.replace("{}", json.dumps(FIVE)))
    assert captions_of(captioner, PICTURE, Asked()) == FIVE
    assert len(captioner.asked) == 1


def test_kinds_that_are_missing_are_asked_for_alone() -> None:
    part = {"long": "a\nlong one", "medium": "", "short": 3, "tags": ["fox", "red"]}
    captioner = Answers(json.dumps(part), '"medium one"', '{"short": "short one"}', "user\none")
    found = captions_of(captioner, PICTURE, Asked())
    assert found["long"] == "a long one" and found["tags"] == "fox, red"
    assert [found[kind] for kind in ("medium", "short", "user")] == ["medium one", "short one", "user one"]
    wanted = SPEC["en"]["wanted"]["medium"]
    assert [wanted in question for _, question in captioner.asked] == [True, True, False, False]


def test_a_model_that_answers_no_json_is_asked_for_each() -> None:
    captioner = Answers("[[[[", *(f"caption {n}" for n in range(5)))
    assert list(captions_of(captioner, PICTURE, Asked()).values()) == [f"caption {n}" for n in range(5)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_in_the_picture_is_told_first_and_as_it_is(language: str) -> None:
    lines = [TextLine(text, 0.9, 0.1) for text in ("STOP", *TEXTS["signs"])]
    question = Asked(lines, "a sign at a road", language).question(KINDS)
    for text in ("STOP", *TEXTS["signs"], "a sign at a road", *KINDS):
        assert text in question
    assert question.index("STOP") < question.index('"long"')
    assert SPEC[language]["text"].split("{")[0] not in Asked(language=language).question(KINDS)


def test_both_languages_have_the_same_words() -> None:
    assert SPEC["en"].keys() == SPEC["zh"].keys()
    assert set(SPEC["en"]["wanted"]) == set(SPEC["zh"]["wanted"]) == set(KINDS)


def test_text_is_read_before_the_caption_is_asked_for(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 200), "white")
    ImageDraw.Draw(image).text((200, 100), "BAKERY", "black", anchor="mm", font_size=50)
    image.save(tmp_path / "a.png")
    captioner = Answers(json.dumps(FIVE))
    records, problems = caption_all([PictureRecord(tmp_path / "a.png", ("a  shop",))], captioner)
    assert problems == [] and "BAKERY" in captioner.asked[0][1] and "a shop" in captioner.asked[0][1]
    assert records[0].captions == (*FIVE.values(), "a shop")
    assert records[0].kinds == (*KINDS, "original")


def test_a_captioner_that_fails_loses_no_picture(tmp_path: Path) -> None:
    class Broken(Answers):
        def answer(self, *_: object) -> str:
            raise CaptionError("the model is ill")

    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    given = [PictureRecord(tmp_path / "a.png", ("a fox",)), PictureRecord(tmp_path / "b.png", ("a dog",))]
    records, problems = caption_all(given, Broken())
    assert [record.captions for record in records] == [("a fox",), ("a dog",)]
    assert "the model is ill" in problems[0] and "b.png" in problems[1]


def test_difference_captions_describe_compare_and_instruct() -> None:
    captioner = Answers("a red fox", "a blue fox", "the colour", "Make  the fox blue.\n")
    assert difference(captioner, PICTURE, PICTURE) == "Make the fox blue."
    assert [count for count, _ in captioner.asked] == [1, 1, 2, 0]
    assert "a red fox" in captioner.asked[2][1] and "a blue fox" in captioner.asked[2][1]
    assert "the colour" in captioner.asked[3][1]


# ---- without a model


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "IMG_2034": "",
        "DSC01234-edit": "",
        "red_fox (1)": "red fox",
        "a-castle-at-night-02": "a castle at night",
        "5f2a9c0e8b1d": "",
        "123e4567-e89b-12d3-a456-426614174000": "",
        "2024-05-03 12.30.11": "",
        "Screenshot 2024-01-01": "",
        "x": "",
    }.items(),
)
def test_names_of_files(name: str, words: str) -> None:
    assert cleaned_name(name) == words


def test_chinese_names_of_files() -> None:
    assert [cleaned_name(name) for name in TEXTS["file_names"]] == TEXTS["cleaned_names"]


@pytest.mark.parametrize(
    ("text", "clean"),
    {
        "a fox &amp; a <b>castle</b>": "a fox & a castle",
        "(fox:1.2), red, red, <lora:x:0.8>, fox": "fox, red",
        "a fox (running) in snow": "a fox (running) in snow",
        "see https://example.com/a.png\x00 a fox": "see a fox",
        " , ,": "",
        "cafe\u0301": "caf\u00e9",
        "a fox, a fox": "a fox, a fox",
    }.items(),
)
def test_captions_are_cleaned(text: str, clean: str) -> None:
    assert cleaned_caption(text) == clean


def test_without_a_model_names_and_captions_are_taken(tmp_path: Path) -> None:
    names = ("red_fox.png", "IMG_1.png", "c.png", "d.png")
    given = [PictureRecord(tmp_path / name) for name in names]
    given[2] = PictureRecord(tmp_path / "c.png", ("<i>a</i> dog", "&nbsp;"), kinds=("short", "long"))
    given[3] = PictureRecord(tmp_path / "d.png", drop="blurred")
    records, problems = caption_all(given, None)
    assert [record.captions for record in records] == [("red fox",), (), ("a dog",), ()]
    assert records[2].kinds == ("short",)
    assert len(problems) == 1 and "IMG_1.png" in problems[0]


# ---- where pictures go


def settings(tmp_path: Path, server: Server, **fields: object) -> Path:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"eye": {"url": server.endpoint().url, "model": "m", **fields}}))
    return path


def test_an_endpoint_sees_pictures_only_where_the_owner_says_so(serve, tmp_path: Path) -> None:  # noqa: F811
    server = serve(says(200, whole(json.dumps(FIVE))))
    for fields in ({}, {"pictures": False}):
        with pytest.raises(CaptionError, match="may not be sent pictures"):
            EndpointCaptioner(read_endpoints(settings(tmp_path, server, **fields))["eye"])
    for value in ("true", 1, None):
        with pytest.raises(EndpointError, match="pictures"):
            read_endpoints(settings(tmp_path, server, pictures=value))
    assert server.requests == []


def test_what_an_endpoint_is_sent_is_the_picture_and_none_of_its_notes(serve, tmp_path: Path) -> None:  # noqa: F811
    server = serve(says(200, whole(json.dumps(FIVE))))
    image, exif = Image.new("RGB", (3000, 1500), "red"), Image.Exif()
    exif[0x010E] = "taken at home"
    image.save(tmp_path / "a.jpg", exif=exif, comment=b"taken at home")
    captioner = EndpointCaptioner(read_endpoints(settings(tmp_path, server, pictures=True))["eye"])
    records, problems = caption_all([PictureRecord(tmp_path / "a.jpg")], captioner)
    assert problems == [] and records[0].captions == tuple(FIVE.values())
    url = server.requests[0].body["messages"][0]["content"][0]["image_url"]["url"]
    sent = base64.b64decode(url.split(",")[1])
    assert b"taken at home" not in sent
    with Image.open(io.BytesIO(sent)) as seen:
        assert seen.size == (1024, 512)


def test_the_command_says_how_many_go_where_before_the_first(serve, tmp_path: Path, caplog) -> None:  # noqa: F811
    caplog.set_level("INFO")
    said: list[str] = []

    def answer(request) -> None:
        said.append(caplog.text)
        says(200, whole(json.dumps(FIVE)))(request)

    server = serve(answer)
    for number in range(2):
        picture = Image.effect_noise((300, 300), 60 + number)
        picture.save(tmp_path / f"{number}.png")
    command = [str(tmp_path), "--skip", "text", "--keep", "tinted", "--captions"]
    command += ["--out", str(tmp_path / "out"), "--endpoint", "eye", "--endpoints"]
    assert main([*command, str(settings(tmp_path, server))]) == 1 and said == []
    assert main([*command, str(settings(tmp_path, server, pictures=True))]) == 0
    assert len(said) == 2 and f"2 pictures are sent to endpoint 'eye' ({server.endpoint().host})" in said[0]
    assert load(tmp_path / "out" / "data.jsonl").pictures[0].by_kind == FIVE


def test_the_command_writes_instructions_for_pairs(serve, tmp_path: Path) -> None:  # noqa: F811
    server = serve(says(200, whole("Make it blue.")))
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "pairs.jsonl").write_text('{"before": "a.png", "after": "a.png"}\n')
    command = [str(tmp_path), "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    endpoints = str(settings(tmp_path, server, pictures=True))
    assert main([*command, "--endpoint", "eye", "--endpoints", endpoints]) == 0
    row = json.loads((tmp_path / "out" / "pairs.jsonl").read_text())
    assert row == {"before": "a.png", "after": "a.png", "instruction": "Make it blue."}
    (tmp_path / "pairs.jsonl").write_text('{"before": "a.png"}\n')
    assert main([*command, "--endpoint", "eye", "--endpoints", endpoints]) == 1


def test_where_pictures_go_is_said_for_each_captioner(tmp_path: Path) -> None:
    assert "none is sent anywhere" in destination(None, 3)
    assert "none leaves this machine" in destination(LocalCaptioner(model_folder(tmp_path / "m")), 3)


# ---- models in local folders


def model_folder(
    folder: Path, config: dict = {"model_type": "llava"}, weights: str = "model.safetensors"
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(b"")
    return folder


def test_only_safetensors_and_no_code_of_a_folder(tmp_path: Path) -> None:
    model_folder(tmp_path / "good")
    pickled = model_folder(tmp_path / "pickled", weights="pytorch_model.bin")
    code = model_folder(tmp_path / "code", {"auto_map": {"AutoModel": "evil.Model"}})
    (code / "evil.py").write_text("raise SystemExit('run')")
    assert local_models(tmp_path) == ["code", "good"] and local_models(tmp_path / "none") == []
    with pytest.raises(CaptionError, match=r"holds no \.safetensors"):
        LocalCaptioner(pickled)
    with pytest.raises(CaptionError, match="its own code"):
        LocalCaptioner(code)
    with pytest.raises(CaptionError, match="does not load"):
        LocalCaptioner(tmp_path / "good").answer([PICTURE], "what is it?", 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_of_the_library_answers_as_in_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    """With none, one and two pictures: as by its processor and generate, called one after the other."""
    import transformers

    small_vlm.save(tmp_path, dtype)
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    captioner = LocalCaptioner(tmp_path)
    images = [Image.new("RGB", (300, 200), "red"), Image.effect_noise((200, 300), 90).convert("RGB")]
    for count in range(3):
        shown = images[:count] or None
        inputs = processor(text="<image>" * count + "what is it?", images=shown, return_tensors="pt")
        if shown:
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        wanted = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert captioner.answer(images[:count], "what is it?", 5) == wanted.strip()
