"""LoRAs in the host: what its weights become, and what the node finds, reads and says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import comfy.quant_ops
import comfy.sd
import comfy.utils
import folder_paths
import gguf
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.formats import by_kitchen, marker, write_gguf
from tests.core.lora_files import DIALECTS, Written, write
from tests.core.random_models import random_s3dit, relative
from tests.core.test_quantised_files import marked, scaled
from tests.core.test_weights import block_linears
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.host.weight_files import TRANSFORMER
from tests.inside.sampling import SEED, from_file, prompts, sampled

STATE = random_s3dit(TRANSFORMER, SEED).state_dict()
LAYERS = block_linears(STATE)
CAPTIONS = prompts(TRANSFORMER.cap_feat_dim, 40, 40)
CPU = torch.device("cpu")
SAME = 1e-6

node = extension_module("nodes.lora")
files = extension_module("nodes.host.loading.lora")
applied = extension_module("nodes.host.running.lora")
weights = extension_module("zimage_core.weights")
accelerated = extension_module("nodes.host.running.accelerate").accelerated
lora_notes = extension_module("nodes.host.running.lora_fit").lora_notes
load_patcher = extension_module("nodes.host.loading.model").load_patcher
load_clip = extension_module("nodes.host.loading.clip").load_clip
NANO = extension_module("nodes.host.built_in").NANO


class Base(NamedTuple):
    path: Path
    truth: dict[str, Tensor]
    step: Callable[[Tensor], Tensor]  # of the type in which a changed weight is kept


@pytest.fixture(scope="module")
def bases(scratch: Path) -> dict[str, Base]:
    def put(name: str, tensors: dict[str, Tensor]) -> Path:
        save_file({key: value.contiguous() for key, value in tensors.items()}, scratch / name)
        return scratch / name

    bf16 = {key: value.bfloat16() for key, value in STATE.items()}
    made = {"bf16": Base(put("bf16", bf16), bf16, lambda weight: weight.abs() * 2**-7)}
    fp8, truth = scaled(STATE, "weight_scale", "[]", torch.float8_e4m3fn, SEED)
    fp8, _ = marked(fp8, LAYERS, "comfy_quant", "float8_e4m3fn")
    made["fp8"] = Base(
        put("fp8", fp8), truth, lambda weight: weight.abs() / 8 + weight.abs().max() / 448 / 2**9
    )
    int8, marks, truth = by_kitchen(STATE, "int8_tensorwise")
    int8 |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    made["int8"] = Base(put("int8", int8), truth, lambda weight: weight.abs().max() / 127)
    truth = write_gguf(scratch / "gguf", STATE, gguf.GGMLQuantizationType.Q8_0, "lumina2", SEED)
    made["gguf"] = Base(scratch / "gguf", truth, lambda weight: weight.abs().max() * 1e-6)  # in float32
    return made


BF16 = 2e-3
ON_THE_FLY = 4 * 2**-9  # relative L2: of bf16's numbers, products and sums
KINDS = [("lora", None), ("loha", None), ("lokr", None), ("lora", "vector"), ("lokr", "columns")]


def blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{layer}.weight": state[f"{layer}.weight"] for layer in LAYERS}


def lora_of(written: Written):
    return weights.read_lora(written.tensors, written.metadata)


def with_lora(patcher, written: Written, strength: float = 1.0):
    use = applied.LoraUse("file", lora_of(written), strength, strength)
    return applied.with_loras(patcher, None, [use])[0]


def loaded_weights(patcher: ModelPatcher, streamed: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the blocks' linears multiply numbers of this type by; streamed: as good as nothing is loaded."""
    patcher.load(CPU, lowvram_model_memory=1 if streamed else 0, full_load=not streamed)
    try:
        found = {}
        for layer in LAYERS:
            linear = patcher.model.diffusion_model.get_submodule(layer)
            columns = STATE[f"{layer}.weight"].shape[1]
            found[f"{layer}.weight"] = linear(torch.eye(columns, dtype=dtype)).T
        return found
    finally:
        patcher.detach()


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("base", ["bf16", "fp8", "int8", "gguf"])
@pytest.mark.parametrize("kind, dora", KINDS)
def test_weights_are_those_merged_by_hand(
    base: str, kind: str, dora: str, streamed: bool, bases: dict[str, Base]
) -> None:
    """In float64, within a step of the type that keeps them; in bf16 where they are changed on the fly."""
    path, truth, step = bases[base]
    written = write(blocks(truth), DIALECTS["ai-toolkit"], SEED, kind, dora, torch.bfloat16, size=0.2)
    kept = ("bf16", torch.bfloat16) if base == "bf16" else ("auto", torch.float32)
    patcher = load_patcher(path, kept[0])
    found = loaded_weights(with_lora(patcher, written), streamed, kept[1])
    right = written.merged(blocks(truth))
    for key, weight in right.items():
        if base == "bf16":
            assert relative(found[key], weight) <= (ON_THE_FLY if streamed else BF16), key
        else:
            off = (found[key].double() - weight).abs() / step(weight)
            assert off.max() <= 1, key
    assert relative(next(iter(found.values())), next(iter(blocks(truth).values()))) > 0.1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's only folder of LoRAs."""
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"})
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture(scope="module")
def small(scratch: Path):
    return from_file(scratch / "small.safetensors", STATE)


WRITTEN = write(STATE, DIALECTS["musubi"], SEED, size=0.1)


def put(path: Path, written: Written = WRITTEN, metadata: dict | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in written.tensors.items()}, path, metadata)
    folder_paths.filename_list_cache.clear()


def run(model, clip=None, **inputs) -> tuple:
    """model, clip, report, prompt."""
    return node.ZImageLoraLoader.execute(model, clip, **inputs).args


def picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, *CAPTIONS, steps=1)


def merged(written: Written, strength: float, folder: Path, state: dict[str, Tensor] = STATE) -> Tensor:
    """The picture of weights that were changed by hand."""
    weights = {key: value.float() for key, value in written.merged(state, strength).items()}
    return picture(from_file(folder / f"merged {strength}.safetensors", weights))


@pytest.mark.parametrize("strength", [0.7, -1.0])
def test_pictures_are_those_of_merged_weights(small, folder: Path, strength: float) -> None:
    put(folder / "kohya.safetensors")
    model, _, report, _ = run(small, lora_1="kohya.safetensors", strength_1=strength)
    assert relative(picture(model), merged(WRITTEN, strength, folder)) <= SAME
    assert relative(picture(model), picture(small)) > 0.01
    count = len(WRITTEN.tensors)
    assert report == f"kohya.safetensors at {strength:g}: {count} of {count} keys"


def test_a_stack_of_several(small, folder: Path) -> None:
    """In slots and in the prompt, one of them taken away again; and one that is off is not read."""
    put(folder / "a.safetensors")
    put(folder / "deep" / "b.safetensors", write(STATE, DIALECTS["fused"], SEED + 1))
    (folder / "broken.safetensors").write_bytes(b"none")
    named = {"lora_1": "a.safetensors", "strength_1": 0.5, "lora_2": "deep\\b.safetensors", "strength_2": 1.0}
    off = {"lora_3": "broken.safetensors", "strength_3": 0.0, "lora_4": "none"}
    model, _, report, prompt = run(small, **named, **off, prompt="a cat <lora:b:-1>, red <lora:a:.2>")
    assert prompt == "a cat, red"
    assert [line.split(":")[0] for line in report.splitlines()] == [
        "a.safetensors at 0.5", "deep/b.safetensors at 1", "deep/b.safetensors at -1", "a.safetensors at 0.2",
    ]  # fmt: skip
    assert relative(picture(model), merged(WRITTEN, 0.7, folder)) <= SAME


def test_as_the_host_s_own_loader(small, folder: Path) -> None:
    written = write(STATE, DIALECTS["ai-toolkit"], SEED)
    put(folder / "toolkit.safetensors", written)
    theirs = comfy.sd.load_lora_for_models(small, None, dict(written.tensors), 0.7, 0.0)[0]
    assert relative(picture(run(small, lora_1="toolkit", strength_1=0.7)[0]), picture(theirs)) <= SAME


def test_the_host_s_own_model_with_and_without_accelerate(folder: Path) -> None:
    """Before Accelerate and behind it."""
    state = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
    written = write(state, DIALECTS["diffusers"], SEED, size=0.1)
    put(folder / "a.safetensors", written)
    captions = prompts(matrix.SMALL_CONFIG.cap_feat_dim, 40, 40)

    def seen(patcher) -> Tensor:
        return sampled(patcher, *captions, steps=1)

    native = small_native.patcher(state)
    right = seen(small_native.patcher({k: v.float() for k, v in written.merged(state).items()}))
    assert relative(seen(native), right) > 0.01
    changed = run(native, lora_1="a")[0]
    behind = run(accelerated(native)[0], lora_1="a")[0]
    for patcher in (changed, accelerated(changed)[0], behind):
        assert relative(seen(patcher), right) <= SAME


def test_the_text_encoder(folder: Path) -> None:
    """The built-in one: its keys are used where a clip is linked, each strength for its part."""
    clip, model = load_clip(NANO / "text_encoder.safetensors"), load_patcher(NANO / "transformer.safetensors")
    layer = "model.layers.0.self_attn.q_proj"
    weight = comfy.utils.get_attr(clip.cond_stage_model, f"qwen3_4b.transformer.{layer}.weight").clone()
    rows, columns = weight.shape
    up, down = torch.randn(rows, 2), torch.randn(2, columns) / columns
    keys = {f"text_encoder.{layer}.lora_A.weight": down, f"text_encoder.{layer}.lora_B.weight": up}
    put(folder / "text.safetensors", Written(keys, []))
    same, without, report, _ = run(model, None, lora_1="text.safetensors")
    assert same is model and without is None and "0 of 2 keys, it has no effect" in report
    assert "2 not used, for the text encoder, and no clip is linked" in report
    same, changed, report, _ = run(model, clip, prompt="<lora:text:1:0.5>")
    assert same is model and report == "text.safetensors at 1, on clip 0.5: 2 of 2 keys"
    changed.load_model()
    found = comfy.utils.get_attr(changed.cond_stage_model, f"qwen3_4b.transformer.{layer}.weight").float()
    assert relative(found, weight.float() + 0.5 * up @ down) <= 5e-3
    changed.patcher.detach()


def test_what_is_said_of_a_file(small, folder: Path) -> None:
    strange = {f"lora_unet_double_blocks_{i}_img_attn_qkv.alpha": torch.tensor(1.0) for i in range(5)}
    strange["lora_unet_layers_7_attention_out.alpha"] = torch.tensor(1.0)
    put(
        folder / "a.safetensors",
        Written(WRITTEN.tensors | strange, []),
        {"modelspec.trigger_phrase": "ohwx, ink"},
    )
    report = run(small, lora_1="a.safetensors")[2].splitlines()
    assert report[0].endswith(f"at 1: {len(WRITTEN.tensors)} of {len(WRITTEN.tensors) + 6} keys")
    assert report[1].startswith("- 5 not used, of Flux: lora_unet_double_blocks_0_img_attn_qkv.alpha; ")
    assert report[1].endswith("; and 3 more")
    assert report[2].startswith(
        "- 1 not used, layer 7 of layers, and this model has 0 to 1: lora_unet_layers_7"
    )
    assert report[3] == "Trigger words: ohwx, ink"
    put(folder / "flux.safetensors", Written(strange, []))
    model, _, report, _ = run(small, lora_1="flux.safetensors")
    assert model is small and lora_notes(model) == []
    assert report.startswith(
        "flux.safetensors at 1: 0 of 6 keys, it has no effect. Use one that was made for"
    )
    assert run(small)[2] == "No LoRA is chosen, here or in the prompt."


def test_the_example_that_ships() -> None:
    model = load_patcher(NANO / "transformer.safetensors")
    assert "nano_greyscale_lora.safetensors" in node.ZImageLoraLoader.define_schema().inputs[2].options
    changed, _, report, _ = run(model, lora_1="nano_greyscale_lora.safetensors")
    keys = len(weights.read_lora(NANO / "loras" / "nano_greyscale_lora.safetensors").tensors)
    assert changed is not model and report.endswith(f"at 1: {keys} of {keys} keys")


def test_names(small, folder: Path) -> None:
    for name in ("one/twin", "two/twin", "style v1.5", "Portrait"):
        put(folder / f"{name}.safetensors")
    for name in ("style v1.5", "Portrait", "one/twin", "one\\twin.safetensors"):
        assert "keys" in run(small, prompt=f"<lora:{name}>")[2]
    assert run(small, prompt="<lora:portrait.safetensor:0>")[2].startswith("No LoRA is chosen")
    for prompt, words in {
        "<lora:twin>": "'twin' may be any of 2 LoRAs: one/twin.safetensors; two/twin.safetensors. Write",
        "<lora:portrat>": "no LoRA named 'portrat'.*The nearest are: Portrait.safetensors. Put the file",
        "<lora:../../secret:1>": "no LoRA named '../../secret': 4 files were found in",
        f"<lora:{folder}/Portrait.safetensors>": "no LoRA named",
        "<lora:Portrait:strong>": "<lora:Portrait:strong> cannot be read: expected <lora:name:0.8>",
        "<lora::1>": "cannot be read",
        "<lora:Portrait:1:2:3>": "cannot be read",
    }.items():
        with pytest.raises(ValueError, match=words):
            run(small, prompt=prompt)


def test_a_model_of_another_family_is_refused(folder: Path) -> None:
    put(folder / "a.safetensors")

    class Other:
        model = torch.nn.Module()

    Other.model.diffusion_model = torch.nn.Linear(2, 2)
    with pytest.raises(weights.WeightsError, match="this MODEL is Module, not Z-Image"):
        run(Other, lora_1="a.safetensors")


def test_a_file_is_read_once_and_again_when_it_was_replaced(small, folder: Path, monkeypatch) -> None:
    put(folder / "a.safetensors")
    read = []
    monkeypatch.setattr(files, "read_lora", lambda path: read.append(path) or weights.read_lora(path))
    fingerprint = node.ZImageLoraLoader.fingerprint_inputs
    inputs = {"model": None, "lora_1": "a.safetensors", "strength_1": 1.0}
    tagged, linked = {"model": None, "prompt": "<lora:a>"}, {"model": None, "prompt": None}
    half_linked = inputs | {"strength_1": None}
    every = (inputs, tagged, linked, half_linked)
    before = [fingerprint(**given) for given in every]
    first = run(small, lora_1="a.safetensors")[0]
    run(small, lora_1="a.safetensors", strength_1=0.5)
    assert len(read) == 1
    assert before == [fingerprint(**given) for given in every]
    replaced = write(STATE, DIALECTS["diffusers"], SEED + 1, size=0.1)
    put(folder / "a.safetensors", replaced)
    os.utime(folder / "a.safetensors", ns=(1, 1))
    after = [fingerprint(**given) for given in every]
    assert all(then != now for then, now in zip(before, after, strict=True))
    second = run(small, lora_1="a.safetensors")[0]
    assert len(read) == 2
    assert relative(picture(second), merged(replaced, 1.0, folder)) <= SAME
    (folder / "merged 1.0.safetensors").unlink()
    assert relative(picture(first), merged(WRITTEN, 1.0, folder)) <= SAME


def test_files_that_are_kept_have_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        put(folder / f"{name}.safetensors")
    monkeypatch.setattr(files, "KEPT", 2.5 * sum(value.nbytes for value in WRITTEN.tensors.values()))
    files._kept.clear()
    held = [files.read(name) for name in "abac"]
    assert held[0] is held[2] and list(files._kept.values()) == [held[2], held[3]]


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -101.0])
def test_a_strength_by_the_api_or_a_link_has_the_range_of_the_widget(small, folder: Path, strength) -> None:
    """The host checks no ranges of a node that looks up its names itself."""
    put(folder / "a.safetensors")
    with pytest.raises(ValueError, match=f"strength_2 is {strength}: expected a number from -100 to 100"):
        run(small, lora_2="a.safetensors", strength_2=strength)


def test_bad_files_are_refused_by_name(small, folder: Path) -> None:
    put(folder / "good.safetensors")
    content = (folder / "good.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(content[:-9])
    torch.save(WRITTEN.tensors, folder / "pickle.pt")
    save_file({key: value.clone() for key, value in STATE.items()}, folder / "model.safetensors")
    folder_paths.filename_list_cache.clear()
    for name, words in (
        ("short", "truncated"),
        ("pickle", "Pickles"),
        ("model", "it is a Z-Image transformer"),
    ):
        with pytest.raises(weights.WeightsError, match=f"{name}.*{words}"):
            run(small, prompt=f"<lora:{name}>")
