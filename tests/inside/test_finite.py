"""A run whose result is not finite says which of its inputs is to blame."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.core.random_models import random_s3dit
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.host.weight_files import TRANSFORMER, fp8, loras
from tests.inside.sampling import SEED, from_file, noise_of, prompts, sampled

STATE = random_s3dit(TRANSFORMER, SEED).state_dict()
CAPTIONS = prompts(TRANSFORMER.cap_feat_dim, 40, 40)
NAN = float("nan")
KEY = "layers.1.attention.out.weight"
encodings = extension_module("nodes.host.writing.encodings")
NANO = extension_module("nodes.host.built_in").NANO
accelerated = extension_module("nodes.host.running.accelerate").accelerated


def with_nan(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    value = state[key].clone().float()
    value.view(-1)[-1] = NAN
    return {**state, key: value.to(state[key].dtype)}


def complaint(patcher, positive=CAPTIONS[0], noise: Tensor | None = None) -> str:
    with pytest.raises(ValueError, match="^sampling gave values that are not finite") as error:
        sampled(patcher, positive, positive, steps=1, noise=noise)
    return str(error.value)


def test_the_weight_is_named(tmp_path: Path) -> None:
    """By any sampler of the host, in float32 and in fp8."""
    assert f"weights hold such values in {KEY}" in complaint(
        from_file(tmp_path / "a.safetensors", with_nan(STATE, KEY))
    )
    scaled = with_nan(fp8(STATE, "weight_scale", {}), KEY)
    save_file({k: v.contiguous() for k, v in scaled.items()}, tmp_path / "b.safetensors")
    patcher = extension_module("nodes.host.loading.model").load_patcher(tmp_path / "b.safetensors")
    assert f"weights hold such values in {KEY}" in complaint(patcher)


def test_a_lora_is_named(tmp_path: Path) -> None:
    lora = {k: v.clone() for k, v in loras()[1].items()}
    next(iter(lora.values())).fill_(NAN)
    patcher = comfy.sd.load_lora_for_models(
        from_file(tmp_path / "a.safetensors", STATE), None, lora, 1.0, 0.0
    )[0]
    assert "A LoRA holds such values for diffusion_model.layers." in complaint(patcher)


def test_prompt_and_latent_are_told_from_weights(tmp_path: Path) -> None:
    patcher = from_file(tmp_path / "a.safetensors", STATE)
    caption, values = CAPTIONS[0][0]
    assert "encoded prompt holds such values" in complaint(patcher, [[caption * NAN, values]])
    assert "started from holds such values" in complaint(patcher, noise=noise_of() * NAN)


def test_what_overflows_is_said_to_overflow(tmp_path: Path) -> None:
    """All inputs are finite here."""
    huge = {k: v * 1e30 if k == "final_layer.linear.weight" else v for k, v in STATE.items()}
    huge |= {k: v * 1e30 for k, v in STATE.items() if k == "final_layer.linear.bias"}
    huge["x_embedder.weight"] = STATE["x_embedder.weight"] * 1e38
    message = complaint(from_file(tmp_path / "a.safetensors", huge))
    assert "are finite: numbers overflowed in float32" in message and "--force-fp16" in message
    assert "The first such value comes out of x_embedder" in message


def test_the_first_layer_is_named(tmp_path: Path) -> None:
    """Between two layers too: here the product in a feed-forward overflows, whose factors do not."""
    factors = [f"layers.0.feed_forward.{name}.weight" for name in ("w1", "w3")]
    patcher = from_file(tmp_path / "a.safetensors", STATE | {key: STATE[key] * 1e25 for key in factors})
    network = patcher.model.diffusion_model
    assert "The first such value goes into layers.0.feed_forward.w2." in complaint(patcher)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_what_no_layer_gave(tmp_path: Path) -> None:
    patcher = from_file(tmp_path / "a.safetensors", STATE)
    patcher.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * NAN)
    assert "second run is finite: the sampler, its guidance" in complaint(patcher)


def plant(network: nn.Module, layer: str) -> None:
    network.get_submodule(layer).weight.data.view(-1)[0] = NAN


def test_the_text_encoders_layer_is_named() -> None:
    clip = extension_module("nodes.host.loading.clip").load_clip(NANO / "text_encoder.safetensors")
    plant(clip.cond_stage_model, layer := "qwen3_4b.transformer.model.layers.1.mlp.down_proj")
    with pytest.raises(ValueError, match=f"text encoder gave .*first such value comes out of {layer}"):
        encodings.encode(clip, clip.tokenize("a red apple"))


def test_the_vaes_layer_is_named() -> None:
    """What it decodes to; a latent that held such values before is told from it."""
    vae = extension_module("nodes.host.loading.vae").load_vae(NANO / "autoencoder.safetensors")
    latent = noise_of()
    assert torch.isfinite(vae.decode(latent)).all()
    with pytest.raises(ValueError, match="latent to decode holds values that are not finite"):
        vae.decode(latent * NAN)
    plant(vae.first_stage_model.decoder, layer := "mid.block_1.conv1")
    with pytest.raises(ValueError, match=f"VAE gave .*first such value comes out of {layer} .*--fp32-vae"):
        vae.decode(latent)


def test_a_finite_run_is_looked_at_once_and_passes(tmp_path: Path, monkeypatch) -> None:
    """After the last step, not at each: looking makes a card wait."""
    patcher, looked = from_file(tmp_path / "a.safetensors", STATE), []
    finite = extension_module("nodes.host.running.finite")
    monkeypatch.setattr(finite, "require_finite", lambda samples, *_: looked.append(samples.shape))
    made = sampled(patcher, *CAPTIONS, steps=4)
    assert looked == [made.shape]


def test_under_accelerate_too() -> None:
    """A MODEL of the host's own says nothing by itself."""
    state = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
    patcher, _ = accelerated(small_native.patcher(with_nan(state, KEY)))
    assert f"weights hold such values in {KEY}" in complaint(patcher, prompts(matrix.CAPTION, 21)[0])


@pytest.mark.parametrize("readable", [True, False])
def test_a_checkpoint_that_the_host_streams(tmp_path: Path, monkeypatch, readable: bool) -> None:
    """It remembers its loader with the number of the MODEL among what that gives; not all are read here."""
    state = with_nan(random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict(), KEY)
    path = tmp_path / "all.safetensors"
    if readable:
        save_file({f"model.diffusion_model.{key}": value for key, value in state.items()}, path)
    else:
        path.write_bytes(b"of a kind that only the host reads")
    patcher, _ = accelerated(small_native.patcher(state))
    patcher.cached_patcher_init = (None, (str(path), False), 0)
    monkeypatch.setattr(type(patcher), "is_dynamic", lambda _: True, raising=False)
    guider, noise = SimpleNamespace(original_conds={}, model_patcher=patcher), noise_of()
    with pytest.raises(ValueError, match=f"weights hold such values in {KEY}"):
        extension_module("nodes.host.running.finite").require_finite(noise * NAN, guider, noise, noise, list)
