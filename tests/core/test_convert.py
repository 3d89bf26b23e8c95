"""Smaller files: read by the formats' own programs, with the error that is printed, and nothing left over."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor, get_layout_class
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.formats import KITCHEN, WIDE, block_matrices, by_kitchen, marker
from tests.core.random_models import TINY, random_s3dit, relative, seeds
from zimage_core import S3DiTConfig
from zimage_core.weights import WeightsError, load_transformer
from zimage_core.weights.__main__ import main
from zimage_core.weights.convert import SIDE, SIGMAS, convert
from zimage_core.weights.file_writers import WRITERS
from zimage_core.weights.files import read_tensors
from zimage_core.weights.keys import transformer_to_diffusers
from zimage_core.weights.layerwise import CAPTION
from zimage_core.weights.targets import TARGETS

SEED = seeds(1)[0]
ROOT = Path(__file__).resolve().parents[2]
GGUF = [name for name in TARGETS if name.startswith("gguf")]
LARGER = S3DiTConfig(dim=1024, n_layers=2, n_refiner_layers=1, n_heads=8, cap_feat_dim=64)


@pytest.fixture(scope="module", params=[SEED])
def state(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return {k: v.bfloat16() for k, v in random_s3dit(WIDE, request.param).state_dict().items()}


@pytest.fixture(scope="module")
def original(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "bf16.safetensors"
    save_file(state, path)
    return path


def new(folder: Path, to: str) -> Path:
    return folder / f"new{TARGETS[to].suffix}"


def by_comfyui(path: Path) -> dict[str, tuple[Tensor, dict, dict[str, Tensor]]]:
    """{layer: what ComfyUI's kernels make of it, what is said of it, its tensors}."""
    tensors, found = load_file(path), {}
    for layer in [k.removesuffix(".comfy_quant") for k in tensors if k.endswith(".comfy_quant")]:
        spec = json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))
        stored, scale = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"]
        layout = KITCHEN[spec["format"]][0]
        params = get_layout_class(layout).Params(
            scale=scale, orig_dtype=torch.float32, orig_shape=tuple(stored.shape),
            **{k: v for k, v in spec.items() if k != "format"},
        )  # fmt: skip
        found[layer] = QuantizedTensor(stored, layout, params).dequantize(), spec, tensors
    return found


@pytest.mark.parametrize("to", ["fp8", "int8"])
def test_comfyui_reads_what_its_quantisers_would_write(
    to: str, original: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Each matrix of the blocks within a step of the format; the rest is what it was."""
    convert(original, new(tmp_path, to), to)
    found = by_comfyui(new(tmp_path, to))
    assert sorted(found) == sorted(block_matrices(state))
    for layer, (values, spec, tensors) in found.items():
        weight = state[f"{layer}.weight"].float()
        options = {"scale": "recalculate"}
        if to == "int8":
            options = {"per_channel": True, "convrot": True, "convrot_groupsize": 256}
            assert spec == {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
        theirs = QuantizedTensor.from_float(weight, KITCHEN[spec["format"]][0], **options)
        stored = tensors[f"{layer}.weight"].float()
        torch.testing.assert_close(tensors[f"{layer}.weight_scale"], theirs._params.scale, rtol=1e-6, atol=0)
        step = 1 if to == "int8" else theirs._qdata.float().abs().clamp(min=2**-6) / 8
        assert bool(((stored - theirs._qdata.float()).abs() <= step).all())
        assert float((stored == theirs._qdata.float()).float().mean()) > 0.999
        assert relative(values, weight) <= (0.008 if to == "int8" else 0.03)
    written = load_file(new(tmp_path, to))
    kept = {key for key in state if key.removesuffix(".weight") not in found}
    assert len(kept) > 20 and all(torch.equal(written[key], state[key]) for key in kept)
    assert written.keys() - state.keys() == {
        f"{layer}.{end}" for layer in found for end in ("weight_scale", "comfy_quant")
    }


@pytest.mark.parametrize("to", GGUF)
def test_gguf_reads_what_its_quantisers_write(
    to: str, original: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    convert(original, new(tmp_path, to), to)
    reader = gguf.GGUFReader(new(tmp_path, to))
    kind = gguf.GGMLQuantizationType[to.removeprefix("gguf-").upper()]
    layers = block_matrices(state)
    assert reader.fields["general.architecture"].contents() == "lumina2"
    assert {tensor.name for tensor in reader.tensors} == state.keys()
    for tensor in reader.tensors:
        value = state[tensor.name]
        assert tuple(tensor.shape[::-1]) == tuple(value.shape), "no loader has to shape it anew"
        if tensor.name.removesuffix(".weight") in layers:
            assert tensor.tensor_type == kind
            assert (tensor.data == gguf.quants.quantize(value.float().numpy(), kind)).all()
        else:
            plain = value.ndim == 1 or tensor.name.endswith("pad_token")
            assert tensor.tensor_type.name == ("F32" if plain else "BF16")
            stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert torch.equal(torch.tensor(stored).reshape(value.shape), value.float()), tensor.name


@pytest.mark.parametrize("to", TARGETS)
def test_the_printed_error_is_that_of_the_whole_models(
    to: str, original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The command's last lines, against both files loaded as a whole and run from the printed seed."""
    out = new(tmp_path, to)
    with caplog.at_level(logging.INFO):
        assert main(["convert", str(original), str(out), "--to", to]) == 0
    said = caplog.messages[-1]
    printed = re.search(r"three sigmas: (.*) \(.*of 256x256 pixels, .*seed (\d+)\)", said)
    generator = torch.Generator().manual_seed(int(printed[2]))
    latent = torch.randn(1, 16, SIDE, SIDE, generator=generator).expand(3, -1, -1, -1)
    caption = torch.randn(1, CAPTION, WIDE.cap_feat_dim, generator=generator).expand(3, -1, -1)
    with torch.no_grad():
        before, after = (
            load_transformer(path, dtype=torch.float32)(latent, torch.tensor(SIGMAS), caption)
            for path in (original, out)
        )
    errors = [relative(*pair) for pair in zip(after, before, strict=True)]
    assert printed[1] == ", ".join(f"{e:.2g} at {s}" for e, s in zip(errors, SIGMAS, strict=True))
    assert all(0 < error < 0.2 for error in errors)
    assert f"{out.stat().st_size / 1e9:.2f} GB" in said


def test_rows_that_fit_no_block_and_no_rotation_stay_plain(tmp_path: Path) -> None:
    """682 columns are no multiple of 32, nor of 16."""
    state = {k: v.bfloat16() for k, v in random_s3dit(TINY, SEED).state_dict().items()}
    save_file(state, tmp_path / "odd.safetensors")
    convert(tmp_path / "odd.safetensors", new(tmp_path, "int8"), "int8")
    specs = {layer: spec for layer, (_, spec, _) in by_comfyui(new(tmp_path, "int8")).items()}
    assert specs["layers.0.feed_forward.w2"] == {"format": "int8_tensorwise"}
    assert specs["layers.0.feed_forward.w1"]["convrot"]
    convert(tmp_path / "odd.safetensors", new(tmp_path, "gguf-q4_0"), "gguf-q4_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(new(tmp_path, "gguf-q4_0")).tensors}
    assert kinds["layers.0.feed_forward.w2.weight"] == "BF16"
    assert kinds["layers.0.feed_forward.w1.weight"] == "Q4_0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_folder_of_shards_under_diffusers_names(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """q, k and v are one matrix with one scale in the new file; the kept tensors have the type they had."""
    single = {key: value.to(dtype) for key, value in state.items()}
    save_file(single, tmp_path / "single.safetensors")
    theirs = {k: v.contiguous() for k, v in transformer_to_diffusers(single).items()}
    folder, places = tmp_path / "transformer", {}
    folder.mkdir()
    for index, names in enumerate((sorted(theirs)[::2], sorted(theirs)[1::2]), 1):
        file = f"diffusion_pytorch_model-{index:05}-of-00002.safetensors"
        save_file({name: theirs[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    told = [
        convert(source, tmp_path / f"{i}.safetensors", "fp8")
        for i, source in enumerate((tmp_path / "single.safetensors", folder))
    ]
    assert told[0].errors == told[1].errors
    first, second = (load_file(each.path) for each in told)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert first["layers.0.adaLN_modulation.0.weight"].dtype == dtype


def test_what_is_quantised_already_is_converted_with_a_warning(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors, marks, truth = by_kitchen(state, "int8_tensorwise by row")
    tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    save_file(tensors, tmp_path / "int8.safetensors")
    convert(tmp_path / "int8.safetensors", new(tmp_path, "gguf-q8_0"), "gguf-q8_0")
    assert "int8.safetensors is stored in int8_tensorwise" in caplog.text
    for tensor in gguf.GGUFReader(new(tmp_path, "gguf-q8_0")).tensors:
        if tensor.tensor_type.name == "Q8_0":
            theirs = gguf.quants.quantize(truth[tensor.name].float().numpy(), tensor.tensor_type)
            assert (tensor.data == theirs).all()


class Stopped(BaseException):
    """As a cancelled graph is."""


@pytest.mark.parametrize("to", ["fp8", "gguf-q4_0"])
@pytest.mark.parametrize("seed", seeds(6))
def test_what_is_stopped_leaves_nothing(seed: int, to: str, original: Path, tmp_path: Path) -> None:
    """At any point of writing and of computing the error."""
    at = random.Random(seed).random()

    def progress(done: int, total: int) -> None:
        if done >= at * total:
            raise Stopped

    with pytest.raises(Stopped):
        convert(original, new(tmp_path, to), to, progress)
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_from_nothing_to_all(original: Path, tmp_path: Path) -> None:
    seen = []
    convert(original, new(tmp_path, "fp8"), "fp8", lambda done, total: seen.append((done, total)))
    done = [each for each, _ in seen]
    assert len({total for _, total in seen}) == 1 and done[-1] == seen[0][1]
    assert done == sorted(done) and len(set(done)) > 50 and done[0] < 0.1 * done[-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["layers.0.feed_forward.w2.weight", "layers.0.adaLN_modulation.0.weight"])
def test_values_that_are_no_numbers(key: str, bad: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    broken = state | {key: state[key].clone()}
    broken[key][3, 5] = bad
    save_file(broken, tmp_path / "broken.safetensors")
    for to in ("int8", "gguf-q5_1"):
        with pytest.raises(WeightsError, match=f"broken.safetensors holds NaN or infinity in {key}"):
            convert(tmp_path / "broken.safetensors", new(tmp_path, to), to)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_weights_too_large_for_the_format_are_not_written(state: dict[str, Tensor], tmp_path: Path) -> None:
    """GGUF's scales are float16."""
    key = "layers.0.attention.out.weight"
    save_file(state | {key: state[key] * 1e9}, tmp_path / "large.safetensors")
    with pytest.raises(WeightsError, match="large.safetensors computes no finite velocity"):
        convert(tmp_path / "large.safetensors", new(tmp_path, "gguf-q8_0"), "gguf-q8_0")
    assert len(list(tmp_path.iterdir())) == 1


def test_no_space(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(WeightsError, match=r"takes 0.00 GB, and .* has 0.00 GB free"):
        convert(original, new(tmp_path, "fp8"), "fp8", lambda done, total: pytest.fail("began"))
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """Takes no byte more than files have now, until it is left: by the process's own limit."""

    def __enter__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.limits[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


@pytest.mark.parametrize("seed, to", zip(seeds(len(TARGETS)), TARGETS, strict=True))
def test_a_disk_that_fills_up_leaves_nothing(seed: int, to: str, original: Path, tmp_path: Path) -> None:
    at, full = random.Random(seed).random() / 4, contextlib.ExitStack()  # a third is writing

    def progress(done: int, total: int) -> None:
        if done >= at * total:
            full.enter_context(FullDisk())

    with full, pytest.raises(WeightsError, match="cannot be written: File too large. It takes 0.00 GB: free"):
        convert(original, new(tmp_path, to), to, progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["fp8", "gguf-q8_0"])
def test_a_disk_that_is_full_for_a_moment_leaves_no_hole(to: str, tmp_path: Path) -> None:
    """Each tensor in turn finds it so: an error, or a file that is whole."""
    path, tensors = new(tmp_path, to), {f"t{i}": torch.full((40 + i,), float(i + 1)) for i in range(5)}
    for late in tensors:
        with contextlib.suppress(OSError), WRITERS[path.suffix](path, tensors, {}) as writer:
            for key, value in tensors.items():
                with FullDisk() if key == late else contextlib.nullcontext():
                    writer.write(key, value)
            writer.close()
            found = read_tensors(path).tensors
            assert all(torch.equal(found[key], value) for key, value in tensors.items()), late
        path.unlink()


def test_nothing_is_written_over(original: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    shutil.copy(original, source)
    content = source.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(source)
    os.link(source, tmp_path / "second.safetensors")
    for name in ("source", "link", "second"):
        for given in (tmp_path, tmp_path / ".." / tmp_path.name):
            with pytest.raises(WeightsError, match="are the same file"):
                convert(source, given / f"{name}.safetensors", "fp8")
    (tmp_path / "other.safetensors").write_text("other")
    (tmp_path / "nowhere.safetensors").symlink_to(tmp_path / "missing")
    for name in ("other", "nowhere"):
        with pytest.raises(WeightsError, match="exists already"):
            convert(source, tmp_path / f"{name}.safetensors", "fp8")

    def late(done: int, total: int) -> None:
        (tmp_path / "late.safetensors").write_text("late")

    with pytest.raises(WeightsError, match="exists already"):
        convert(source, tmp_path / "late.safetensors", "fp8", late)
    assert source.read_bytes() == content and (tmp_path / "late.safetensors").read_text() == "late"
    assert len(list(tmp_path.iterdir())) == 6


def test_places_that_no_loader_looks_at(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="ends in .gguf"):
        convert(original, tmp_path / "new.safetensors", "gguf-q8_0")
    with pytest.raises(WeightsError, match="is no folder"):
        convert(original, tmp_path / "missing" / "new.gguf", "gguf-q8_0")
    with pytest.raises(WeightsError, match="does not exist"):
        convert(tmp_path / "missing.safetensors", tmp_path / "new.gguf", "gguf-q8_0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install gguf"):
        convert(original, tmp_path / "new.gguf", "gguf-q8_0")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_wrong_and_what_a_file_is(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["convert", str(original), str(original), "--to", "fp8"]) == 1
    assert "are the same file" in capsys.readouterr().err
    command = [sys.executable, "-m", "zimage_core.weights", "describe", str(original)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    parameters = sum(value.numel() for value in load_file(original).values())
    assert said.startswith("transformer\n") and f"parameters: {parameters}\n" in said


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("larger") / "larger.safetensors"
    state = random_s3dit(LARGER, SEED).state_dict()
    save_file({k: v.bfloat16() for k, v in state.items()}, path)
    return path


MEASURED = """
import re, sys, threading
from pathlib import Path
from zimage_core.weights.convert import convert

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

seen, over = [], threading.Event()
def look():
    while not over.wait(0.002):
        seen.append(anonymous())
threading.Thread(target=look, daemon=True).start()
convert(sys.argv[1], sys.argv[3] + ".small.safetensors", "int8")
before = anonymous()
seen.clear()
convert(sys.argv[2], sys.argv[3], "int8")
over.set()
sys.stdout.write(str(max(seen) - before))
"""


def test_memory_is_that_of_a_layer(original: Path, larger: Path, tmp_path: Path) -> None:
    """In a process of its own; a map of the file is no memory, its pages go when others need them.

    A smaller file goes first, for what is made once. What is freed goes back, as it does by itself for
    matrices of the real size.
    """
    command = [sys.executable, "-c", MEASURED, original, larger, new(tmp_path, "int8")]
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    environment = os.environ | settings
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert larger.stat().st_size > 100e6
    assert int(run.stdout) <= 70e6, "the whole file would be 100 MB, in float32 200"


@pytest.mark.parametrize("names", [("x" * 300, "n.safetensors"), ("bf16.safetensors", "x" * 300)])
def test_names_that_no_disk_takes(names: tuple, original: Path, tmp_path: Path, capsys) -> None:
    source, out = original.parent / names[0], (tmp_path / names[1]).with_suffix(".safetensors")
    assert main(["convert", str(source), str(out), "--to", "fp8"]) == 1
    assert "name too long" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_name_that_leaves_no_room_for_that_of_the_unfinished_file(original: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="File name too long. Choose another name or folder"):
        convert(original, tmp_path / f"{'x' * 240}.safetensors", "fp8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sent: sent.name)
def test_an_end_from_outside_leaves_nothing(sent: signal.Signals, larger: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zimage_core.weights", "convert", larger, tmp_path / "n.gguf"]
    process = subprocess.Popen(
        [*command, "--to", "gguf-q8_0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # what runs the tests may ignore it
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.communicate()[1].endswith("stopped: nothing was written\n")
    assert process.returncode == 130 and list(tmp_path.iterdir()) == []
