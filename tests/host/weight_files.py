"""Small weight files for the server's model folders: good ones of random numbers, bad ones of each kind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.formats import by_kitchen, marker, write_gguf
from tests.core.random_models import random_s3dit, randomise
from zimage_core import Qwen3Config, Qwen3TextEncoder, S3DiT, S3DiTConfig
from zimage_core.conditions.control import ControlNet
from zimage_core.config import ControlConfig, NanoConfig
from zimage_core.weights import read_transformer
from zimage_core.weights.keys import transformer_to_diffusers

# As wide as nano's text encoder, so that the two fit; otherwise a model of its own.
TRANSFORMER = S3DiTConfig(
    dim=256,
    n_layers=2,
    n_refiner_layers=1,
    n_heads=2,
    ffn_dim=512,
    t_hidden=128,
    cap_feat_dim=NanoConfig().text_encoder.hidden_size,
)
WIDE_TEXT_ENCODER = Qwen3Config(
    vocab_size=151936 // 64,
    hidden_size=2304,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
)
LORA_RANK = 4
NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
# ComfyUI's own loaders know Z-Image by this width and give it two refiners. Captions as wide as nano's.
WIDE_TRANSFORMER = S3DiTConfig(n_layers=1, cap_feat_dim=NanoConfig().text_encoder.hidden_size)


def transformer() -> dict[str, Tensor]:
    return random_s3dit(TRANSFORMER, seed=1).state_dict()


def loras() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same change of every attention twice: by separate q, k, v keys, and by fused qkv keys."""
    generator = torch.Generator().manual_seed(2)
    dim, rank = TRANSFORMER.dim, LORA_RANK
    split, fused = {}, {}
    for layer in range(TRANSFORMER.n_layers):
        path = f"diffusion_model.layers.{layer}.attention"
        downs = [torch.randn(rank, dim, generator=generator) / dim**0.5 for _ in range(3)]
        ups = [torch.randn(dim, rank, generator=generator) / rank**0.5 for _ in range(3)]
        for name, down, up in zip(("to_q", "to_k", "to_v"), downs, ups, strict=True):
            split[f"{path}.{name}.lora_A.weight"], split[f"{path}.{name}.lora_B.weight"] = down, up
        fused[f"{path}.qkv.lora_A.weight"] = torch.cat(downs)
        fused[f"{path}.qkv.lora_B.weight"] = torch.block_diag(*ups)
    return split, fused


def fp8(state: dict[str, Tensor], scale: str, mark: dict[str, Tensor]) -> dict[str, Tensor]:
    """The blocks in fp8, with a scale `<layer>.<scale>` and `mark` beside each linear; the rest in bf16."""
    out = {}
    for key, weight in state.items():
        layer = key.removesuffix(".weight")
        if weight.ndim == 2 and (".attention." in key or ".feed_forward." in key):
            factor = weight.abs().max() / 448
            out |= {key: (weight / factor).to(torch.float8_e4m3fn), f"{layer}.{scale}": factor}
            out |= {f"{layer}.{name}": value.clone() for name, value in mark.items()}
        else:
            out[key] = weight.bfloat16()
    return out


def nano_control(base: S3DiTConfig, channels: int, routing: str, strength: float) -> dict[str, Tensor]:
    """A control for the nano model, of random weights; its hints are as large as `strength`."""
    blocks = dataclasses.replace(base, n_layers=2, ffn_dim=base.dim)
    state = randomise(ControlNet(ControlConfig(blocks, channels, routing)), seed=5).state_dict()
    return {k: v * (strength if ".after_proj." in k else 1.0) for k, v in state.items()}


def write_controls(models: Path) -> None:
    """In both of the host's folders for them; one whose last projections are still zero changes nothing."""
    base = read_transformer(NANO / "transformer.safetensors", values=False).config
    for folder in ("model_patches", "controlnet"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    save_file(nano_control(base, 16, "tokens", 0.3), models / "controlnet" / "nano_1.0.safetensors")
    inpainting = nano_control(base, 33, "refiner", 0.3)
    save_file(inpainting, models / "model_patches" / "nano_2.1.safetensors")
    silent = {k: v * (not k.startswith("control_noise") or "after" not in k) for k, v in inpainting.items()}
    save_file(silent, models / "model_patches" / "nano_2.0.safetensors")
    save_file(nano_control(base, 16, "tokens", 0.0), models / "model_patches" / "nano_untrained.safetensors")
    lacking = {k: v for k, v in inpainting.items() if "control_layers.1.attention" not in k}
    save_file(lacking, models / "model_patches" / "lacking.safetensors")
    save_file(transformer(), models / "model_patches" / "transformer.safetensors")


def unet_of_another_family() -> dict[str, Tensor]:
    prefix = "model.diffusion_model"
    return {
        f"{prefix}.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        f"{prefix}.label_emb.0.0.weight": torch.zeros(1280, 2816),
        f"{prefix}.out.2.weight": torch.zeros(4, 320, 3, 3),
    }


def wide_transformer() -> dict[str, Tensor]:
    """0.9 B values in bf16, quickly: every tensor repeats the same random numbers, scaled by its fan-in."""
    numbers = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(4))

    def filled(name: str, shape: torch.Size) -> Tensor:
        base = numbers * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        base = (base + (1.0 if len(shape) == 1 and not name.endswith("bias") else 0.0)).bfloat16()
        return base.repeat(-(-shape.numel() // len(base)))[: shape.numel()].view(shape).clone()

    network = S3DiT(WIDE_TRANSFORMER, device="meta")
    return {name: filled(name, p.shape) for name, p in network.named_parameters()}


def write_places(models: Path) -> None:
    """The same transformer wherever people keep one, and beside it files that hold no Z-Image.

    In a folder of their own, in one file with the other parts, as a hub lays models out, and in shards.
    """
    good = {k: v.bfloat16() for k, v in transformer().items()}
    theirs = {k: v.contiguous() for k, v in transformer_to_diffusers(good).items()}
    encoder, autoencoder = (
        load_file(NANO / f"{part}.safetensors") for part in ("text_encoder", "autoencoder")
    )
    whole = {f"model.diffusion_model.{k}": v for k, v in good.items()}
    whole |= {f"text_encoders.qwen3_4b.transformer.{k}": v for k, v in encoder.items()}
    whole |= {f"vae.{k}": v for k, v in autoencoder.items()}
    lumina = {k: v for k, v in whole.items() if "pad_token" not in k}
    hub = models / "diffusers" / "models--them--Z-Image-Hub"
    files = {
        models / "diffusion_models" / "sub" / "deep.safetensors": good,
        models / "checkpoints" / "all_in_one.safetensors": whole,
        models / "checkpoints" / "lumina_2.safetensors": lumina,
        models / "checkpoints" / "sd.safetensors": unet_of_another_family(),
        models / "diffusers" / "Plain" / "transformer" / "model.safetensors": theirs,
        models / "diffusers" / "them" / "Deep" / "transformer" / "model.safetensors": theirs,
        hub / "snapshots" / "0123abcd" / "transformer" / "model.safetensors": theirs,
    }
    shards = models / "diffusion_models" / "Sharded"
    names = {k: f"model-0000{1 + (k > 'l')}-of-00002.safetensors" for k in theirs}
    for file in set(names.values()):
        files[shards / file] = {k: v for k, v in theirs.items() if names[k] == file}
    ggufs = models / "diffusion_models" / "GGUF"
    ggufs.mkdir(parents=True, exist_ok=True)
    write_gguf(ggufs / "z-image-Q4_K.gguf", good, GGMLQuantizationType.Q4_K, "lumina2", seed=1)
    for path, tensors in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    (models / "checkpoints" / "page.safetensors").write_text("<html></html>")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def write_all(models: Path) -> None:
    folder = models / "diffusion_models"
    for name in ("diffusion_models", "text_encoders", "vae", "loras"):
        (models / name).mkdir(parents=True, exist_ok=True)
    good = transformer()
    save_file(good, folder / "good.safetensors")
    save_file({k: v.bfloat16() for k, v in good.items()}, folder / "good_bf16.safetensors")

    int8, marks, _ = by_kitchen(good, "int8_tensorwise, rotated")
    int8 |= {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    save_file(int8, folder / "good_int8_convrot.safetensors")
    scaled = fp8(good, "scale_weight", {}) | {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    save_file(scaled, folder / "good_scaled_fp8.safetensors")
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    save_file(fp8(good, "weight_scale", {"comfy_quant": mark}), folder / "good_comfy_quant.safetensors")

    (folder / "text.safetensors").write_text("<html>404: this is a web page, not a model</html>\n" * 40)
    torch.save(good, folder / "pickle.safetensors")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    missing = {k: v for k, v in good.items() if not k.startswith("layers.1.feed_forward")}
    save_file(missing, folder / "missing_keys.safetensors")
    misshapen = {**good, "layers.0.feed_forward.w2.weight": torch.zeros(TRANSFORMER.dim, 7)}
    save_file(misshapen, folder / "wrong_shape.safetensors")
    save_file(unet_of_another_family(), folder / "other_family.safetensors")
    broken = {k: v.clone() for k, v in good.items()}
    broken["layers.0.attention.qkv.weight"][0, 0] = float("nan")
    save_file(broken, folder / "nan.safetensors")

    split, fused = loras()
    save_file(split, models / "loras" / "split.safetensors")
    save_file(fused, models / "loras" / "fused.safetensors")
    save_file(split, folder / "lora.safetensors")

    save_file(
        randomise(Qwen3TextEncoder(WIDE_TEXT_ENCODER, language_model=True), seed=3).state_dict(),
        models / "text_encoders" / "wide_2304.safetensors",
    )
    shutil.copy(NANO / "autoencoder.safetensors", models / "vae" / "nano_copy.safetensors")
    (models / "vae" / "text.safetensors").write_text("not a model\n")
    write_controls(models)
    write_places(models)
