"""What the model cannot draw is found, weighed up and fetched; a caption that does not fit is told."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.core.drawn_faults import drawing
from tests.core.random_models import random_s3dit
from zimage_core import S3DiTConfig, ZImagePipeline
from zimage_core.train.data import concepts
from zimage_core.train.data.__main__ import main, with_answers
from zimage_core.train.data.caption_match import CaptionJudge, Judging, drawn_others, fits
from zimage_core.train.data.curate import RAISED, probe, raised, retrieve, weak
from zimage_core.train.data.inspection import ALL_KINDS, Plan, inspect
from zimage_core.train.data.profile import Thresholds
from zimage_core.train.data.records import DataSet, PictureRecord
from zimage_core.train.data.report import Report
from zimage_core.train.data.store import load

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def painter(known: set[str], seen: list[str]) -> object:
    """A model that paints the colours that it knows, and grey for others."""

    def draw(prompts: Sequence[str], seed: int) -> list[Image.Image]:
        seen.extend(prompts)
        named = [next((c for c in known if c in prompt), None) for prompt in prompts]
        return [Image.new("RGB", (8, 8), COLOURS.get(name, (128, 128, 128))) for name in named]

    return draw


def shows(image: Image.Image, concept: str) -> float:
    return float(image.getpixel((4, 4)) == COLOURS[concept])


def test_the_model_is_asked_for_each_concept() -> None:
    prompts = {name: (f"a {name} wall", f"all {name}") for name in COLOURS}
    seen: list[str] = []
    shares = probe(prompts, painter({"red", "blue"}, seen), shows)
    assert shares == {"red": 1.0, "green": 0.0, "blue": 1.0} and len(seen) == 6
    assert weak(shares) == ["green"]
    with pytest.raises(ValueError, match="blue"):
        probe({"red": ("x",), "blue": ()}, painter(set(), seen), shows)


def test_what_it_cannot_draw_counts_more_and_the_mean_stays() -> None:
    names = [{"red"}, {"green"}, {"red", "green"}, set(), {"red"}]
    found = raised([1.0, 1.0, 1.0, 1.0, 2.0], names, {"red": 1.0, "green": 0.25})
    factor = 1 + (RAISED - 1) * 0.75
    assert found[1] / found[0] == pytest.approx(factor) and found[2] == found[1] and found[3] == found[0]
    assert found[4] == pytest.approx(2 * found[0]) and sum(found) == pytest.approx(6)


def test_a_larger_pool_gives_what_is_missing() -> None:
    captions = ["a green wall, snow", *["a green wall", "a red wall"] * 2, "a green wall, night, snow"]
    pool = [PictureRecord(Path(f"{n}.png"), (text,)) for n, text in enumerate(captions)]
    pool[3] = PictureRecord(Path("3.png"), (captions[3],), drop="blurred")
    links = {"green": ("colour",), "red": ("colour",)}
    found = concepts.find(pool, links)
    chosen = retrieve(["green"], pool, found, [Path("0.png")], each=2)
    assert [record.path.name for record in chosen] == ["1.png", "5.png"]
    assert retrieve(["violet"], pool, found, [], each=2) == []


def test_others_are_captions_of_other_pictures() -> None:
    captions = ["a", "b", "b", "", "c", "a"]
    for index in range(len(captions)):
        others = drawn_others(captions, index, random.Random(index), 4)
        assert captions[index] not in others and "" not in others and len(set(others)) == len(others)
    assert sorted(drawn_others(captions, 0, random.Random(0), 4)) == ["b", "c"]


def test_gain_is_by_the_error_beside_that_under_other_captions() -> None:
    """Against the definition, one forward at a time, in float64."""
    width = {"dim": 64, "n_heads": 2, "cap_feat_dim": 16, "axes_dims": (8, 12, 12), "in_channels": 4}
    model = random_s3dit(S3DiTConfig(**width, n_layers=1, n_refiner_layers=1), seed=0).double()
    generator = torch.Generator().manual_seed(0)
    features = {text: torch.randn(length, 16, generator=generator) for text, length in TEXTS.items()}

    def encode(pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 2, 1, 1)[:, :4]

    judge = CaptionJudge(model, encode, lambda text: features[text], side=64)
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    found = judge.gain(image, "own", ["one", "two"], seed=5)
    assert found == judge.gain(image, "own", ["one", "two"], seed=5)
    errors = {text: by_hand(judge, image, text, seed=5) for text in TEXTS}
    rest = (errors["one"] + errors["two"]) / 2
    assert found == pytest.approx((rest - errors["own"]) / rest, rel=1e-3)


def test_answers_of_the_model_weigh_pictures_and_fetch_others(tmp_path: Path) -> None:
    """Seen by the mean colour; the model knows red and blue alone."""
    for folder, names in (("in", list(COLOURS) * 3), ("pool", ["green"] * 4 + ["red"] * 4)):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            Image.new("RGB", (32, 32), COLOURS[name]).save(tmp_path / folder / f"{number}.png")
            (tmp_path / folder / f"{number}.txt").write_text(f"a {name} wall")
    links, report = {name: ("colour",) for name in COLOURS}, Report()
    options = argparse.Namespace(pool=tmp_path / "pool", each=3)
    draw = painter({"red", "blue"}, [])

    def embed(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((1, 1)), np.float32).reshape(-1) / 255

    records = with_answers(list(load(tmp_path / "in").records), report, links, draw, embed, options)
    assert report.sections["Drawn, share of the pictures"] == {"blue": 1.0, "green": 0.0, "red": 1.0}
    assert report.sections["Fetched from the pool"] == ["3 pictures of green"]
    assert records[1].weight / records[0].weight == pytest.approx(RAISED)
    assert len(records) == 12 and {record.captions for record in records[9:]} == {("a green wall",)}
    assert main([str(tmp_path / "in"), "--ask", "--skip", "text"]) == 1  # without a model


NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
THINGS = ("fox", "castle")  # which the nano model draws; it knows no gizmo


@pytest.mark.long
def test_the_command_asks_the_model_and_fetches_what_it_cannot_draw(tmp_path: Path) -> None:
    files = (NANO / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder"))
    pipe = ZImagePipeline.from_files(*files, NANO / "tokenizer", torch_dtype=torch.float32)
    texts = [f"a picture of a {name} on a plain {c} background" for name in THINGS for c in ("white", "blue")]
    images = pipe(texts, height=128, width=128, generator=torch.Generator().manual_seed(0)).images
    shown = [(image, text) for image, text in zip(images, texts, strict=True) for _ in range(2)]
    gizmos = [(drawing(random.Random(number)), "a gizmo") for number in range(8)]
    for folder, pictures in (("in", [*shown, *gizmos[:4]]), ("pool", gizmos[4:])):
        (tmp_path / folder).mkdir()
        for number, (image, text) in enumerate(pictures):
            image.save(tmp_path / folder / f"{number}.png")
            (tmp_path / folder / f"{number}.txt").write_text(text)
    (tmp_path / "links.json").write_text(json.dumps({name: "thing" for name in (*THINGS, "gizmo")}))
    command = [str(tmp_path / "in"), "--side", "64", "--skip", "text", "--skip", "duplicates", "--ask"]
    command += ["--out", str(tmp_path / "out"), "--links", str(tmp_path / "links.json"), "--each", "3"]
    command += ["--model", str(NANO), "--model-side", "128", "--vision", str(NANO / "vision.safetensors")]
    command += ["--pool", str(tmp_path / "pool"), "--keep", "tinted", "--keep", "wrong caption"]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    shares = report["sections"]["Drawn, share of the pictures"]
    assert shares["gizmo"] == 0 and min(shares["fox"], shares["castle"]) >= 0.5
    data = load(tmp_path / "out" / "data.jsonl")
    weights = {name: [r.weight for r in data.pictures[:12] if name in r.captions[0]] for name in shares}
    assert min(weights["gizmo"]) > max(weights["fox"])
    assert len(data.pictures) == 15 and {r.captions for r in data.pictures[12:]} == {("a gizmo",)}


class Told:
    """A judge that knows what each picture shows by its colour."""

    def gain(self, image: Image.Image, caption: str, others: Sequence[str], seed: int = 0) -> float:
        return 0.6 if shows(image, caption.split()[-1]) else 0.3


def test_captions_of_something_else_drop_their_pictures(tmp_path: Path) -> None:
    names = [*COLOURS] * 3
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), COLOURS[name]).save(tmp_path / f"{number}.png")
    texts = [f"all {name}" for name in names]
    texts[4] = "all blue"
    given = [PictureRecord(tmp_path / f"{n}.png", (text,)) for n, text in enumerate(texts)]
    given.append(PictureRecord(tmp_path / "0.png"))
    plan = Plan(Thresholds(side=1), keep=ALL_KINDS[:-1], skip={"text", "duplicates"}, judge=Told())
    records, report = inspect(DataSet(tuple(given)), plan)
    assert [number for number, record in enumerate(records) if record.drop] == [4]
    assert "wrong caption: it helps the model 0.50 times as much" in records[4].drop
    assert "captions beside pictures, 9 of them" in report.ran


def test_a_model_that_cannot_tell_captions_apart_drops_none(tmp_path: Path) -> None:
    asked = []

    class Blind:
        def gain(self, image: Image.Image, caption: str, *_: object, **__: object) -> float:
            asked.append(caption)
            return -0.1

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    given = [PictureRecord(tmp_path / "a.png", (text,)) for text in ("a", "b")]
    assert fits(given, Judging(Blind())) == {} and asked == ["a", "b"]


TEXTS = {"own": 5, "one": 3, "two": 7}


def by_hand(judge: CaptionJudge, image: Image.Image, text: str, seed: int) -> float:
    from zimage_core.model.s3dit import Prompt
    from zimage_core.model.sequence import Captions
    from zimage_core.train.data import caption_match

    pixels = torch.tensor(list(image.getdata()), dtype=torch.float64).view(64, 64, 3).movedim(-1, 0)
    latents = judge.encode((pixels / 127.5 - 1)[None]).float()
    feature = judge.features(text).double()[None]
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for sigma in caption_match.SIGMAS * caption_match.NOISES:
        noise = torch.randn(latents.shape, generator=generator)
        noisy = (1 - sigma) * latents + sigma * noise
        with torch.no_grad():
            condition = Prompt(Captions(feature, (feature.shape[1],)))
            velocity = judge.model(noisy.double(), torch.tensor([sigma]), condition=condition)
        total += float((velocity - (noise - latents)).square().mean())
    return total
