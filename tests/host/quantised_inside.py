"""Runs inside a ComfyUI's Python: quantised files as MODEL and CLIP, and MODELs saved and loaded again.

Writes one JSON line to standard output: relative distances of what is computed, and how weights are kept.

python tests/host/launch.py tests/host/quantised_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.core.random_models import random_s3dit, relative  # noqa: E402
from tests.core.test_quantised_files import marked, scaled  # noqa: E402
from tests.core.test_weights import block_linears  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from tests.host.weight_files import TRANSFORMER, loras  # noqa: E402

enter(HOST)
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.text_encoders.hunyuan_video  # noqa: E402

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
load_patcher = extension_module("nodes.host.loading.model").load_patcher
clips = extension_module("nodes.host.loading.clip")
weights = extension_module("zimage_core.weights")
NANO = extension_module("nodes.host.built_in").NANO
STATE = random_s3dit(TRANSFORMER, seed=1).state_dict()
LAYERS = block_linears(STATE)
CAPTION = torch.randn(1, 40, TRANSFORMER.cap_feat_dim, generator=torch.Generator().manual_seed(2))
LORA = loras()[1]


def velocity(patcher) -> Tensor:
    """One step from noise, which is the velocity by a known factor."""
    latent = torch.zeros(1, 16, 8, 12)
    noise = comfy.sample.prepare_noise(latent, 3)
    positive = [[CAPTION, {}]]
    inputs = (1, 1.0, "euler", "simple", positive, positive, latent)
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=3)


def file(tensors: dict[str, Tensor], metadata: dict | None = None, name: str = "file") -> Path:
    path = SCRATCH / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
    return path


def kept(patcher) -> float:
    """The share of the blocks' matrices that stay at one byte a value."""
    network = patcher.model.diffusion_model
    weights = [network.get_submodule(layer).weight for layer in LAYERS]
    stored = [getattr(weight, "_qdata", weight) for weight in weights]
    return sum(tensor.element_size() == 1 for tensor in stored) / len(stored)


def with_lora(patcher):
    return comfy.sd.load_lora_for_models(patcher, None, LORA, 1.0, 0.0)[0]


def saved(patcher, name: str) -> Path:
    path = SCRATCH / f"{name}.safetensors"
    comfy.sd.save_checkpoint(str(path), patcher, metadata={})
    return path


def layouts() -> dict[str, tuple[dict[str, Tensor], dict, dict[str, Tensor]]]:
    """{name: (tensors, metadata, the weights that they stand for)}"""
    made = {}
    for dtype in (E4M3, E5M2, torch.float8_e4m3fnuz):
        name = str(dtype).removeprefix("torch.float8_")
        for marker in ("none", "scaled_fp8", "comfy_quant", "metadata"):
            out, truth = scaled(STATE, "weight_scale", "[]", dtype, 5)
            made[f"{name}, {marker}"] = (*marked(out, LAYERS, marker, f"float8_{name}"), truth)
        for shape in ("[rows, 1]", "blocks of 2 x 2"):
            out, truth = scaled(STATE, "scale_weight", shape, dtype, 6)
            made[f"{name}, {shape}"] = (out, {}, truth)
        plain = {k: v.to(dtype) if v.ndim == 2 else v.bfloat16() for k, v in STATE.items()}
        made[f"{name} without scales"] = (plain, {}, plain)
    out, truth = scaled(STATE, "weight_scale", "[]", E4M3, 5)
    inputs = {f"{layer}.input_scale": torch.tensor(0.5) for layer in LAYERS}
    made["input scales"] = (*marked(out | inputs, LAYERS, "comfy_quant", "float8_e4m3fn"), truth)
    bf16 = {k: v.bfloat16() for k, v in STATE.items()}
    made["bf16"] = (bf16, {}, bf16)
    return made


def one(name: str, tensors: dict[str, Tensor], metadata: dict, truth: dict[str, Tensor]) -> dict:
    reference = velocity(load_patcher(file({k: v.float() for k, v in truth.items()}, name="truth"), "fp32"))
    path = file(tensors, metadata)
    loaded = load_patcher(path)
    found = {"kept": kept(loaded), "runs": relative(velocity(loaded), reference)}
    for weight_dtype in ("bf16", "fp32"):
        found[weight_dtype] = relative(velocity(load_patcher(path, weight_dtype)), reference)
    again = load_patcher(saved(loaded, "again"))
    narrow = load_patcher(path, "fp8_e4m3fn")
    found["fp8_e4m3fn"] = relative(velocity(narrow), reference)
    found["kept wide"] = [
        key for key, value in narrow.model.diffusion_model.named_parameters() if value.itemsize > 1
    ]
    found["saved"] = relative(velocity(again), velocity(loaded))
    found["kept when saved"] = kept(again)
    changed = with_lora(load_patcher(path))
    before = velocity(changed)
    found["lora"] = relative(before, reference)
    found["saved with lora"] = relative(velocity(load_patcher(saved(changed, "changed"))), before)
    return found


def whole_checkpoint() -> dict:
    """MODEL, CLIP and VAE of the built-in model in one file, as CheckpointSave writes it, and read again."""
    model = load_patcher(NANO / "transformer.safetensors")
    vae = extension_module("nodes.host.loading.vae").load_vae(NANO / "autoencoder.safetensors")
    path = SCRATCH / "whole.safetensors"
    comfy.sd.save_checkpoint(str(path), model, clips.load_clip(NANO / "text_encoder.safetensors"), vae)
    found = {}
    for kind, read in weights.READERS.items():
        if kind not in ("vision", "control"):
            then = read(NANO / f"{kind}.safetensors").plain(torch.float32)
            now = read(path).plain(torch.float32)
            found[kind] = max(relative(now[key], then[key]) for key in then if then[key].any())
    return found


def text_encoders() -> dict:
    """The built-in encoder, quantised, through what the host detects in the state dict that it is given."""
    plain = weights.read_text_encoder(NANO / "text_encoder.safetensors")
    state, sizes = plain.plain(torch.float32), plain.config
    layers = [key.removesuffix(".weight") for key in state if "_proj" in key]

    def encoded(checkpoint) -> Tensor:
        given = clips.encoder_state(checkpoint)
        made = comfy.text_encoders.z_image.te(**comfy.text_encoders.hunyuan_video.llama_detect(given))
        given.pop("_quantization_metadata", None)
        left_out = ("head_dim", "rms_norm_eps", "rope_theta")
        config = {field: value for field, value in dataclasses.asdict(sizes).items() if field not in left_out}
        options = {"qwen3_4b_model_config": config}
        encoder = made(device="cpu", dtype=torch.float32, model_options=options)
        missing, unknown = encoder.load_sd(given)
        assert not unknown and not [key for key in missing if "logit_scale" not in key], (missing, unknown)
        tokenizer = clips.NanoTokenizer(tokenizer_data={"nano_width": sizes.hidden_size})
        with torch.no_grad():
            return encoder.encode_token_weights(tokenizer.tokenize_with_weights("a red apple on a table"))[0]

    found = {}
    for dtype, shape in ((E4M3, "[]"), (E5M2, "[]"), (E4M3, "[rows, 1]")):
        tensors, truth = dict(state), dict(state)
        for layer in layers:
            weight = state[f"{layer}.weight"]
            largest = weight.abs().amax(1, keepdim=True) if "rows" in shape else weight.abs().max()
            scale = largest / torch.finfo(dtype).max
            stored = (weight / scale).to(dtype)
            tensors |= {f"{layer}.weight": stored, f"{layer}.weight_scale": scale}
            truth[f"{layer}.weight"] = stored.float() * scale
        reference = encoded(weights.read_text_encoder(truth))
        found[f"{dtype}, {shape}"] = relative(encoded(weights.read_text_encoder(tensors)), reference)
    return found


sys.stdout.write(
    json.dumps(
        {
            "layouts": {name: one(name, *layout) for name, layout in layouts().items()},
            "whole": whole_checkpoint(),
            "text encoders": text_encoders(),
        }
    )
)
