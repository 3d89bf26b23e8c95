"""Runs that break: damaged files, full disks, two in one folder, settings and pictures that cannot be."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.core.random_models import random_s3dit
from zimage_core import S3DiTConfig
from zimage_core.train import lora, shards
from zimage_core.train import run as runs
from zimage_core.train import state as states
from zimage_core.train.__main__ import main
from zimage_core.train.arguments import captions_in
from zimage_core.train.batch import Batches, Example
from zimage_core.train.data import store
from zimage_core.train.data.records import PictureRecord
from zimage_core.train.distributed import Processes
from zimage_core.train.flow import Noise
from zimage_core.train.frozen import from_checkpoint
from zimage_core.train.parts import base_of
from zimage_core.train.plan import Plan
from zimage_core.train.presets import sampling
from zimage_core.train.run import LoraRun, Parts, Settings
from zimage_core.train.stages.velocity import Velocity
from zimage_core.weights import read_transformer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = S3DiTConfig(dim=128, n_layers=1, n_refiner_layers=1, n_heads=1, cap_feat_dim=32, t_hidden=64)
SETTINGS = Settings(
    Plan(steps=2, lr=1e-3, warmup=1),
    lora.Settings(rank=2),
    resolution=32,
    caption_dropout=0.0,
    checkpointing=False,
)


def parts(seed: int = 0) -> Parts:
    """A transformer of random weights; encoders that cost nothing."""
    checkpoint = read_transformer(random_s3dit(CONFIG, seed).state_dict())

    def features(text: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(text))
        return torch.randn(2 + len(text) % 3, CONFIG.cap_feat_dim, generator=generator)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels, 8).mean(1, keepdim=True)
        return small.expand(-1, CONFIG.in_channels, -1, -1)

    model = from_checkpoint(checkpoint, computes=torch.float32)
    return Parts(model, encode, features, lambda latent: latent[:, :3], base=base_of(checkpoint))


@pytest.fixture
def picture(tmp_path) -> PictureRecord:
    path = tmp_path / "picture.png"
    Image.effect_noise((48, 48), 80).convert("RGB").save(path)
    return PictureRecord(path, ("a thing",), size=(48, 48))


def begun(picture: PictureRecord, folder: Path, settings: Settings = SETTINGS, **how) -> LoraRun:
    return LoraRun(parts(**how), [picture], settings, folder)


@pytest.mark.parametrize("content", ["", '{"batch": 1', "[]", "null"])
def test_damaged_settings_are_named_and_may_be_deleted(tmp_path, picture, content):
    folder = tmp_path / "run"
    begun(picture, folder).train(stop_at=1)
    (folder / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings.json is damaged.*delete that file to go on"):
        begun(picture, folder)
    (folder / "settings.json").unlink()
    begun(picture, folder).train()


def test_a_failed_write_leaves_the_settings_as_they_were(tmp_path, picture, monkeypatch):
    begun(picture, tmp_path / "run").train(stop_at=1)
    before = (tmp_path / "run" / "settings.json").read_bytes()

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(b"{")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        begun(picture, tmp_path / "run")
    assert (tmp_path / "run" / "settings.json").read_bytes() == before


def test_another_transformer_is_another_run(tmp_path, picture):
    begun(picture, tmp_path / "run").train(stop_at=1)
    with pytest.raises(ValueError, match="was begun with another base model"):
        begun(picture, tmp_path / "run", seed=1)


def test_one_folder_takes_one_run_at_a_time(tmp_path, picture):
    second = begun(picture, tmp_path / "run")

    class Meanwhile(runs.Watch):
        def step(self, progress):
            with pytest.raises(ValueError, match="another run trains in"):
                second.train()

    begun(picture, tmp_path / "run").train(Meanwhile())
    second.train()


def test_a_run_that_was_killed_holds_no_folder(tmp_path):
    held = (
        "import sys, pathlib, time\nfrom zimage_core.train.alone import alone\n"
        "with alone(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    line = [sys.executable, "-c", held, str(tmp_path)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another run trains in"), runs.alone(tmp_path):
            pass
        other.kill()
    with runs.alone(tmp_path):
        assert tmp_path.is_dir()


def test_a_picture_that_ends_too_early_is_named(tmp_path, picture):
    picture.path.write_bytes(picture.path.read_bytes()[:-800])
    with pytest.raises(ValueError, match=r"picture.png cannot be trained on: .*Remove or replace it"):
        begun(picture, tmp_path / "run").train()


def test_a_picture_without_caption_has_the_trigger(tmp_path, picture):
    silent = dataclasses.replace(picture, captions=())
    run = begun(silent, tmp_path / "run", dataclasses.replace(SETTINGS, trigger="sks"))
    assert run.captions(silent) == ("sks",)
    assert begun(silent, tmp_path / "other").captions(silent) == ("",)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", "a cat"),
        ("Cat!", "Cat!"),
        ("a category", "cat, a category"),
        ("\u4e00\u53eacat\u5750\u7740", "\u4e00\u53eacat\u5750\u7740"),
    ],
)
def test_a_trigger_is_a_word_of_its_own(tmp_path, picture, text, wanted):
    run = begun(picture, tmp_path / "run", dataclasses.replace(SETTINGS, trigger="cat"))
    assert run.captions(dataclasses.replace(picture, captions=(text,))) == (wanted,)


@pytest.mark.parametrize("resolution", [0, 8, 1000])
def test_a_side_that_no_picture_can_have_is_refused_at_once(resolution):
    with pytest.raises(ValueError, match=f"resolution is {resolution}, expected a multiple of 16"):
        dataclasses.replace(SETTINGS, resolution=resolution)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_trains_nothing_is_refused(alpha):
    with pytest.raises(ValueError, match="expected a number above 0"):
        lora.Settings(alpha=alpha)


def test_an_adapter_of_another_model_is_refused(tmp_path, picture):
    path = tmp_path / "adapter.safetensors"
    save_file(
        {f"diffusion_model.layers.7.attention.out.lora_{p}.weight": torch.ones(2, 2) for p in "AB"}, path
    )
    with pytest.raises(ValueError, match="adapter.safetensors changes nothing of this model"):
        begun(picture, tmp_path / "run", dataclasses.replace(SETTINGS, adapter=str(path))).train()


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff\n"])
def test_prior_captions_that_are_none_are_said(tmp_path, content):
    file = tmp_path / "prior.txt"
    file.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"prior.txt holds no caption"):
        captions_in(file)


def test_prior_captions_are_the_lines_of_any_editor(tmp_path):
    file = tmp_path / "prior.txt"
    file.write_bytes(b"\xef\xbb\xbfa fox\r\n\r\n  an owl \r\n")
    assert captions_in(file) == ("a fox", "an owl")
    file.write_bytes(b"a fo\xff")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        captions_in(file)


def test_a_run_that_is_farther_than_asked_for_is_said(tmp_path, picture):
    begun(picture, tmp_path / "run").train()
    shorter = dataclasses.replace(SETTINGS, plan=dataclasses.replace(SETTINGS.plan, steps=1))
    with pytest.raises(ValueError, match="has done 2 steps already, and 1 are asked for"):
        begun(picture, tmp_path / "run", shorter).train()


def test_accumulated_batches_are_of_other_pictures(tmp_path, monkeypatch):
    examples = [Example(torch.full((16, 4, 4), float(at)), (torch.zeros(2, 32),)) for at in range(6)]
    shown: list[float] = []

    def loss(self, model, batch, generator):
        shown.extend(batch.latents[:, 0, 0, 0].tolist())
        return model.weight.sum()

    monkeypatch.setattr(Velocity, "loss", loss)
    model = torch.nn.Linear(1, 1)
    task = Velocity(Batches(examples, 1), noise=Noise())
    runs.fit(
        dict(model.named_parameters()),
        lambda number, generator: task.backward(model, number, generator),
        Plan(steps=2, lr=1e-3, accumulate=3),
        tmp_path,
    )
    assert sorted(shown) == [0, 1, 2, 3, 4, 5]


def test_pictures_that_count_nothing_or_little():
    def examples(share):
        return [Example(torch.zeros(16, 4, 4), (torch.zeros(2, 32),), share) for _ in range(2)]

    with pytest.raises(ValueError, match="no picture counts"):
        Batches(examples(0.0), 1)
    assert sorted(Batches(examples(1e-9), 1).numbers(step)[0] for step in range(2)) == [0, 1]


def test_a_new_state_is_kept_beside_later_ones_that_cannot_be_read(tmp_path):
    for step in (7, 8, 9):
        (tmp_path / f"step-{step:08d}.safetensors").write_bytes(b"damaged")
    assert states.load(tmp_path) is None
    states.save(tmp_path, states.State(3, 0.0, {}, {}, []))
    assert states.load(tmp_path).step == 3 and len(states.files(tmp_path)) == 1


def test_a_full_disk_within_a_state_keeps_the_one_before(tmp_path, picture, monkeypatch):
    folder = tmp_path / "run"
    begun(picture, folder).train(stop_at=1)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(states, "save_file", full)
        with pytest.raises(SafetensorError, match="No space left"):
            begun(picture, folder).train()
    assert [path.name for path in (folder / "state").iterdir() if path.suffix != ".jsonl"] == [
        "step-00000001.safetensors"
    ]
    begun(picture, folder).train()
    rows = (folder / "state" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_a_log_that_is_no_text_hinders_no_run(tmp_path, picture):
    folder = tmp_path / "run"
    begun(picture, folder).train(stop_at=1)
    with (folder / "state" / "log.jsonl").open("ab") as file:
        file.write(b'{"step": "2"}\n\xff\xfe\0\0\n[]\n')
    begun(picture, folder).train()
    rows = (folder / "state" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_only_turbo_is_drawn_in_few_steps():
    assert sampling("Turbo").guidance == 0
    assert sampling("omni") == sampling("Base") and sampling("Base").guidance > 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "mine"], "expected a name that ends in .safetensors"),
        (["--out", "data/mine.safetensors"], "mine lies in the data"),
        (["--run", "data/run"], "run lies in the data"),
        (["--kind", "lokr", "--names", "diffusers"], "diffusers reads LoRA alone"),
        (["--resolution", "1000"], "expected a multiple of 16"),
    ],
)
def test_the_command_line_says_before_it_trains_what_would_end_it(tmp_path, more, said, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (48, 48)).save(tmp_path / "data" / "one.png")
    nano = ROOT / "models" / "nano"
    given = ["--data", "data", "--model", str(nano), "--out", "x.safetensors", "--device", "cpu"]
    assert main(["lora", *given, *more]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_weight_that_would_fill_the_memory_is_left_out(tmp_path):
    Image.new("RGB", (48, 48)).save(tmp_path / "one.png")
    rows = [{"image_path": "one.png", "caption": "a", "weight": weight} for weight in (2, 1e12, 10**400)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = store.load(tmp_path / "list.jsonl")
    assert [picture.weight for picture in data.pictures] == [2.0]
    assert sum("from 0 to 10,000 as weight" in line for line in data.problems) == 2


@pytest.mark.parametrize("ending", ["*.distcp", ".metadata", "facts.json"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_state_of_several_processes_is_named(tmp_path, ending):
    alone, weights = Processes(shards=True), {"a": torch.ones(300)}
    path = shards.save(tmp_path, states.State(4, 0.0, weights, {}, []), alone)
    assert torch.equal(shards.load(tmp_path, weights, alone).weights["a"], weights["a"])
    (file,) = path.glob(ending)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="step-00000004 cannot be read .*delete that folder"):
        shards.load(tmp_path, weights, alone)
