"""ZImageSaveQuantized: any MODEL becomes a file that the host's own loader and ours open, LoRAs merged in."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.hooks
import comfy.model_detection
import comfy.model_management as management
import comfy.quant_ops
import comfy.sd
import comfy.supported_models
import folder_paths
import gguf
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.formats import block_matrices, by_kitchen, marker
from tests.core.random_models import random_s3dit, relative, seeds
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside.sampling import SEED, prompts, sampled
from tests.inside.test_accelerate import PackedOps

HOSTS = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}  # its names
# How far one step is from the MODEL's: of random weights, and where the host rounds inputs to int8 as well.
FAR = {"fp8": 0.06, "int8": 0.03, "gguf-q8_0": 0.02, "gguf-q4_0": 0.2}
STATE = {k: v.bfloat16().float() for k, v in random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict().items()}
CAPTIONS = prompts(matrix.CAPTION, 21, 21)
LAYERS = block_matrices(STATE)

node = extension_module("nodes.save_quantized").ZImageSaveQuantized
loading = extension_module("nodes.host.loading.model")
accelerated = extension_module("nodes.host.running.accelerate").accelerated
WeightsError = extension_module("zimage_core.weights").WeightsError


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "diffusion_models"


@pytest.fixture
def small_for_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's loader takes a small Z-Image for one; all else that it does is its own."""
    settings = small_native.patcher(dict(STATE)).model.model_config.unet_config
    found = {k: v for k, v in settings.items() if k != "dtype"}
    monkeypatch.setattr(comfy.model_detection, "detect_unet_config", lambda *args, **kwargs: dict(found))
    known = {"image_model": "lumina2", "dim": matrix.SMALL_CONFIG.dim}
    monkeypatch.setattr(comfy.supported_models.ZImage, "unet_config", known)


def picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, *CAPTIONS, steps=1)


def native() -> ModelPatcher:
    return small_native.patcher(dict(STATE))


def ours(folder: Path) -> ModelPatcher:
    path = folder / "bf16.safetensors"
    save_file({k: v.bfloat16().contiguous() for k, v in STATE.items()}, path)
    return loading.load_patcher(path)


def in_int8(folder: Path) -> ModelPatcher:
    """Packed where this host has the format."""
    tensors, marks, _ = by_kitchen(STATE, "int8_tensorwise by row")
    tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    save_file(tensors, folder / "int8.safetensors")
    return loading.load_patcher(folder / "int8.safetensors")


def in_fp8(folder: Path) -> ModelPatcher:
    tensors, marks, _ = by_kitchen(STATE, "float8_e4m3fn")
    tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    save_file(tensors, folder / "fp8.safetensors")
    return loading.load_patcher(folder / "fp8.safetensors")


MODELS: dict[str, Callable[[Path], ModelPatcher]] = {
    "the host's": lambda folder: native(),
    "the host's, accelerated": lambda folder: accelerated(native())[0],
    "ours": ours,
    "ours in int8": in_int8,
    "ours in fp8": in_fp8,
}


def save(patcher: ModelPatcher, format: str, prefix: str = "new") -> str:
    output = node.PREPARE_CLASS_CLONE(None).execute(model=patcher, filename_prefix=prefix, format=format)
    return output.ui.as_dict()["text"][0]


@pytest.mark.parametrize("format", FAR)
def test_saved_and_loaded_by_ours(format: str, output: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A counter makes names of their own; the report tells size, place and error, the log all of it."""
    patcher = native()
    right = picture(patcher)
    output.mkdir()
    (output / "new_00006_.gguf").touch()
    with caplog.at_level(logging.INFO):
        text = save(patcher, format)
    name = "new_00007_.gguf" if format.startswith("gguf") else "new_00007_.safetensors"
    lines = text.splitlines()
    assert lines[:2] == [name, "in output/diffusion_models"]
    assert len(lines) <= 5 and max(map(len, lines)) <= 45
    log = caplog.messages[-1]
    assert str(output / name) in log and f"{len(LAYERS)} matrices in {format}" in log
    size, share = re.fullmatch(r"(\d+) MB, (\d+) % of the MODEL", lines[2]).groups()
    errors = lines[3].removeprefix("Error: ")
    stored = (output / name).stat().st_size
    assert int(size) == round(stored / 1e6) and int(share) == round(100 * stored / patcher.model_size())
    assert re.findall(r"(\S+) at 0\.\d", log) == errors.split(", ") and len(errors.split(", ")) == 3
    assert 0 < relative(picture(loading.load_patcher(output / name)), right) <= FAR[format]


@pytest.mark.parametrize("format", HOSTS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_hosts_own_loader_opens_it(
    kind: str, format: str, output: Path, tmp_path: Path, small_for_host: None
) -> None:
    """As packed matrices, and it computes what the MODEL did.

    A host without the format says so, and does not take its integers for weights.
    """
    patcher = MODELS[kind](tmp_path)
    right = picture(patcher)
    save(patcher, format)
    (path,) = output.iterdir()
    if HOSTS[format] not in comfy.quant_ops.QUANT_ALGOS:
        with pytest.raises(KeyError, match=HOSTS[format]):
            comfy.sd.load_diffusion_model(str(path))
        return
    loaded = comfy.sd.load_diffusion_model(str(path))
    assert type(loaded.model.diffusion_model) is type(native().model.diffusion_model)
    for layer in LAYERS:
        weight = loaded.model.diffusion_model.get_submodule(layer).weight
        assert isinstance(weight, comfy.quant_ops.QuantizedTensor) and weight._qdata.itemsize == 1
    assert relative(picture(loaded), right) <= FAR[format]


@pytest.mark.parametrize("kind", MODELS)
def test_the_hosts_own_saving(kind: str, tmp_path: Path) -> None:
    """What *Save Model* writes of each of these MODELs is the MODEL."""
    patcher = MODELS[kind](tmp_path)
    right = picture(patcher)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patcher, metadata={})
    saved = loading.load_patcher(tmp_path / "saved.safetensors")
    # In int8 layers round their inputs as well. Sums in another order, as for weights that lie elsewhere in
    # memory, differ by 1e-7, and a few of the inputs then round to another number.
    assert relative(picture(saved), right) <= (2e-2 if kind == "ours in int8" else 1e-5)
    if kind == "ours in int8":
        before, after = (p.model.diffusion_model.state_dict() for p in (patcher, saved))
        assert before.keys() == after.keys()
        assert all(torch.equal(values, after[key].to(values.dtype)) for key, values in before.items())


def changes() -> dict[str, Tensor]:
    """A LoRA of every matrix in the blocks."""
    generator, lora = torch.Generator().manual_seed(SEED), {}
    for layer in LAYERS:
        rows, columns = STATE[f"{layer}.weight"].shape
        down, up = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)
        size = STATE[f"{layer}.weight"].norm() / (up @ down).norm() / 2
        lora |= {f"diffusion_model.{layer}.lora_down.weight": down * size}
        lora |= {f"diffusion_model.{layer}.lora_up.weight": up}
    return lora


@pytest.mark.parametrize("kind, loaded", [("the host's", False), *((kind, True) for kind in MODELS)])
def test_loras_are_merged_in(kind: str, loaded: bool, output: Path, tmp_path: Path) -> None:
    """By hand in float64, to half a step; the same when the MODEL is loaded with it, or another is."""
    plain = MODELS[kind](tmp_path)
    lora = changes()
    changed = comfy.sd.load_lora_for_models(plain, None, lora, 0.5, 0.0)[0]
    if loaded:  # its weights are changed in place now, also those of the MODEL without the LoRA
        picture(changed)
    save(changed, "gguf-q8_0", "changed")
    save(plain, "gguf-q8_0", "plain")
    before = STATE
    if kind == "ours in fp8":
        before = loading.read_transformer(tmp_path / "fp8.safetensors").plain(torch.float32)
    for name, strength in (("changed", 0.5), ("plain", 0.0)):
        tensors = {t.name: t for t in gguf.GGUFReader(output / f"{name}_00001_.gguf").tensors}
        for layer in LAYERS:
            up, down = (lora[f"diffusion_model.{layer}.lora_{end}.weight"].double() for end in ("up", "down"))
            meant = before[f"{layer}.weight"].double() + strength * (up @ down)
            stored = tensors[f"{layer}.weight"]
            found = torch.tensor(gguf.quants.dequantize(stored.data, stored.tensor_type))
            assert relative(found, meant) <= (0.012 if kind == "ours in int8" else 0.006)


@pytest.mark.parametrize("prompts", [1, 2])
def test_loras_of_single_prompts_are_said_to_be_left_out(prompts: int, output: Path) -> None:
    patcher = native()
    for _ in range(prompts):
        patcher = comfy.hooks.load_hook_lora_for_models(patcher, None, changes(), 0.5, 0.0)[0]
    said = save(patcher, "gguf-q8_0", "hooked")
    which = "A LoRA" if prompts == 1 else "2 LoRAs"
    assert f"{which} of single prompts (hooks): not merged in" in said
    assert "hooks" not in save(native(), "gguf-q8_0", "plain")
    files = [(output / f"{name}_00001_.gguf").read_bytes() for name in ("hooked", "plain")]
    assert files[0] == files[1]


def test_parts_of_loras_that_do_not_fit_are_told(output: Path) -> None:
    lora = {key: value for key, value in changes().items() if "layers.0.attention" in key}
    lora = {key: value[:, :8] if "down" in key else value for key, value in lora.items()}
    said = save(comfy.sd.load_lora_for_models(native(), None, lora, 0.5, 0.0)[0], "fp8")
    assert "LoRA: 0 of 2 of its parts fit this model" in said


def test_what_changes_a_model_while_it_runs_is_refused(output: Path) -> None:
    """LoRAs in bypass mode, on hosts that have it, and whatever else is no patch of a weight."""
    injected, wrapped = native(), native()
    injected.set_injections("slider", [PatcherInjection(lambda model: None, lambda model: None)])
    wrapped.add_weight_wrapper("diffusion_model.layers.0.attention.qkv.weight", lambda weight: weight)
    for patcher, name in ((injected, "slider"), (wrapped, "layers.0.attention.qkv")):
        with pytest.raises(ValueError, match=rf"while it runs \(.*{name}.*not in bypass mode"):
            save(patcher, "fp8")
    if hasattr(comfy.sd, "load_bypass_lora_for_models"):
        bypass = comfy.sd.load_bypass_lora_for_models(native(), None, changes(), 0.5, 0.0)[0]
        with pytest.raises(ValueError, match=r"while it runs \(bypass_lora\)"):
            save(bypass, "fp8")
    assert not output.exists()


class Interrupted(management.InterruptProcessingException):
    pass


@pytest.mark.parametrize("seed", seeds(4))
def test_cancel_leaves_nothing(seed: int, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host asks at each tensor of writing and of the two forwards behind it."""
    left = random.Random(seed).randrange(3 * len(STATE))

    def ask() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", ask)
    with pytest.raises(Interrupted):
        save(native(), "fp8")
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("prefix, place", [
    ("diffusion_models/mine", "mine"), ("sub/mine", "sub/mine"), ("sub\\mine", "sub/mine"), ("", "zimage"),
])  # fmt: skip
def test_places(prefix: str, place: str, output: Path) -> None:
    save(native(), "fp8", prefix)
    assert [path for path in output.rglob("*") if path.is_file()] == [output / f"{place}_00001_.safetensors"]


def test_what_cannot_be_saved(output: Path) -> None:
    with pytest.raises(ValueError, match="in a way that another extension alone can read"):
        save(small_native.patcher(dict(STATE), PackedOps), "fp8")
    for prefix in ("../../elsewhere/new", "../new", "/elsewhere/new", "sub/../../new"):
        with pytest.raises(Exception, match="outside the output folder"):
            save(native(), "fp8", prefix)
    assert not output.exists() or list(output.iterdir()) == []
    assert list(output.parent.rglob("new*")) == []


def test_kept_tensors_are_those_of_the_model(output: Path, tmp_path: Path) -> None:
    save(ours(tmp_path), "fp8")
    written = load_file(next(output.iterdir()))
    kept = STATE.keys() - {f"{layer}.weight" for layer in LAYERS}
    assert len(kept) > 30 and all(torch.equal(written[key].float(), STATE[key]) for key in kept)


@pytest.fixture(autouse=True)
def nothing_stays_loaded() -> Iterator[None]:
    yield
    management.unload_all_models()
