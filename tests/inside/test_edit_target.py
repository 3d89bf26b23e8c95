"""The text encoder as the writer of an edit's target, in the edit node: with stand-ins and with nano."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from tests.core.random_models import randomise, seeds
from tests.host.inside import ROOT, extension_module
from tests.inside.test_language_model import CONFIG, clip_of
from zimage_core import Qwen3TextEncoder

NANO = ROOT / "models" / "nano"
CASES = json.loads((ROOT / "tests" / "core" / "edit_cases.json").read_text(encoding="utf-8"))
SOURCE, INSTRUCTION = "a fox on a blue background", "make her smile"
TARGET = "a smiling fox on a blue background"

nodes_edit = extension_module("nodes.edit")
target = extension_module("nodes.host.writing.edit_target")
core = extension_module("zimage_core.prompt.edit_target")
Draft = extension_module("zimage_core.prompt.enhancer").Draft
NotUnderstood = extension_module("zimage_core.prompt.instruction").NotUnderstood
load = {
    part: getattr(extension_module(f"nodes.host.loading.{part}"), name)
    for part, name in {"clip": "load_clip", "model": "load_patcher", "vae": "load_vae"}.items()
}


@pytest.fixture(scope="module")
def nano() -> SimpleNamespace:
    """The small model, without what omni weights have more."""
    clip, vae = load["clip"](NANO / "text_encoder.safetensors"), load["vae"](NANO / "autoencoder.safetensors")
    model = load["model"](NANO / "transformer.safetensors", "auto")
    model.get_model_object("diffusion_model").siglip_embedder = None
    return SimpleNamespace(model=model, clip=clip, vae=vae)


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the host hands to the node: the graph in both forms, with the node in it."""
    saved = {"id": 5, "widgets_values": list(nodes_edit.WIDGETS), "properties": {"a": 1}}
    made = SimpleNamespace(
        unique_id="5",
        prompt={"5": {"inputs": {"instruction": INSTRUCTION}}},
        extra_pnginfo={"workflow": {"nodes": [saved]}},
    )
    monkeypatch.setattr(nodes_edit.ZImageEdit, "hidden", made, raising=False)
    return made


class StandIn:
    """A language model that follows requests, in place of the one in the CLIP."""

    instructed = True

    def __init__(self, *answer: object) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, clip: object) -> StandIn:
        return self

    def write(self, messages: list[dict], sampling: object, most: int, on_text: object) -> tuple:
        self.asked.append((messages, sampling.temperature))
        return self.answer


def run(nano: SimpleNamespace, **given):
    """(report, what the page gets) of an edit of a grey picture in one step."""
    settings = {"route": "auto", "strength": 0.0, "steps": 1, "seed": 3, "instruction": INSTRUCTION}
    image = torch.full((1, 128, 128, 3), 0.5)
    out = nodes_edit.ZImageEdit.execute(nano.model, nano.clip, nano.vae, image, **{**settings, **given})
    return out.result[2], out.ui


def test_the_target_is_written_once_for_every_seed_and_goes_into_the_picture(
    nano, hidden, monkeypatch
) -> None:
    writer = StandIn(TARGET, "9 tokens read, 7 written", True)
    monkeypatch.setattr(target, "LanguageModel", writer)
    for seed in (3, 4):
        report, shown = run(nano, source_prompt=SOURCE, seed=seed)
        assert f"From: {SOURCE}\nTo: {TARGET}\n" in report
        assert report.endswith("Target by the text encoder: 9 tokens read, 7 written.")
        assert shown["target"] == (TARGET, INSTRUCTION, SOURCE)
    ((messages, temperature),) = writer.asked
    assert temperature == 0 and SOURCE in messages[-1]["content"]
    assert hidden.prompt["5"]["inputs"] == {"instruction": INSTRUCTION, "target_prompt": TARGET}
    (saved,) = hidden.extra_pnginfo["workflow"]["nodes"]
    expected = [TARGET if name == "target_prompt" else name for name in nodes_edit.WIDGETS]
    assert saved["widgets_values"] == expected
    assert saved["properties"] == {"a": 1, "zimage_target": (TARGET, INSTRUCTION, SOURCE)}


def test_patterns_alone_ask_nobody(nano, hidden, monkeypatch) -> None:
    writer = StandIn(TARGET, "9 tokens read, 7 written", True)
    monkeypatch.setattr(target, "LanguageModel", writer)
    report, _ = run(nano, instruction="make the background green", source_prompt=SOURCE, writer="patterns")
    assert "To: a fox on a green background\n" in report and report.endswith("Target by the patterns.")
    assert writer.asked == []


@pytest.mark.parametrize("answer", [("", "nothing", True), (TARGET, "cut", False)], ids=["empty", "cut off"])
def test_an_unusable_answer_falls_back_and_says_so(nano, hidden, monkeypatch, answer) -> None:
    monkeypatch.setattr(target, "LanguageModel", StandIn(*answer))
    given = {"source_prompt": f"{SOURCE} {answer[1]}", "instruction": "make the background green"}
    report, _ = run(nano, **given)
    assert "answer is not used" in report and "on a green background" in report
    with pytest.raises(NotUnderstood, match="answer is not used"):
        run(nano, **{**given, "instruction": "zoom out"})


def test_a_target_of_ones_own_is_used_as_it_stands(nano, hidden) -> None:
    own = "make it blue"
    report, shown = run(nano, target_prompt=f" {own}\n", source_prompt=SOURCE, instruction=" ")
    assert f"From: {SOURCE}\nTo: {own}\n" in report
    assert "target_prompt as it stands" in report and "target" not in shown
    assert "target_prompt" not in hidden.prompt["5"]["inputs"]
    report, _ = run(nano, target_prompt=own)
    assert report.startswith("Route: img2img") and f"To: {own}\n" in report and "description" not in report


def test_nano_is_known_not_to_follow_requests(nano, hidden) -> None:
    assert target.target_writer(nano.clip, None) is None and target.target_writer(None, None) is None
    report, _ = run(nano, instruction="make the background green", source_prompt=SOURCE)
    assert report.endswith("Target by the patterns.")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_nano_answers_all_the_same_is_caught(nano, language) -> None:
    """It was trained on captions: its answers to requests are no descriptions of the edited picture."""
    model = target.LanguageModel(nano.clip)

    def write(messages: list[dict], seed: int):
        return Draft(*model.write(messages, target.LIKELIEST, 96))

    for case in CASES[language]["cases"]:
        with pytest.raises(core.AnswerError) as error:
            core.written_target(case["instruction"], CASES[language]["source"], write)
        assert str(error.value)


def test_a_large_language_model_that_writes_noise_is_caught(monkeypatch) -> None:
    """Random weights with Qwen3's vocabulary: it would be asked, and the patterns take over."""
    model = randomise(Qwen3TextEncoder(CONFIG, language_model=True), seeds(1)[0])
    clip = clip_of(model.state_dict(), torch.float32)
    monkeypatch.setattr(target, "LEAST_TOKENS", 8)
    write = target.target_writer(clip, None)
    assert write is not None
    prompts, note = core.edit_prompts("make the background green", SOURCE, write)
    assert prompts.target == "a fox on a green background" and "answer is not used" in note
