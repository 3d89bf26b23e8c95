"""A LoRA from a folder of pictures, as the command line and a host's node train it, on the nano model."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from zimage_core.train import lora, parts
from zimage_core.train.data import store
from zimage_core.train.plan import Plan
from zimage_core.train.run import LoraRun, Settings, Watch
from zimage_core.train.samples import Sampling
from zimage_core.weights import fit_lora, load_transformer, read_lora

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"
SETTINGS = Settings(
    plan=Plan(steps=4, lr=1e-3, warmup=1, ema=0.5),
    lora=lora.Settings(rank=2),
    sampling=Sampling(steps=2),
    resolution=64,
    batch=4,
    caption_dropout=0.1,
    prior=("a fox on white", "an owl"),
    sample_every=2,
    sample_prompts=("a fox",),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small sizes are quicker so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(96, 96), (80, 80), (128, 64)]):
        Image.new("RGB", size, (80 * number, 40, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}", "utf-8")
    return folder


@pytest.fixture(scope="module")
def made() -> parts.Parts:
    return parts.from_files(parts.files_in(NANO))[0]


def fresh(made: parts.Parts) -> parts.Parts:
    """The same parts around a transformer without changes."""
    transformer = parts.from_files(parts.files_in(NANO))[0].model
    return dataclasses.replace(made, model=transformer)


class Seen(Watch):
    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.steps, self.samples, self.stages = stop, [], [], {}

    def stage(self, name, done, total):
        self.stages[name] = (done, total)

    def step(self, progress):
        self.steps.append(progress.step)
        if progress.step == self.stop:
            raise KeyboardInterrupt

    def sample(self, step, prompt, pixels):
        self.samples.append((step, prompt, pixels))


def values(changes) -> dict[str, torch.Tensor]:
    return lora.tensors(changes, dtype=torch.float32)


def same(a, b) -> bool:
    a, b = values(a), values(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_shows_what_it_does_and_a_stopped_one_ends_alike(tmp_path, pictures, made):
    data, seen = store.load(pictures), Seen()
    whole = LoraRun(fresh(made), data.pictures, SETTINGS, tmp_path / "whole").train(seen)
    assert seen.stages == {"captions": (3, 3), "pictures": (3, 3), "prior": (2, 2)}
    assert seen.steps == [1, 2, 3, 4]
    assert [(step, prompt) for step, prompt, _ in seen.samples] == [(2, "a fox"), (4, "a fox")]
    for *_, pixels in seen.samples:
        assert pixels.shape == (3, 64, 64) and 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    assert any(change.matrix().abs().max().item() > 0 for change in whole.values())
    with pytest.raises(KeyboardInterrupt):
        LoraRun(fresh(made), data.pictures, SETTINGS, tmp_path / "cut").train(Seen(stop=2))
    again = Seen()
    resumed = LoraRun(fresh(made), data.pictures, SETTINGS, tmp_path / "cut").train(again)
    assert again.steps == [3, 4] and same(whole, resumed)
    finished = Seen()
    assert same(LoraRun(fresh(made), data.pictures, SETTINGS, tmp_path / "cut").train(finished), whole)
    assert finished.steps == []


def test_encoders_work_once_for_each_picture_and_text(tmp_path, pictures, made):
    calls = {"picture": 0, "text": 0}

    def counted(name, function):
        def call(given):
            calls[name] += 1
            return function(given)

        return call

    def run():
        counting = dataclasses.replace(
            fresh(made),
            encode=counted("picture", made.encode),
            features=counted("text", made.features),
        )
        settings = dataclasses.replace(SETTINGS, plan=Plan(steps=1, lr=1e-3), sample_every=0)
        LoraRun(counting, store.load(pictures).pictures, settings, tmp_path).train()

    run()
    assert calls == {"picture": 3, "text": 3 + 2 + 1 + 1}  # captions, prior, sample, the empty one
    run()
    assert calls == {"picture": 3, "text": 7}


def test_encoders_are_done_when_the_model_comes_to_the_card(tmp_path, pictures, made):
    """The text encoder is larger than the transformer in fp8: a card need not hold both."""
    order = []

    def noted(name, function):
        def call(*given):
            order.append(name)
            return function(*given)

        return call

    watched = fresh(made)
    watched.model.register_forward_pre_hook(noted("model", lambda *given: None))
    watched = dataclasses.replace(
        watched,
        encode=noted("picture", made.encode),
        features=noted("text", made.features),
        place=noted("place", watched.place),
    )
    LoraRun(watched, store.load(pictures).pictures, SETTINGS, tmp_path).train()
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["text", "picture", "place", "model"]


@pytest.mark.parametrize("vram", [None, "1GB"])
def test_an_encoder_works_on_the_device_and_then_leaves_it(vram, made, monkeypatch):
    """With what may be used of a card, and without."""
    found, _ = parts.from_files(parts.files_in(NANO), vram=vram)
    encoders = found.encode.__self__
    pixels, moved = torch.zeros(1, 3, 32, 32), []

    def works() -> bool:
        again = found.features("a fox"), found.encode(pixels)
        return all(torch.equal(*both) for both in zip(before, again, strict=True))

    def watch() -> None:
        moved.clear()
        for network in encoders.networks.values():
            monkeypatch.setattr(network, "to", lambda place, own=network: moved.append(str(place)) or own)

    before = found.features("a fox"), found.encode(pixels)
    watch()
    assert works() and moved == ([] if vram else ["cpu", "cpu"])  # to the device, which is the CPU here
    found.place()
    assert not encoders.networks, "they still take memory"
    assert works()
    watch()
    assert works() and moved == ["cpu", "cpu"] * 2  # to the device and back


def test_a_caption_is_cut_where_the_reference_cuts_it(tmp_path, pictures, made, caplog):
    """What a token is depends on those before it alone: the features are those of the shorter text."""
    run = LoraRun(fresh(made), store.load(pictures).pictures, SETTINGS, tmp_path)
    long = "a fox beside a red car " * 200
    assert len(made.features(long)) > 512
    assert torch.equal(run.features(long), made.features(long)[:512])
    assert "cut at 512 tokens" in caplog.text


def test_other_settings_need_another_name(tmp_path, pictures, made):
    found = store.load(pictures).pictures
    LoraRun(fresh(made), found, SETTINGS, tmp_path, "hash").train(stop_at=1)
    other = dataclasses.replace(SETTINGS, lora=lora.Settings(rank=3))
    with pytest.raises(ValueError, match=r"lora.rank 2, now it is 3.*another name"):
        LoraRun(fresh(made), found, other, tmp_path, "hash")
    with pytest.raises(ValueError, match="was begun with other pictures or captions"):
        LoraRun(fresh(made), found, SETTINGS, tmp_path, "other")
    longer = dataclasses.replace(SETTINGS, plan=dataclasses.replace(SETTINGS.plan, steps=6))
    LoraRun(fresh(made), found, longer, tmp_path, "hash")


def test_the_trigger_stands_in_captions_that_lack_it(tmp_path, pictures, made):
    settings = dataclasses.replace(SETTINGS, trigger="Thing 1")
    run = LoraRun(fresh(made), store.load(pictures).pictures, settings, tmp_path)
    assert [run.captions(picture)[0] for picture in run.pictures] == [
        "Thing 1, thing 0",
        "thing 1",
        "Thing 1, thing 2",
    ]


def test_the_model_itself_is_left_as_it_was(tmp_path, pictures, made):
    used = fresh(made)
    before = {name: p.clone() for name, p in used.model.named_parameters()}
    run = LoraRun(used, store.load(pictures).pictures, SETTINGS, tmp_path)
    run.train()
    after = {name.replace(".base.", "."): p for name, p in used.model.named_parameters()}
    assert all(torch.equal(after[name], p) for name, p in before.items())


def command(pictures: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--data", str(pictures), "--model", str(NANO), "--out", str(out), "--device", "cpu"]
    size = ["--resolution", "64", "--rank", "2", "--save-every", "1000"]
    return [sys.executable, "-m", "zimage_core.train", "lora", *fixed, *size, *more]


def test_the_command_line_is_stopped_and_goes_on_and_writes_a_lora(tmp_path, pictures):
    out = tmp_path / "mine.safetensors"
    line = command(pictures, out, "--steps", "60", "--trigger", "sks", "--names", "kohya")
    log = out.with_suffix("") / "state" / "log.jsonl"
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(line, cwd=ROOT, env=alone, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)  # a shell's background jobs ignore SIGINT
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130 and "goes on from the last state" in said and not out.exists()
    steps = len(log.read_text("utf-8").splitlines())
    assert 1 <= steps < 60
    line[line.index("60")] = str(steps + 1)  # one step more than there is
    done = subprocess.run(line, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(row)["step"] for row in log.read_text("utf-8").splitlines()] == list(
        range(1, steps + 2)
    )
    fit = fit_lora(
        read_lora(out),
        {k: v.shape for k, v in load_transformer(NANO / "transformer.safetensors").state_dict().items()},
    )
    assert fit.used and not fit.unused
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.trigger_phrase"] == "sks" and metadata["ss_num_train_images"] == "3"
    assert metadata["ss_steps"] == str(steps + 1) and len(metadata["zimage_data_hash"]) == 64
    over = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert over.returncode == 1 and "nothing is written over" in over.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--model", "nowhere"], "no model's folder"),
        (["--rank", "0"], "expected 1 or more"),
        (["--prior", "nowhere"], "nowhere"),
        (["--vram", "much"], "6GB"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, pictures, more, said, capsys):
    from zimage_core.train.__main__ import main

    line = command(pictures, tmp_path / "mine.safetensors")[3:]
    assert main([*line, *more]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "mine.safetensors").exists()
