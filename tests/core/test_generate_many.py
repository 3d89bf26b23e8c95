"""Many pictures from a file of requests: nothing lost, nothing twice, the same as the pipeline's own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.core import processes
from zimage_core import ZImagePipeline
from zimage_core.generate import __main__ as command
from zimage_core.generate.batches import cut
from zimage_core.generate.requests import Request, RequestError, parsed

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
PARTS = [NANO / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder")]
LORA = "loras/nano_greyscale_lora.safetensors"
SMALL = {"size": [64, 64], "steps": 2}
NEAR = 12  # levels of 255
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def pipe() -> ZImagePipeline:
    return ZImagePipeline.from_files(*PARTS, NANO / "tokenizer")


def file_of(folder: Path, lines: Lines, name: str = "requests.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(requests: Path, out: Path, *options: str | Path) -> int:
    given = [requests, out, "--model", NANO, "--device", "cpu", *options]
    return command.main([str(each) for each in given])


def manifest(out: Path) -> Lines:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def results(out: Path) -> dict[str, dict]:
    rows = [row for row in manifest(out) if "id" in row]
    assert len({row["id"] for row in rows}) == len(rows), "a request stands there twice"
    return {row["id"]: row for row in rows}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def alone(pipe: ZImagePipeline, prompt: str, seed: int, **given: Any) -> np.ndarray:
    """By one call of the pipeline."""
    options = {"width": 64, "height": 64, "num_inference_steps": 2, **given}
    return np.asarray(
        pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
    ).astype(int)


# ---- requests


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nope", "no JSON"),
        (b'{"prompt": "a"\n', "column 15"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "no JSON"),
        (b'["a"]', "expected an object"),
        (b"{}", "no prompt"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "a", "seeds": 1}', '"seeds" is unknown'),
        (b'{"prompt": 3}', "expected a text"),
        (b'{"prompt": "\\ud800"}', "expected a text"),
        (b'{"prompt": "a", "seed": 1.5}', "whole number"),
        (b'{"prompt": "a", "seed": true}', "whole number"),
        (b'{"prompt": "a", "seed": -1}', "whole number"),
        (b'{"prompt": "a", "guidance": NaN}', "no number"),
        (b'{"prompt": "a", "guidance": 1e999}', "from 0 to 100"),
        (b'{"prompt": "a", "steps": 0}', "from 1 to 1000"),
        (b'{"prompt": "a", "size": [1024]}', "width, height"),
        (b'{"prompt": "a", "size": [1001, 1024]}', "multiples of 8"),
        (b'{"prompt": "a", "size": [99999992, 1024]}', "multiples of 8"),
        (b'{"prompt": "a", "id": "../a"}', "1 to 100"),
        (b'{"prompt": "a", "id": ".a"}', "1 to 100"),
        (b'{"prompt": "a", "id": "Con.a"}', "device"),
        (b'{"prompt": "a", "loras": ["x"]}', "object"),
        (b'{"prompt": "a", "loras": {"x": "1"}}', "object"),
        (b'{"prompt": "a", "image": "a\\u0000b"}', "name of a file"),
        (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', "1,048,576 bytes"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_a_broken_line_says_what_is_wrong(line: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said) as raised:
        parsed(line, 1)
    assert len(str(raised.value)) < 300


def test_a_cut_has_each_request_once_and_only_like_ones_together() -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    requests = [
        Request(
            line,
            f"{line}",
            "word " * draw.randrange(80),
            size=draw.choice([(64, 64), (64, 32)]),
            steps=draw.choice([2, 8]),
            loras=draw.choice([(), (("a", 1.0),)]),
            image=draw.choice(["", "", "", "a.png"]),
        )
        for line in range(300)
    ]
    batches = cut(requests, 4)
    found = [request for batch in batches for request in batch]
    assert Counter(found) == Counter(requests), seed
    for batch in batches:
        assert len(batch) <= 4 and (len(batch) == 1 or not batch[0].image), seed
        assert len({(r.size, r.steps, r.guidance, r.loras) for r in batch}) == 1, seed
        lengths = [len(r.prompt) for r in batch]
        assert max(lengths) - min(lengths) < 128, seed
    changes = sum(a[0].loras != b[0].loras for a, b in zip(batches, batches[1:], strict=False))
    assert changes == 1, "LoRAs are exchanged more often than there are"
    short = Counter(
        (r.size, r.steps, r.guidance, r.loras, len(r.prompt) // 128)
        for r in (batch[0] for batch in batches if len(batch) < 4)
        if not r.image
    )
    assert set(short.values()) <= {1}, f"{seed}: batches could be larger"


# ---- pictures


@pytest.mark.parametrize("options", [(), ("--vram", "40MB")], ids=["whole", "streamed"])
def test_pictures_one_by_one_are_those_of_the_pipeline(
    pipe, tmp_path: Path, options: tuple[str, ...]
) -> None:
    lines = [
        {"prompt": "a red apple", "seed": 3, **SMALL},
        {"prompt": "a fox", "negative": "a dog", "guidance": 2.0, "id": "fox", **SMALL},
    ]
    assert run(file_of(tmp_path, lines), tmp_path / "out", "--batch", "1", *options) == 0
    assert np.array_equal(pixels(tmp_path / "out/000001.png"), alone(pipe, "a red apple", 3))
    guided = alone(pipe, "a fox", 2, negative_prompt="a dog", guidance_scale=2.0)
    assert np.array_equal(pixels(tmp_path / "out/fox.png"), guided)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000001.png",
        "fox.png",
        "manifest.jsonl",
    ]
    with Image.open(tmp_path / "out/fox.png") as image:
        told = json.loads(image.text["zimage_request"])
    assert {name: told[name] for name in lines[1]} == lines[1] and told["seed"] == 2


def test_a_batch_is_near_to_single_pictures(pipe, tmp_path: Path) -> None:
    prompts = ["a red apple", "a fox on a blue background", "a cat"]
    lines = [{"prompt": prompt, "seed": seed, **SMALL} for seed, prompt in enumerate(prompts)]
    assert run(file_of(tmp_path, lines), tmp_path / "out", "--batch", "3") == 0
    assert {row["batch"] for row in results(tmp_path / "out").values()} == {0}
    for seed, prompt in enumerate(prompts):
        found = pixels(tmp_path / f"out/{seed + 1:06d}.png")
        assert np.abs(found - alone(pipe, prompt, seed)).max() <= NEAR


@pytest.mark.parametrize("options", [(), ("--vram", "40MB")], ids=["whole", "streamed"])
def test_a_lora_changes_its_own_pictures_only(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Beside a model with the LoRA added to its matrices."""
    lines = [
        {"prompt": "a red apple", "seed": 1, **SMALL},
        {"prompt": "a red apple", "seed": 1, "loras": {LORA: 0.5}, **SMALL},
        {"prompt": "a red apple", "seed": 1, **SMALL, "steps": 1},
        {"prompt": "a red apple", "seed": 1, "loras": {PARTS[0].name: 1}, **SMALL},
    ]
    requests = file_of(tmp_path, lines)
    assert run(requests, tmp_path / "out", "--root", NANO, *options) == 0
    merged = ZImagePipeline.from_files(*PARTS, NANO / "tokenizer")
    change = load_file(NANO / LORA)
    downs = [name for name in change if ".lora_A." in name]
    assert len(downs) == 20
    for name in downs:
        product = change[name.replace(".lora_A.", ".lora_B.")].float() @ change[name].float()
        target = name.removeprefix("diffusion_model.").replace(".lora_A.", ".")
        weight = merged.transformer.get_parameter(target)
        weight.copy_(weight.float() + 0.5 * product)
    plain, with_lora = (pixels(tmp_path / f"out/00000{line}.png") for line in (1, 2))
    expected = alone(merged, "a red apple", 1)
    assert np.abs(with_lora - expected).mean() <= 1.0 < 5.0 < np.abs(plain - expected).mean()
    assert "no LoRA" in results(tmp_path / "out")["000004"]["error"]


def test_what_was_taken_out_leaves_no_trace(pipe, tmp_path: Path) -> None:
    worker = command.Worker(
        command.job_of(
            command.parser().parse_args(
                [str(tmp_path / "r.jsonl"), str(tmp_path), "--model", str(NANO), "--root", str(NANO)]
            ),
            "cpu",
        )
    )
    names = [*worker.pipe.transformer.state_dict()]
    first = Request(1, "a", "a fox", size=(64, 64), steps=2, loras=((LORA, 1.0), (LORA, -0.3)))
    assert worker.draw((first,)).pictures
    assert [*worker.pipe.transformer.state_dict()] != names
    assert "no file" in worker.draw((Request(2, "b", "a", loras=((LORA, 1.0), ("none", 1.0))),)).error
    assert [*worker.pipe.transformer.state_dict()] == names


def test_input_pictures(tmp_path: Path) -> None:
    line = {"prompt": "make it grey", "image": "training_example/01.png", "steps": 2, "seed": 4}
    requests = file_of(tmp_path, [line, {**line, "image": "README.md"}])
    assert run(requests, tmp_path / "out", "--root", NANO) == 0
    omni = ZImagePipeline.from_files(*PARTS, NANO / "tokenizer", vision=NANO / "vision.safetensors")
    picture = Image.open(NANO / "training_example/01.png").convert("RGB")
    expected = alone(omni, "make it grey", 4, image=picture, width=None, height=None)
    assert np.array_equal(pixels(tmp_path / "out/000001.png"), expected)
    assert "README.md: it is no picture" in results(tmp_path / "out")["000002"]["error"]


def test_a_model_without_eyes_says_so(tmp_path: Path) -> None:
    tensors = {key: value for key, value in load_file(PARTS[0]).items() if "siglip" not in key}
    save_file(tensors, tmp_path / "blind.safetensors")
    requests = file_of(tmp_path, [{"prompt": "a", "image": "training_example/01.png"}])
    options = ("--root", NANO, "--transformer", tmp_path / "blind.safetensors")
    assert run(requests, tmp_path / "out", *options) == 0
    assert "needs omni weights" in results(tmp_path / "out")["000001"]["error"]


# ---- what is broken stops nothing


def test_broken_requests_are_reported_and_the_others_drawn(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    shutil.copy(NANO / LORA, tmp_path / "secret.safetensors")
    (inner / "link").symlink_to(tmp_path / "secret.safetensors")
    (inner / "folder").symlink_to(tmp_path)
    outside = [
        "../secret.safetensors",
        str(tmp_path / "secret.safetensors"),
        "link",
        "folder/secret.safetensors",
    ]
    lines: Lines = [{"prompt": "a fox", "loras": {name: 1.0}, **SMALL} for name in outside]
    lines += [{"prompt": "a fox", "image": "../a.png"}, {"prompt": "a fox", "loras": {"missing": 1}}]
    lines += [{"prompt": "a fox", "id": "same", **SMALL}, {"prompt": "a cat", "id": "SAME", **SMALL}]
    requests = file_of(inner, lines)
    with requests.open("ab") as file:
        file.write(b'{"prompt": \n\n{"prompt": "' + b"long " * (1 << 20) + b'"}\n')
        file.write(b'{"prompt": "the last, without an end", "size": [64, 64], "steps": 1}')
    assert run(requests, tmp_path / "out") == 0
    found = results(tmp_path / "out")
    for at, name in enumerate([*outside, "../a.png"], 1):
        assert f"{name} leads outside of" in found[f"{at:06d}"]["error"]
    assert "missing is no file" in found["000006"]["error"]
    assert {name for name, row in found.items() if "file" in row} == {"same", "000012"}
    broken = {
        row["line"]: row["error"] for row in manifest(tmp_path / "out") if "error" in row and "id" not in row
    }
    assert broken.keys() == {8, 9, 11} and "line 7" in broken[8] and "1,048,576 bytes" in broken[11]


def test_no_room_is_no_fault_of_a_request(tmp_path: Path, caplog) -> None:
    requests = file_of(tmp_path, [{"prompt": "a fox", **SMALL}])
    assert run(requests, tmp_path / "out", "--vram", "3MB") == 1
    assert "needs" in caplog.text and "give it more" in caplog.text
    assert results(tmp_path / "out") == {}
    assert run(requests, tmp_path / "out", "--vram", "40MB") == 0
    assert results(tmp_path / "out")["000001"]["file"] == "000001.png"


def test_a_folder_belongs_to_one_run(tmp_path: Path, capsys) -> None:
    lines = [{"prompt": "a fox", **SMALL}]
    requests, out = file_of(tmp_path, lines), tmp_path / "out"
    assert run(requests, out) == 0
    before = (out / "manifest.jsonl").read_bytes()
    other = file_of(tmp_path, [*lines, *lines], "other.jsonl")
    assert run(other, out) == 1 and "another request file" in capsys.readouterr().err
    assert run(requests, out, "--batch", "2") == 1 and "batch_size 4" in capsys.readouterr().err
    shutil.copy(PARTS[0], tmp_path / "renamed.safetensors")
    options = ("--transformer", tmp_path / "renamed.safetensors")
    assert run(requests, out, *options) == 1 and "another model" in capsys.readouterr().err
    held = command.Manifest(out, command.read(requests), 4, manifest(out)[0]["model"])
    assert run(requests, out) == 1 and "another process" in capsys.readouterr().err
    held.close()
    assert run(requests, out) == 0 and (out / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "0"), "expected 1 or more"),
        (("--split",), "torchrun"),
        (("--split", "--ray"), "choose one"),
        (("--model", "nowhere"), "no model's folder"),
        (("--vram", "much"), "vram is 'much'"),
        (("--root", "nowhere"), "no folder"),
        (("--vision", "nowhere"), "does not exist"),
        (("--workers", "2"), "--workers is for --ray"),
        (("--ray", "nobody"), "HOST:PORT"),
        (("--ray", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_bad_options_end_at_once_and_write_nothing(tmp_path: Path, capsys, options, said: str) -> None:
    requests = file_of(tmp_path, [{"prompt": "a fox", **SMALL}])
    assert run(requests, tmp_path / "out", *options) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no file: expected requests"),
        (b"", "holds no request that can be drawn. It is empty"),
        (b'\n{"Prompt": "a"}\n{}', 'Line 2: "Prompt" is unknown'),
    ],
)
def test_a_file_without_requests_begins_no_folder(tmp_path: Path, capsys, text, said: str) -> None:
    path = tmp_path / "requests.jsonl"
    if text is not None:
        path.write_bytes(text)
    assert run(path, tmp_path / "out") == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(tmp_path, tmp_path / "out") == 1 and "is no file" in capsys.readouterr().err


def test_without_ray_it_says_what_is_missing(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    requests = file_of(tmp_path, [{"prompt": "a fox", **SMALL}])
    assert run(requests, tmp_path / "out", "--ray") == 1
    assert "pip install ray" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- killed, and gone on with


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    draw, fork = random.Random(seed), multiprocessing.get_context("fork")
    lines = [{"prompt": f"a {'very ' * (n % 3 * 20)}red apple", **SMALL, "steps": 1} for n in range(16)]
    requests, out = file_of(tmp_path, lines), tmp_path / "out"
    kills, seen = 0, 0
    while True:
        process = fork.Process(target=_quiet_run, args=(requests, out))
        process.start()
        if kills < 3:  # some more batches, and a moment within the next one
            wanted = seen + draw.randrange(2)
            while process.is_alive() and _size(out) < wanted:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.3))
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.join()
            seen = _size(out)
            continue
        process.join()
        assert process.exitcode == 0, seed
        break
    whole = tmp_path / "whole"
    assert run(requests, whole) == 0
    assert results(out).keys() == results(whole).keys(), seed
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names, seed
    for name in names:
        if name.endswith(".png"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), f"{seed}: {name}"


def _quiet_run(requests: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os._exit(run(requests, out))


def _size(out: Path) -> int:
    """How many batches are done."""
    path = out / "manifest.jsonl"
    rows = path.read_bytes().splitlines() if path.exists() else []
    return sum(b'"file"' in row for row in rows) // 4


def test_a_line_that_was_not_finished_is_taken_away(tmp_path: Path) -> None:
    requests, out = file_of(tmp_path, [{"prompt": "a fox", **SMALL}]), tmp_path / "out"
    assert run(requests, out) == 0
    path = out / "manifest.jsonl"
    whole = path.read_bytes()
    (out / ".000001.png.part").write_bytes(b"half")
    for length in (1, 10, 40):
        path.write_bytes(whole[:-length])
        assert run(requests, out) == 0
        assert path.read_bytes() == whole and not (out / ".000001.png.part").exists()


@pytest.mark.long
def test_two_processes_share_each_picture(tmp_path: Path) -> None:
    lines = [{"prompt": "a fox", **SMALL}, {"prompt": "a cat", "loras": {"none": 1}, **SMALL}]
    requests = file_of(tmp_path, lines)
    given = [str(requests), str(tmp_path / "out"), "--model", str(NANO), "--device", "cpu", "--split"]
    for code, said in processes.ended(processes.start(2, "zimage_core.generate", *given)):
        assert code == 0, said
    assert run(requests, tmp_path / "one") == 0
    assert manifest(tmp_path / "out") == manifest(tmp_path / "one")
    found, expected = (pixels(tmp_path / folder / "000001.png") for folder in ("out", "one"))
    assert np.abs(found - expected).max() <= 1
