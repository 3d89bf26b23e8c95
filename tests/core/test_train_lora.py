"""LoRA and LoKr in training: gradients, files in every trainer's names, layers as they are stored."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, safe_open

from tests.core.random_models import random_s3dit
from zimage_core import S3DiT
from zimage_core.acceleration.checkpointing import Checkpointing
from zimage_core.config import S3DiTConfig
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.train import lora
from zimage_core.train.frozen import from_checkpoint
from zimage_core.train.trainer import trained
from zimage_core.weights import WeightsError, fit_lora, load_transformer, read_lora, read_transformer
from zimage_core.weights.quantised import quantise_fp8

CONFIG = S3DiTConfig(
    dim=128, n_layers=2, n_refiner_layers=1, n_heads=1, ffn_dim=96, cap_feat_dim=64, t_hidden=32
)
SHAPES = {name: value.shape for name, value in S3DiT(CONFIG, device="meta").state_dict().items()}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 16, 8, 8, generator=generator)
    captions = Captions(torch.randn(2, 12, 64, generator=generator), (12, 7))
    return x, torch.tensor([0.8, 0.3]), Prompt(captions)


def velocity(model, hooks=()):
    x, sigma, prompt = case()
    return model(x.to(model.x_pad_token.dtype), sigma, condition=prompt, hooks=hooks)


def trained_by_chance(model, settings):
    """With a change of some size, as after training."""
    torch.manual_seed(1)
    changes = lora.inject(model, settings)
    for p in trained(model).values():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1
    return changes


SETTINGS = [
    lora.Settings(rank=3),
    lora.Settings(rank=4, alpha=2.0, targets="attention"),
    lora.Settings(kind="lokr", rank=2, factor=6, targets="with modulation"),
    lora.Settings(kind="lokr", rank=64, factor=3, alpha=16.0),
    lora.Settings(rank=2, stacks=("noise_refiner", "context_refiner", "layers")),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_starts_at_the_model_and_ends_at_the_merged_weights(settings):
    base = random_s3dit(CONFIG, seed=0)
    plain = velocity(base).detach()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    torch.manual_seed(0)
    lora.inject(base, settings)
    assert torch.equal(velocity(base), plain)
    model = random_s3dit(CONFIG, seed=0)
    changes = trained_by_chance(model, settings)
    merged = S3DiT(CONFIG)
    merged.load_state_dict(lora.merged(weights, changes))
    out = velocity(model)
    assert not torch.allclose(out, plain, atol=1e-3)
    assert torch.allclose(velocity(merged), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("names", lora.WRITTEN)
def test_files_are_read_again_as_the_same_change(tmp_path, settings, names):
    """By our loader of LoRA files, whose adapters are tested against ComfyUI's and peft's."""
    if names == "diffusers" and settings.kind != "lora":
        with pytest.raises(ValueError, match="LoRA alone"):
            lora.tensors(trained_by_chance(random_s3dit(CONFIG, seed=0), settings), names)
        return
    changes = trained_by_chance(random_s3dit(CONFIG, seed=0), settings)
    path = tmp_path / "one.safetensors"
    lora.write(path, changes, lora.described(settings, ss_steps=7), names, torch.float32)
    fit = fit_lora(read_lora(path), SHAPES)
    assert not fit.unused
    found = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for name, target in fit.targets.items():
        parts = {part: fit.tensors.get(f"{name}.{part}") for part in ("lora_up.weight", "lora_down.weight")}
        alpha = float(fit.tensors.get(f"{name}.alpha", torch.tensor(float("nan"))))
        if parts["lora_up.weight"] is not None:
            delta = parts["lora_up.weight"] @ parts["lora_down.weight"]
            rank = len(parts["lora_down.weight"])
            scale = 1.0 if alpha != alpha else alpha / rank
        else:
            second = fit.tensors.get(f"{name}.lokr_w2")
            scale = 1.0
            if second is None:
                a, b = fit.tensors[f"{name}.lokr_w2_a"], fit.tensors[f"{name}.lokr_w2_b"]
                second, scale = a @ b, 1.0 if alpha != alpha else alpha / len(b)
            delta = torch.kron(fit.tensors[f"{name}.lokr_w1"], second)
        where, rows = (target, slice(None)) if isinstance(target, str) else (target[0], None)
        if rows is None:
            _, start, length = target[1]
            rows = slice(start, start + length)
        found[where][rows] += scale * delta
    for path_, change in changes.items():
        assert torch.allclose(found.pop(f"{path_}.weight"), change.matrix(), rtol=1e-4, atol=1e-6), path_
    assert all(not value.any() for value in found.values())


def test_metadata_says_what_it_is(tmp_path):
    settings = lora.Settings(rank=4, alpha=2.0)
    changes = trained_by_chance(random_s3dit(CONFIG, seed=0), settings)
    facts = {"ss_steps": 7, "modelspec.trigger_phrase": "sks", "empty": ""}
    for names in lora.WRITTEN:
        lora.write(tmp_path / f"{names}.safetensors", changes, lora.described(settings, **facts), names)
    with safe_open(tmp_path / "comfyui.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "2.0"
    assert metadata["ss_steps"] == "7" and "empty" not in metadata
    assert read_lora(tmp_path / "kohya.safetensors").trigger_words == ["sks"]
    with safe_open(tmp_path / "diffusers.safetensors", "pt") as file:
        adapter = json.loads(file.metadata()["lora_adapter_metadata"])
    assert adapter["transformer.r"] == adapter["transformer.lora_alpha"] == 4  # counted in lora_B
    assert "layers.0.attention.to_q" in adapter["transformer.target_modules"]
    assert all(
        value.dtype == torch.bfloat16 for value in load_file(tmp_path / "diffusers.safetensors").values()
    )


def test_no_file_is_written_over(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_text("mine")
    changes = trained_by_chance(random_s3dit(CONFIG, seed=0), SETTINGS[0])
    with pytest.raises(WeightsError, match="exists already"):
        lora.write(path, changes, {})
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_it_goes_on_from_a_file(tmp_path):
    changes = trained_by_chance(random_s3dit(CONFIG, seed=0), lora.Settings(rank=3, alpha=6.0))
    path = tmp_path / "before.safetensors"
    lora.write(path, changes, {}, "kohya", torch.float32)
    model = random_s3dit(CONFIG, seed=0)
    again = lora.inject(model, lora.Settings(rank=3))
    fit = fit_lora(read_lora(path), SHAPES)
    for (
        change
    ) in again.values():  # q, k and v of kohya's file are three changes, fused to three times the rank
        assert change.rank == 3
    with pytest.raises(WeightsError, match="attention.qkv.*this run trains"):
        lora.load(model, fit)
    lora.write(tmp_path / "ours.safetensors", changes, {}, "comfyui", torch.float32)
    lora.load(model, fit_lora(read_lora(tmp_path / "ours.safetensors"), SHAPES))
    for path_, change in again.items():
        assert torch.allclose(change.matrix(), changes[path_].matrix(), rtol=1e-5, atol=1e-7)


def quantised(kind: str) -> dict[str, torch.Tensor]:
    weights = random_s3dit(CONFIG, seed=0).state_dict()
    if kind == "bf16":
        return {name: value.bfloat16() for name, value in weights.items()}
    out = {}
    for name, value in weights.items():
        large = value.ndim == 2 and name.startswith("layers.") and "adaLN" not in name
        if large and kind == "fp8":
            out[name], out[name.replace("weight", "weight_scale")] = quantise_fp8(value)
        elif large:
            scale = value.abs().amax(1, keepdim=True) / 127
            out[name], out[name.replace("weight", "weight_scale")] = (
                (value / scale).round().to(torch.int8),
                scale,
            )
            marker = json.dumps({"format": "int8_tensorwise", "convrot": False}).encode()
            out[name.replace("weight", "comfy_quant")] = torch.tensor(list(marker), dtype=torch.uint8)
        else:
            out[name] = value
    return out


@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
def test_bases_as_they_are_stored_give_the_gradients_of_plain_ones(kind):
    stored = quantised(kind)
    model = from_checkpoint(read_transformer(stored))
    types = {p.dtype for name, p in model.named_parameters() if "feed_forward" in name and p.ndim == 2}
    assert {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}[kind] in types
    plain = load_transformer(stored, dtype=model.x_pad_token.dtype)
    gradients = []
    for each in (model, plain):
        trained_by_chance(each, lora.Settings(rank=3))
        velocity(each).float().square().mean().backward()
        gradients.append({name: p.grad for name, p in trained(each).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[1].items():
        error = (gradients[0][name] - wanted).norm() / wanted.norm()
        assert error < (0.02 if kind == "bf16" else 1e-4), (name, float(error))


def test_weights_made_in_inference_mode_train():
    with torch.inference_mode():
        stored = {name: value.clone() for name, value in quantised("bf16").items()}
    model = from_checkpoint(read_transformer(stored))
    trained_by_chance(model, lora.Settings(rank=2))
    velocity(model).float().square().mean().backward()
    assert all(p.grad is not None for p in trained(model).values())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(dropout):
    found, kept = [], []
    for hooked in (False, True):
        model = random_s3dit(CONFIG, seed=0)
        trained_by_chance(model, lora.Settings(rank=2, dropout=dropout))
        saved: list[int] = []
        torch.manual_seed(4)
        hooks = (Checkpointing(model),) if hooked else ()

        def pack(tensor, saved=saved):
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = velocity(model, hooks)
        kept.append(sum(saved))
        out.square().mean().backward()
        found.append([p.grad for p in trained(model).values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < kept[0]


def test_an_adapter_counts_while_training_and_not_after(tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    settings = lora.Settings(rank=2)
    lora.write(
        adapter, trained_by_chance(random_s3dit(CONFIG, seed=0), settings), {}, "comfyui", torch.float32
    )
    plain = velocity(random_s3dit(CONFIG, seed=0))
    both = random_s3dit(CONFIG, seed=0)
    given = lora.put_under(both, fit_lora(read_lora(adapter), SHAPES))
    lora.inject(both, lora.Settings(rank=3))
    merged = random_s3dit(CONFIG, seed=0)
    trained_by_chance(merged, settings)
    assert torch.allclose(velocity(both), velocity(merged), rtol=2e-2, atol=2e-2)
    assert not torch.allclose(velocity(both), plain, atol=1e-3)
    for layer in given:
        layer.on = False
    assert torch.equal(velocity(both), plain)
    assert not any("up" in name or "down" in name for name in trained(both))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"kind": "loha"}, "lora, lokr"),
        ({"targets": "all"}, "attention and feed-forward"),
        ({"rank": 0}, "expected 1 or more"),
        ({"dropout": 1.0}, "to below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(how, said):
    with pytest.raises(ValueError, match=said):
        lora.Settings(**how)


def test_a_model_without_the_layers_is_refused():
    with pytest.raises(ValueError, match="no layers"):
        lora.inject(random_s3dit(CONFIG, seed=0), lora.Settings(stacks=("siglip_refiner",)))
