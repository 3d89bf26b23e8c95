"""Files in every dialect give the same model, and files that are something else say what they are."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import TINY, random_inputs, random_s3dit, randomise, relative
from zimage_core import AutoencoderConfig, AutoencoderKL, Qwen3Config, Qwen3TextEncoder, S3DiT, S3DiTConfig
from zimage_core.weights import (
    WeightsError,
    describe,
    load_autoencoder,
    load_text_encoder,
    load_transformer,
    read_transformer,
)
from zimage_core.weights.keys import (
    autoencoder_to_diffusers,
    autoencoder_to_ours,
    fuse_qkv,
    transformer_to_diffusers,
    transformer_to_ours,
)

SMALL_TE = Qwen3Config(
    vocab_size=64, hidden_size=96, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32,
)  # fmt: skip
SMALL_AE = AutoencoderConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1)


@pytest.fixture(scope="module")
def model() -> S3DiT:
    return random_s3dit(TINY, 11)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + k: v.contiguous() for k, v in state.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def flat_pads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.flatten() if k.endswith("pad_token") else v for k, v in state.items()}


DIALECTS = {
    "single file": lambda s: s,
    "checkpoint": lambda s: prefixed(s, "model.diffusion_model."),
    "saved by ComfyUI": lambda s: prefixed(s, "diffusion_model."),
    "diffusers": transformer_to_diffusers,
    "diffusers with prefix": lambda s: prefixed(transformer_to_diffusers(s), "transformer."),
    "flat pad tokens": flat_pads,
    "leftover of Lumina": lambda s: {**s, "norm_final.weight": torch.ones(TINY.dim)},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_loads_the_same_model(dialect: str, model: S3DiT, tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in DIALECTS[dialect](model.state_dict()).items()}
    save_file(state, tmp_path / "file.safetensors")
    for source in (tmp_path / "file.safetensors", state):
        loaded = load_transformer(source)
        assert loaded.config == TINY
        assert same(loaded.state_dict(), model.state_dict())


def test_the_mapping_is_idempotent_and_reversible(model: S3DiT) -> None:
    ours = model.state_dict()
    theirs = transformer_to_diffusers(ours)
    assert same(fuse_qkv(transformer_to_ours(theirs)), ours)
    assert same(fuse_qkv(transformer_to_ours(ours)), ours)
    assert same(transformer_to_diffusers(theirs), theirs)
    autoencoder = randomise(AutoencoderKL(SMALL_AE), 2).state_dict()
    peer = autoencoder_to_diffusers(autoencoder)
    assert same(autoencoder_to_ours(peer), autoencoder) and same(
        autoencoder_to_ours(autoencoder), autoencoder
    )
    assert same(autoencoder_to_diffusers(peer), peer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_files_type_is_kept_or_converted(dtype: torch.dtype, model: S3DiT, tmp_path: Path) -> None:
    save_file({k: v.to(dtype) for k, v in model.state_dict().items()}, tmp_path / "file.safetensors")
    loaded = load_transformer(tmp_path / "file.safetensors")
    assert loaded.dtype == dtype and {p.dtype for p in loaded.parameters()} == {dtype}
    converted = load_transformer(tmp_path / "file.safetensors", dtype=torch.float32)
    assert torch.equal(converted.x_embedder.weight, model.x_embedder.weight.to(dtype).float())


def block_linears(state: dict[str, Tensor]) -> list[str]:
    """Layers that published fp8 files quantise: attention and feed-forward of the blocks."""
    return [
        k[: -len(".weight")]
        for k, v in state.items()
        if v.ndim == 2 and (".attention." in k or ".feed_forward." in k)
    ]


def quantised(state: dict[str, Tensor], scale_name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """fp8 weights with a scale each, and the float weights that they stand for (q * scale)."""
    out, truth = {k: v.bfloat16() for k, v in state.items()}, dict(state)
    for layer in block_linears(state):
        scale = state[f"{layer}.weight"].abs().max() / 448
        q = (state[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)
        out |= {f"{layer}.weight": q, f"{layer}.{scale_name}": scale.clone()}
        truth[f"{layer}.weight"] = q.double() * scale.double()
    return out, truth


def as_scaled_fp8(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    out, truth = quantised(state, "scale_weight")
    out["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    for layer in block_linears(state)[:2]:
        out[f"{layer}.scale_input"] = torch.tensor(1.0)
    return out, {}, truth


def as_comfy_quant(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    out, truth = quantised(state, "weight_scale")
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return out | {f"{layer}.comfy_quant": mark.clone() for layer in block_linears(state)}, {}, truth


def as_metadata(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    out, truth = quantised(state, "weight_scale")
    layers = {f"model.diffusion_model.{layer}": {"format": "float8_e4m3fn"} for layer in block_linears(state)}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return prefixed(out, "model.diffusion_model."), metadata, truth


def as_split_comfy_quant(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    """diffusers' names: q, k and v have scales of their own, which one fused scale cannot hold."""
    out, truth = quantised(transformer_to_diffusers(state), "weight_scale")
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    layers = block_linears(transformer_to_diffusers(state))
    return (
        out | {f"{layer}.comfy_quant": mark.clone() for layer in layers},
        {},
        fuse_qkv(transformer_to_ours(truth)),
    )


@pytest.mark.parametrize("layout", [as_scaled_fp8, as_comfy_quant, as_metadata, as_split_comfy_quant])
def test_fp8_files(layout, model: S3DiT, tmp_path: Path) -> None:
    state, metadata, truth = layout(model.state_dict())
    path = tmp_path / "fp8.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=metadata)
    loaded = load_transformer(path, dtype=torch.float32)
    for key, value in loaded.state_dict().items():
        tolerance = 4e-3 if "qkv" in key or key.rpartition(".")[0] not in block_linears(truth) else 1e-6
        assert relative(value, truth[key]) <= tolerance, key
    part = describe(path)["transformer"]
    split = layout is as_split_comfy_quant
    blocks = 2 * TINY.n_refiner_layers + TINY.n_layers
    assert part["quantised_layers"] == blocks * (4 if split else 5) and part["formats"] == ["float8_e4m3fn"]
    assert part["parameters"] == sum(p.numel() for p in model.parameters())
    x, sigma, caption = random_inputs(TINY, 1)
    assert torch.isfinite(load_transformer(path)(x.bfloat16(), sigma, caption.bfloat16())).all()


def test_fp8_without_scales(model: S3DiT, tmp_path: Path) -> None:
    """Everything cast to fp8, as some published files are: computed in bfloat16 from those values."""
    state = {k: v.to(torch.float8_e4m3fn) for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "fp8.safetensors")
    loaded = load_transformer(tmp_path / "fp8.safetensors")
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(v, state[k].bfloat16()) for k, v in loaded.state_dict().items())


def test_reading_maps_the_file(model: S3DiT, tmp_path: Path) -> None:
    """Nothing is copied: the process has the file mapped, and its tensors point into that mapping."""
    path = tmp_path / "file.safetensors"
    save_file(model.state_dict(), path)
    checkpoint = read_transformer(path)
    maps = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))
    ]
    spans = [[int(end, 16) for end in fields[0].split("-")] for fields in maps]
    for key, tensor in checkpoint.tensors.items():
        assert any(start <= tensor.data_ptr() < end for start, end in spans), f"{key} was copied"


def test_text_encoders(tmp_path: Path) -> None:
    model = randomise(Qwen3TextEncoder(SMALL_TE, language_model=True), 1)
    state = {**model.state_dict(), "lm_head.weight": model.model.embed_tokens.weight.clone()}
    for prefix in ("", "text_encoders.qwen3_4b.transformer."):
        loaded = load_text_encoder(prefixed(state, prefix), language_model=True)
        assert loaded.config == SMALL_TE and same(loaded.state_dict(), model.state_dict())
    bare = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    features = load_text_encoder(bare)
    assert len(features.model.layers) == SMALL_TE.num_hidden_layers - 1


def test_autoencoders() -> None:
    model = randomise(AutoencoderKL(SMALL_AE), 1)
    for state in (
        model.state_dict(),
        prefixed(model.state_dict(), "vae."),
        autoencoder_to_diffusers(model.state_dict()),
    ):
        loaded = load_autoencoder(state)
        assert loaded.config == SMALL_AE and same(loaded.state_dict(), model.state_dict())


def test_one_file_with_all_three_parts(model: S3DiT) -> None:
    state = {
        **prefixed(model.state_dict(), "model.diffusion_model."),
        **prefixed(
            randomise(Qwen3TextEncoder(SMALL_TE), 1).state_dict(), "text_encoders.qwen3_4b.transformer."
        ),
        **prefixed(randomise(AutoencoderKL(SMALL_AE), 1).state_dict(), "vae."),
    }
    parts = describe(state)
    assert parts.keys() == {"transformer", "text_encoder", "autoencoder"}
    assert parts["transformer"]["config"] == TINY and parts["autoencoder"]["config"] == SMALL_AE


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_files_that_are_something_else(model: S3DiT, tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_file(model.state_dict(), good)
    content = good.read_bytes()
    pickle = tmp_path / "model.ckpt"
    torch.save({"a": 1}, pickle)
    bad = {
        "is truncated": write(tmp_path / "cut.safetensors", content[: len(content) // 2]),
        "its header alone needs": write(tmp_path / "head.safetensors", content[:100]),
        "is a text, not a model; it begins with 'Access to this": write(
            tmp_path / "text.safetensors", b"Access to this model is restricted.\nLog in."
        ),
        "is a JSON text": write(tmp_path / "error.safetensors", b'{"error": "Entry not found"}\n'),
        "is a web page.*login": write(
            tmp_path / "page.safetensors", b"\n<!DOCTYPE html>\n<html>" + b" " * 9999
        ),
        "is empty: the download failed": write(tmp_path / "empty.safetensors", b""),
        "holds only zeros": write(tmp_path / "zeros.safetensors", bytes(200_000)),
        "header is damaged": write(tmp_path / "noise.safetensors", bytes(range(128, 256)) * 20),
        "is a torch pickle.*can run code": pickle,
        "is a torch pickle or": write(tmp_path / "old.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
        "a Git LFS pointer": write(tmp_path / "lfs.safetensors", b"version https://git-lfs.example/spec/v1"),
        "7.safetensors is not a safetensors file": write(tmp_path / "7.safetensors", b"\2" + bytes(6)),
        "needs 10 bytes, the file has 8": write(tmp_path / "8.safetensors", b"\2" + bytes(7)),
        "q4.gguf is a damaged GGUF file": write(tmp_path / "q4.gguf", b"GGUF" + bytes(60)),
        "does not exist": tmp_path / "nothing.safetensors",
    }
    for message, path in bad.items():
        with pytest.raises(WeightsError, match=message) as error:
            load_transformer(path)
        assert path.name in str(error.value)


def without(state: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k not in keys}


@pytest.mark.parametrize("quantised", [False, True])
def test_ming_image_is_told_from_z_image(quantised: bool, model: S3DiT, tmp_path: Path) -> None:
    """It is made of the same blocks, and is known whether its file is quantised or not.

    Its Design kind has no pad tokens, its Layer kind a marker or metadata.
    """
    state = transformer_to_diffusers(model.state_dict())
    state = {k: v.contiguous() for k, v in state.items()}
    if quantised:
        mark = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
        state |= {f"{layer}.comfy_quant": mark.clone() for layer in block_linears(state)}
    note = {"config": json.dumps({"transformer": {"image_model": "ming_image"}})}
    files = {
        "marker": ({**state, "__ming_image__": torch.zeros(1)}, {}),
        "marker under a prefix": (prefixed({**state, "__ming_image__": torch.zeros(1)}, "transformer."), {}),
        "metadata": (state, note),
        "Design": (without(state, "cap_pad_token", "x_pad_token"), {}),
    }
    for name, (tensors, metadata) in files.items():
        save_file(tensors, tmp_path / "ming.safetensors", metadata=metadata)
        for values in (True, False):
            with pytest.raises(WeightsError, match="ming.safetensors .*Ming-Image.*own loader") as error:
                read_transformer(tmp_path / "ming.safetensors", values)
            assert "int8" not in str(error.value), name
    if not quantised:  # what other programs note there is no reason to refuse
        for text in ("{}", "not JSON", '{"transformer": {"image_model": "lumina2"}}', "[" * 5000):
            save_file(state, tmp_path / "good.safetensors", metadata={"config": text})
            assert load_transformer(tmp_path / "good.safetensors").config == TINY


def test_a_pixel_space_model_is_told_from_z_image(model: S3DiT) -> None:
    with pytest.raises(WeightsError, match="pixel-space Z-Image"):
        load_transformer({**model.state_dict(), "dec_net.cond_embed.weight": torch.zeros(4, 4)})


SMALL_TENSORS = (
    "x_pad_token",
    "layers.1.ffn_norm2.weight",
    "layers.0.attention.q_norm.weight",
    "x_embedder.bias",
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_small_tensors_are_looked_at_when_a_file_is_read(value: float, model: S3DiT, tmp_path: Path) -> None:
    """In every type, whether the rest is read or not."""
    for key in SMALL_TENSORS:
        state = {k: v.clone() for k, v in model.state_dict().items()}
        state[key].view(-1)[-1] = value
        dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2]
        for dtype in dtypes if value != value or value > 0 else dtypes[:1]:
            save_file({k: v.to(dtype) for k, v in state.items()}, tmp_path / "nan.safetensors")
            for values in (True, False):
                with pytest.raises(WeightsError, match=f"nan.safetensors holds NaN or infinity in {key}"):
                    read_transformer(tmp_path / "nan.safetensors", values)


def test_matrices_are_looked_at_on_request(model: S3DiT, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(model.state_dict(), path)
    assert describe(path, values=True)["transformer"]["not_finite"] == []
    assert "not_finite" not in describe(path)["transformer"]
    broken = {k: v.clone() for k, v in model.state_dict().items()}
    for key in ("layers.0.attention.qkv.weight", "final_layer.linear.weight"):
        broken[key][-1, -1] = float("nan")
    save_file(broken, path)
    found = describe(path, values=True)["transformer"]["not_finite"]
    assert sorted(found) == ["final_layer.linear.weight", "layers.0.attention.qkv.weight"]


def test_a_file_with_holes(model: S3DiT) -> None:
    """Space that was reserved and never filled."""
    with pytest.raises(WeightsError, match="nothing but zeros in layers.1.attention_norm1.weight"):
        load_transformer({**model.state_dict(), "layers.1.attention_norm1.weight": torch.zeros(TINY.dim)})


def test_tensors_that_nothing_here_uses(model: S3DiT) -> None:
    """A bias that Z-Image has not, or a LoRA that was never merged, would be left out in silence."""
    for key in (
        "layers.0.attention.out.bias",
        "layers.1.attention.qkv.lora_A.weight",
        "cap_embedder.2.weight",
    ):
        with pytest.raises(WeightsError, match=f"no Z-Image transformer has: {key}"):
            load_transformer({**model.state_dict(), key: torch.zeros(4)})
    twice = {**model.state_dict(), "all_x_embedder.2-1.weight": model.x_embedder.weight}
    with pytest.raises(WeightsError, match="x_embedder.weight twice"):
        load_transformer(twice)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "net."])
def test_tensors_that_are_left_over_are_told(prefix: str, model: S3DiT) -> None:
    """Averages of training, or layers of a relative; not what belongs to the other parts."""
    state = {prefix + key: value for key, value in model.state_dict().items()}
    plain = read_transformer(state)
    assert plain.left_over == [] and "left over" not in plain.summary
    state |= prefixed(AutoencoderKL(SMALL_AE).state_dict(), "vae.")
    state["text_encoders.qwen3_4b.logit_scale"] = torch.ones(())
    assert read_transformer(state).left_over == []
    others = ["model_ema.decay", "time_text_embed.mlp.0.weight", "clip_text_pooled_proj.0.weight"]
    found = read_transformer(state | {key: torch.ones(2) for key in others})
    assert found.left_over == others
    assert found.summary.endswith(
        "3 tensors left over (model_ema.decay; time_text_embed.mlp.0.weight; and 1 more)"
    )
    told = describe(state | {key: torch.ones(2) for key in others})
    assert told["transformer"]["left_over"] == others and told["autoencoder"]["left_over"] == []


def test_unknown_keywords_raise(model: S3DiT) -> None:
    for load in (load_transformer, load_text_encoder, load_autoencoder):
        with pytest.raises(TypeError, match="torch_dtype"):
            load(model.state_dict(), torch_dtype=torch.bfloat16)


def test_tensors_that_do_not_fit(model: S3DiT) -> None:
    state = model.state_dict()
    cases = {
        "lacks 1 of .*layers.1.ffn_norm1.weight": without(state, "layers.1.ffn_norm1.weight"),
        "no tensor t_embedder.mlp.2.weight": without(state, "t_embedder.mlp.2.weight"),
        "wrong shape: layers.1.attention.out.weight": {
            **state,
            "layers.1.attention.out.weight": torch.zeros(2, 2),
        },
        "looks like Lumina 2": without(state, "cap_pad_token", "x_pad_token"),
        "it is a LoRA": {"diffusion_model.layers.0.attention.to_q.lora_A.weight": torch.zeros(4, 256)},
        "it is a Z-Image ControlNet": {"control_all_x_embedder.2-1.weight": torch.zeros(2, 2)},
        "it is a text encoder": prefixed(Qwen3TextEncoder(SMALL_TE).state_dict(), ""),
        "'int4_magic'": {
            **state,
            "layers.0.attention.out.comfy_quant": torch.tensor(
                list(b'{"format": "int4_magic"}'), dtype=torch.uint8
            ),
        },
    }
    for message, tensors in cases.items():
        with pytest.raises(WeightsError, match=message):
            load_transformer(tensors)
    with pytest.raises(WeightsError, match="4 latent channels.*ae.safetensors"):
        load_autoencoder(AutoencoderKL(AutoencoderConfig(ch=32, ch_mult=(1, 1), z_channels=4)).state_dict())
    with pytest.raises(WeightsError, match="not a Qwen3.*2560"):
        load_text_encoder(
            {
                "model.embed_tokens.weight": torch.zeros(8, 2304),
                "model.layers.0.mlp.gate_proj.weight": torch.zeros(2, 2),
            }
        )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_summary_tells_fp8_without_scales(dtype: torch.dtype) -> None:
    state = random_s3dit(TINY, 1).state_dict()
    narrow = {
        k: v.to(dtype) if v.ndim == 2 and "pad_token" not in k else v.bfloat16() for k, v in state.items()
    }
    stored = str(dtype).removeprefix("torch.")
    assert stored in read_transformer(narrow).summary
    assert "float8" not in read_transformer({k: v.bfloat16() for k, v in state.items()}).summary


def test_float16_is_for_models_whose_norms_are_even() -> None:
    """The spread of the weights of the last layer's norm but one, 0.42, which ComfyUI goes by."""
    state = {k: v.clone() for k, v in random_s3dit(replace(TINY, n_layers=3), 1).state_dict().items()}
    for layer, spread in itertools.product(range(3), (0.41, 0.43)):
        norms = {f"layers.{i}.ffn_norm1.weight": torch.ones(TINY.dim) for i in range(3)}
        up_and_down = torch.tensor([-1.0, 1.0]).repeat(TINY.dim // 2)
        norms[f"layers.{layer}.ffn_norm1.weight"] = 1 + spread * up_and_down
        assert read_transformer(state | norms).fits_float16 == (layer != 1 or spread < 0.42)
    assert read_transformer(random_s3dit(replace(TINY, n_layers=1), 1).state_dict()).fits_float16


def test_a_summary_has_name_size_and_precision() -> None:
    state = random_s3dit(TINY, 1).state_dict()
    millions = sum(v.numel() for v in state.values()) / 1e6
    summary = read_transformer({k: v.half() for k, v in state.items()}).summary
    assert summary == f"the given dict: {millions:.1f} M parameters, float16"
    stored, _ = quantised(state, "weight_scale")
    scaled = read_transformer(stored).summary
    count = len(block_linears(state))
    kept = sum(v.ndim == 2 and k.endswith(".weight") for k, v in state.items()) - count
    said = f"bfloat16, {count} layers in float8_e4m3fn, {kept} in bfloat16"
    assert scaled == f"{summary.split(',')[0]}, {said}"
    part = describe(stored)["transformer"]
    assert (part["quantised_layers"], part["kept_layers"]) == (count, kept)
    assert part["bytes"] == sum(value.nbytes for value in stored.values())
    large = S3DiT(S3DiTConfig(), device="meta", dtype=torch.bfloat16).state_dict()
    assert read_transformer(large).summary == "the given dict: 6.15 B parameters, bfloat16"


def wrapped(state: dict[str, Tensor], before: str, part: str, wrapper: str) -> dict[str, Tensor]:
    """A wrapper's name in front of all, and one behind each block's number."""
    inside = {re.sub(rf"^({part}\.\d+)\.", rf"\1.{wrapper}", key): value for key, value in state.items()}
    return prefixed(inside, before)


@pytest.mark.parametrize(
    "before, wrapper",
    [
        ("_orig_mod.", ""),
        ("module.", ""),
        ("module._orig_mod.", "_checkpoint_wrapped_module."),
        ("model.diffusion_model._orig_mod.", ""),
        ("_fsdp_wrapped_module.", "_fsdp_wrapped_module."),
        ("net.", ""),
        ("model.model.", "_orig_mod."),
        ("base.denoiser.", ""),
    ],
)
def test_whatever_tools_put_before_and_into_names(before: str, wrapper: str) -> None:
    state = random_s3dit(TINY, 7).state_dict()
    for written in (state, transformer_to_diffusers(state)):
        given = wrapped(written, before, "layers", wrapper)
        assert same(load_transformer(given).state_dict(), state)
    if before.startswith("model.diffusion_model."):  # which is a transformer's alone
        return
    text = randomise(Qwen3TextEncoder(SMALL_TE, language_model=True), 3).state_dict()
    given = wrapped(text, before, r"model\.layers", wrapper)
    assert same(load_text_encoder(given, language_model=True).state_dict(), text)


def test_layers_in_the_metadata_lose_their_wrappers_too(tmp_path: Path) -> None:
    tensors, metadata, _ = as_metadata(random_s3dit(TINY, 7).state_dict())
    plain = tmp_path / "plain.safetensors"
    save_file(tensors, plain, metadata)
    place, inside = "model.diffusion_model.", "model.diffusion_model._orig_mod."
    metadata = {key: value.replace(place, inside) for key, value in metadata.items()}
    path = tmp_path / "compiled.safetensors"
    save_file({key.replace(place, inside): value for key, value in tensors.items()}, path, metadata)
    assert read_transformer(path).formats == read_transformer(plain).formats
    assert same(load_transformer(path).state_dict(), load_transformer(plain).state_dict())


def test_averages_of_training_are_not_taken_for_the_model() -> None:
    state, other = (random_s3dit(TINY, seed).state_dict() for seed in (7, 8))
    given = prefixed(state, "net.") | prefixed(other, "net_ema.")
    assert same(load_transformer(given).state_dict(), state)
    with pytest.raises(WeightsError, match="holds no Z-Image transformer"):
        load_transformer(prefixed(state, "one.") | prefixed(other, "two."))
    with pytest.raises(WeightsError, match="twice, with and without _orig_mod"):
        load_transformer(state | prefixed(other, "_orig_mod."))


@pytest.mark.parametrize("name", ["model.language_model.", "language_model.model."])
def test_a_qwen_that_sees_pictures_is_named(name: str) -> None:
    text = randomise(Qwen3TextEncoder(SMALL_TE, language_model=True), 3).state_dict()
    given = {name + key.removeprefix("model."): value for key, value in text.items()}
    for more in ({}, {"model.visual.blocks.0.norm1.weight": torch.ones(4)}):
        with pytest.raises(WeightsError, match="Qwen3-VL"):
            load_text_encoder({**given, **more})
