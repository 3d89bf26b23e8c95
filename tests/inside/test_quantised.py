"""Quantised files as MODEL and CLIP of the host: every type and layout runs, and can be saved and loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import comfy.quant_ops
import comfy.sd
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.z_image
import gguf
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.formats import KITCHEN, WIDE, block_matrices, by_kitchen, marker, write_gguf
from tests.core.random_models import random_s3dit, relative
from tests.core.test_quantised_files import marked, scaled
from tests.core.test_weights import block_linears
from tests.host.inside import extension_module
from tests.host.weight_files import TRANSFORMER, loras
from tests.inside.sampling import SEED, prompts, sampled

SAME = 1e-6  # relative L2 of what is computed
BF16 = 2.2e-3  # weights rounded once
NARROW = 0.06  # all matrices rounded to fp8, without scales
PROMPT = "a red apple on a table"
EFFECT = 0.1  # a LoRA that changed less would prove nothing
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
STATE = random_s3dit(TRANSFORMER, SEED).state_dict()
LAYERS = block_linears(STATE)
WIDE_STATE = random_s3dit(WIDE, SEED).state_dict()
WIDE_CAPTIONS = prompts(WIDE.cap_feat_dim, 40, 40)
CAPTIONS = prompts(TRANSFORMER.cap_feat_dim, 40, 40)
LORA = loras()[1]

PackedLinear = extension_module("nodes.host.running.packed").PackedLinear
load_patcher = extension_module("nodes.host.loading.model").load_patcher
lora_notes = extension_module("nodes.host.running.lora_fit").lora_notes
clips = extension_module("nodes.host.loading.clip")
weights = extension_module("zimage_core.weights")
Checkpoint, Qwen3Config = weights.Checkpoint, clips.Qwen3Config
keys = extension_module("zimage_core.weights.keys")
NANO = extension_module("nodes.host.built_in").NANO


class Layout(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    truth: dict[str, Tensor]  # the weights that they stand for
    in_fp8: bool | None  # whether it stays as it is stored; None: that is up to the device
    packed: bool = False  # not in the host's own tensors, but in layers of ours


def layouts() -> dict[str, Layout]:
    made = {}
    for dtype in (E4M3, E5M2, torch.float8_e4m3fnuz):
        name = str(dtype).removeprefix("torch.float8_")
        for marking in ("none", "scaled_fp8", "comfy_quant", "metadata"):
            out, truth = scaled(STATE, "weight_scale", "[]", dtype, SEED)
            tensors, metadata = marked(out, LAYERS, marking, f"float8_{name}")
            made[f"{name}, {marking}"] = Layout(tensors, metadata, truth, True, dtype not in (E4M3, E5M2))
        for shape in ("[rows, 1]", "blocks of 2 x 2"):
            out, truth = scaled(STATE, "scale_weight", shape, dtype, SEED)
            made[f"{name}, {shape}"] = Layout(out, {}, truth, True, True)
        plain = {k: v.to(dtype) if v.ndim == 2 else v.bfloat16() for k, v in STATE.items()}
        made[f"{name}, no scales"] = Layout(plain, {}, plain, None)
    out, truth = scaled(STATE, "weight_scale", "[]", E4M3, SEED)
    inputs = {f"{layer}.input_scale": torch.tensor(0.5) for layer in LAYERS}
    tensors, _ = marked(out | inputs, LAYERS, "comfy_quant", "float8_e4m3fn")
    made["input scales"] = Layout(tensors, {}, truth, True)
    bf16 = {k: v.bfloat16() for k, v in STATE.items()}
    made["bf16"] = Layout(bf16, {}, bf16, False)
    return made


LAYOUTS = layouts()


def file(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
    return path


def picture(patcher: ModelPatcher) -> Tensor:
    """One step from noise: the velocity by a known factor."""
    return sampled(patcher, *CAPTIONS, steps=1)


def wide_picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, *WIDE_CAPTIONS, steps=1)


def with_lora(patcher: ModelPatcher) -> ModelPatcher:
    """A change of every matrix in the blocks, half as large as the matrix."""
    generator, lora = torch.Generator().manual_seed(SEED), {}
    for layer in block_matrices(WIDE_STATE):
        rows, columns = WIDE_STATE[f"{layer}.weight"].shape
        down, up = (torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator))
        size = WIDE_STATE[f"{layer}.weight"].norm() / (up @ down).norm() / 2
        lora |= {f"diffusion_model.{layer}.lora_down.weight": down * size}
        lora |= {f"diffusion_model.{layer}.lora_up.weight": up}
    return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]


def share_in_fp8(patcher: ModelPatcher) -> float:
    """Of the blocks' matrices."""
    network = patcher.model.diffusion_model
    kept = [network.get_submodule(layer).weight for layer in LAYERS]
    return sum(getattr(weight, "_qdata", weight).itemsize == 1 for weight in kept) / len(kept)


def saved(patcher: ModelPatcher, path: Path) -> Path:
    """As ModelSave and CheckpointSave do it."""
    comfy.sd.save_checkpoint(str(path), patcher, metadata={})
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_type_and_layout(name: str, tmp_path: Path) -> None:
    """e4m3, e5m2 and a fnuz type, with every marker and none: it is what its weights are.

    So it is saved and loaded again, and with a LoRA merged into it.
    """
    tensors, metadata, truth, in_fp8, packed = LAYOUTS[name]
    float32 = file(tmp_path / "truth.safetensors", {k: v.float() for k, v in truth.items()})
    right = picture(load_patcher(float32, "fp32"))
    path = file(tmp_path / "file.safetensors", tensors, metadata)
    loaded = load_patcher(path)
    assert relative(picture(loaded), right) <= (BF16 if in_fp8 is False else SAME)
    again = load_patcher(saved(loaded, tmp_path / "again.safetensors"))
    assert relative(picture(again), picture(loaded)) <= SAME
    if in_fp8 is not None:
        assert share_in_fp8(loaded) == share_in_fp8(again) == float(in_fp8)
    changed = comfy.sd.load_lora_for_models(load_patcher(path), None, LORA, 1.0, 0.0)[0]
    before = picture(changed)
    assert relative(before, right) > EFFECT
    again = load_patcher(saved(changed, tmp_path / "lora.safetensors"))
    assert relative(picture(again), before) <= (BF16 if packed else SAME)  # packed ones become bfloat16


# How far a picture is from that of its weights: where the host computes in the format itself, it rounds the
# layers' inputs to it as well.
INPUTS = {"mxfp8": SAME, "nvfp4": SAME, "int8_tensorwise": 8e-3, "convrot_w4a4": 0.1, "asym_w4a8_int8": 6e-3}
# The same with a LoRA, which is merged and stored in the format again.
MERGED = {
    "mxfp8": 0.04,
    "nvfp4": 0.15,
    "int8_tensorwise": 0.016,
    "convrot_w4a4": 0.19,
    "asym_w4a8_int8": 0.12,
}
OWN_FORMATS = [name for name in KITCHEN if not name.startswith("float8")]


@pytest.mark.parametrize("name", OWN_FORMATS)
def test_comfyui_formats(name: str, tmp_path: Path) -> None:
    """In the host's own tensors where it has them, else in packed layers; saved and loaded; with a LoRA."""
    tensors, marks, truth = by_kitchen(WIDE_STATE, name)
    tensors |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    float32 = file(tmp_path / "truth.safetensors", {k: v.float() for k, v in truth.items()})
    right = wide_picture(load_patcher(float32, "fp32"))
    path = file(tmp_path / "file.safetensors", tensors)
    loaded = load_patcher(path)
    format_name = name.split()[0].strip(",")
    in_host = format_name in comfy.quant_ops.QUANT_ALGOS and "asymmetric" not in name  # which no host reads
    layers = [loaded.model.diffusion_model.get_submodule(layer) for layer in marks]
    assert all(isinstance(layer.weight, comfy.quant_ops.QuantizedTensor) is in_host for layer in layers)
    assert all(isinstance(layer, PackedLinear) is not in_host for layer in layers)
    assert relative(wide_picture(loaded), right) <= (INPUTS[format_name] if in_host else SAME)
    again = load_patcher(saved(loaded, tmp_path / "again.safetensors"))
    assert relative(wide_picture(again), wide_picture(loaded)) <= SAME
    changed, meant = (wide_picture(with_lora(load_patcher(*given))) for given in ((path,), (float32, "fp32")))
    assert relative(meant, right) > EFFECT
    assert lora_notes(with_lora(load_patcher(path))) == []  # its matrices are packed, the LoRA's are not
    assert relative(changed, meant) <= (MERGED[format_name] if in_host else SAME)


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_scales_that_are_padded(name: str, tmp_path: Path) -> None:
    """Those of a layer of 64 rows, which are stored in tiles of 128."""
    layer = "final_layer.linear"
    tensors, marks, truth = by_kitchen(WIDE_STATE, name, [layer])
    assert len(tensors[f"{layer}.weight"]) == 64 and tensors[f"{layer}.weight_scale"].numel() % 512 == 0
    path = file(tmp_path / "file.safetensors", tensors | {f"{layer}.comfy_quant": marker(marks[layer])})
    float32 = file(tmp_path / "truth.safetensors", {k: v.float() for k, v in truth.items()})
    assert relative(wide_picture(load_patcher(path)), wide_picture(load_patcher(float32, "fp32"))) <= SAME


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "IQ4_XS"])
def test_gguf(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    truth = write_gguf(path, WIDE_STATE, gguf.GGMLQuantizationType[kind], "lumina2", SEED)
    float32 = file(tmp_path / "truth.safetensors", {k: v.float() for k, v in truth.items()})
    loaded = load_patcher(path)
    bound = BF16 if kind.startswith("IQ") else SAME  # one that only the package gguf computes is rounded
    assert relative(wide_picture(loaded), wide_picture(load_patcher(float32, "fp32"))) <= bound
    again = load_patcher(saved(loaded, tmp_path / "again.safetensors"))
    assert relative(wide_picture(again), wide_picture(loaded)) <= SAME


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_chosen_type(name: str, tmp_path: Path) -> None:
    """A chosen type takes the place of the file's.

    Norms, biases and pad tokens are never narrowed to fp8; what is fp8 without scales in the file stays what
    it is.
    """
    tensors, metadata, truth, *_ = LAYOUTS[name]
    float32 = file(tmp_path / "truth.safetensors", {k: v.float() for k, v in truth.items()})
    right = picture(load_patcher(float32, "fp32"))
    path = file(tmp_path / "file.safetensors", tensors, metadata)
    assert relative(picture(load_patcher(path, "fp32")), right) <= SAME
    assert relative(picture(load_patcher(path, "bf16")), right) <= BF16
    narrow = load_patcher(path, "fp8_e4m3fn")
    assert relative(picture(narrow), right) <= (SAME if name == "e4m3fn, no scales" else NARROW)
    parameters = narrow.model.diffusion_model.named_parameters()
    wide = {key for key, value in parameters if value.itemsize > 1}
    small = {
        key.removeprefix("model.diffusion_model.")
        for key, value in tensors.items()
        if value.itemsize > 1 and (value.ndim < 2 or key.endswith("pad_token"))
    }
    assert wide >= small & STATE.keys() > {"x_embedder.bias", "layers.0.attention_norm1.weight"}


def test_all_parts_in_one_file(tmp_path: Path) -> None:
    """MODEL, CLIP and VAE of the built-in model, as CheckpointSave writes them, read again."""
    model = load_patcher(NANO / "transformer.safetensors")
    vae = extension_module("nodes.host.loading.vae").load_vae(NANO / "autoencoder.safetensors")
    path = tmp_path / "whole.safetensors"
    comfy.sd.save_checkpoint(str(path), model, clips.load_clip(NANO / "text_encoder.safetensors"), vae)
    for kind, bound in (("transformer", 2.5e-3), ("text_encoder", 0), ("autoencoder", 0)):  # the first is fp8
        then = weights.READERS[kind](NANO / f"{kind}.safetensors").plain(torch.float32)
        now = weights.READERS[kind](path).plain(torch.float32)
        assert max(relative(now[key], then[key]) for key in then if then[key].any()) <= bound, kind


def sizes_of(checkpoint: weights.Checkpoint) -> dict:
    """As the host's models take them."""
    fixed = ("head_dim", "rms_norm_eps", "rope_theta")
    return {k: v for k, v in dataclasses.asdict(checkpoint.config).items() if k not in fixed}


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_text_encoders(dtype: torch.dtype) -> None:
    """The built-in one, quantised, by what the host finds in the state dict that it is given."""
    plain = weights.read_text_encoder(NANO / "text_encoder.safetensors")
    tensors, truth = scaled_encoder(dtype, rows=False)

    def encoded(state: dict[str, Tensor]) -> Tensor:
        given = clips.encoder_state(weights.read_text_encoder(state))
        made = comfy.text_encoders.z_image.te(**comfy.text_encoders.hunyuan_video.llama_detect(given))
        given.pop("_quantization_metadata", None)
        options = {"qwen3_4b_model_config": sizes_of(plain)}
        encoder = made(device="cpu", dtype=torch.float32, model_options=options)
        missing, unknown = encoder.load_sd(given)
        assert not unknown and not [key for key in missing if "logit_scale" not in key]
        tokenizer = clips.NanoTokenizer(tokenizer_data={"nano_width": plain.config.hidden_size})
        return encoder.encode_token_weights(tokenizer.tokenize_with_weights(PROMPT))[0]

    assert relative(encoded(tensors), encoded(truth)) <= SAME


def scaled_encoder(dtype: torch.dtype, rows: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the built-in one with a scale for each matrix or row, the weights that it stands for)."""
    truth = weights.read_text_encoder(NANO / "text_encoder.safetensors").plain(torch.float32)
    tensors = dict(truth)
    for layer in [key.removesuffix(".weight") for key in truth if "_proj" in key]:
        weight = truth[f"{layer}.weight"]
        scale = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()) / torch.finfo(dtype).max
        stored = (weight / scale).to(dtype)
        tensors |= {f"{layer}.weight": stored, f"{layer}.weight_scale": scale}
        truth[f"{layer}.weight"] = stored.float() * scale
    return tensors, truth


def text_encoder(source: dict[str, Tensor] | Path) -> comfy.sd.CLIP:
    """The host's, with packed layers where there are any."""
    checkpoint = weights.read_text_encoder(source)
    data = {"nano_width": checkpoint.config.hidden_size}
    sizes = sizes_of(checkpoint)
    del sizes["vocab_size"]  # the file's counts
    return clips.packed_clip(checkpoint, clips.NanoTokenizer, data, sizes)


def features(clip: comfy.sd.CLIP) -> Tensor:
    return clip.encode_from_tokens(clip.tokenize(PROMPT))


def packed_in(clip: comfy.sd.CLIP) -> dict[str, PackedLinear]:
    modules = clip.cond_stage_model.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, PackedLinear)}


@pytest.mark.parametrize("rows", [-3, 11])
def test_text_encoder_with_another_number_of_tokens(rows: int) -> None:
    """A file whose embedding was cut or filled up, behind the tokens that a prompt has."""
    tensors = weights.read_text_encoder(NANO / "text_encoder.safetensors").plain(torch.float32)
    expected, table = features(text_encoder(tensors)), tensors["model.embed_tokens.weight"]
    other = torch.cat((table, torch.ones(11, table.shape[1])))[: len(table) + rows]
    clip = text_encoder(tensors | {"model.embed_tokens.weight": other})
    assert clip.cond_stage_model.qwen3_4b.transformer.model.embed_tokens.weight.shape == other.shape
    assert torch.equal(features(clip), expected)


def test_the_whole_qwen3_may_have_other_tokens_than_the_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its real size nothing is loaded here: what is asked for is looked at."""
    for tokens, made in ((151_669, True), (152_064, True), (151_000, False)):
        config = dataclasses.replace(Qwen3Config(), vocab_size=tokens)
        checkpoint = Checkpoint("resized.safetensors", "text_encoder", config, {"x": torch.zeros(1)})
        asked = []
        monkeypatch.setattr(clips, "read_text_encoder", lambda path, found=checkpoint: found)
        monkeypatch.setattr(clips, "mapped", lambda path: path)
        clip = mock.MagicMock()
        monkeypatch.setattr(
            clips, "packed_clip", lambda found, seen=asked, clip=clip: seen.append(found) or clip
        )
        if made:
            clips.load_clip(Path("resized.safetensors"))
            assert asked == [checkpoint]
        else:
            with pytest.raises(weights.WeightsError, match="151000 tokens, and its tokenizer has 151669"):
                clips.load_clip(Path("resized.safetensors"))


def test_text_encoder_with_scales_by_row() -> None:
    tensors, truth = scaled_encoder(E4M3, rows=True)
    clip = text_encoder(tensors)
    assert len(packed_in(clip)) == sum("_proj" in key for key in truth)
    assert relative(features(clip), features(text_encoder(truth))) <= SAME


def test_text_encoder_in_ggml_blocks(tmp_path: Path) -> None:
    """Its matrices stay packed, its embedding does not; with a LoRA resident and streamed; saved."""
    plain = weights.read_text_encoder(NANO / "text_encoder.safetensors").plain(torch.float32)
    theirs = {keys.rename(key, keys.TEXT_ENCODER, reverse=True): value for key, value in plain.items()}
    path = tmp_path / "file.gguf"
    made = write_gguf(path, theirs, gguf.GGMLQuantizationType.Q8_0, "qwen3", SEED)
    truth = {keys.rename(key, keys.TEXT_ENCODER): value.float() for key, value in made.items()}
    clip, right = text_encoder(path), features(text_encoder(truth))
    assert relative(features(clip), right) <= SAME
    layers = {
        name: layer
        for name, layer in clip.cond_stage_model.named_modules()
        if isinstance(layer, PackedLinear)
    }
    assert len(layers) == sum("_proj" in key for key in truth)

    generator, lora = torch.Generator().manual_seed(SEED), {}
    changed = dict(truth)
    for name, layer in layers.items():
        key = f"{name.removeprefix('qwen3_4b.transformer.')}.weight"
        up = torch.randn(layer.out_features, 4, generator=generator)
        down = torch.randn(4, layer.in_features, generator=generator)
        down *= truth[key].norm() / (up @ down).norm() / 4
        lora |= {f"text_encoders.{name}.lora_up.weight": up, f"text_encoders.{name}.lora_down.weight": down}
        changed[key] = (truth[key].double() + 0.5 * up.double() @ down.double()).float()
    meant = features(text_encoder(changed))
    assert relative(meant, right) > EFFECT
    with_it = comfy.sd.load_lora_for_models(None, clip, lora, 0.0, 0.5)[1]
    assert relative(features(with_it), meant) <= SAME
    with_it.patcher.load(torch.device("cpu"), lowvram_model_memory=1)
    tokens = with_it.tokenize(PROMPT)
    assert relative(with_it.cond_stage_model.encode_token_weights(tokens)[0], meant) <= SAME
    with_it.patcher.detach()

    save = tmp_path / "saved.safetensors"
    save_file({key: value.contiguous() for key, value in clip.get_sd().items()}, save)
    assert relative(features(text_encoder(save)), right) <= SAME
