"""Graphs that run one setting on the host's own Z-Image, on our MODEL, and on the host's under Accelerate.

All three take the same file, with captions as wide as the nano text encoder's, so that real prompts go in.
By default it is small. ZIMAGE_MATRIX=wide takes every width of the 6 B model, in few layers: the same rows in
some ten times the time, with nothing but the host's own loader under the host's model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.random_models import random_s3dit, relative
from tests.host.pictures import explained
from tests.host.server import ComfyServer, Result
from tests.host.weight_files import WIDE_TRANSFORMER
from zimage_core import S3DiTConfig

WIDE = os.environ.get("ZIMAGE_MATRIX") == "wide"
CAPTION = WIDE_TRANSFORMER.cap_feat_dim
SMALL_CONFIG = S3DiTConfig(  # where the host rounds or bounds a size, as the host has it
    dim=256, n_layers=2, n_heads=2, ffn_dim=768, t_hidden=256, cap_feat_dim=CAPTION
)
CONFIG = WIDE_TRANSFORMER if WIDE else SMALL_CONFIG
FILE = "matrix.safetensors"
CHECKPOINT = "all_in_one.safetensors"
PACK = "small_native.py"
SIDES = ("native", "ours", "accelerated")
SHORT = "a red apple"
LONG = "a picture of a green tree and a small house beside it, on a blue background, seen from the front " * 2

Link = list  # [node id, output]


class Graph:
    """An API graph that grows: equal nodes are one node."""

    def __init__(self, file: str = FILE) -> None:
        self.file = file
        self.nodes: dict[str, dict] = {}
        self._known: dict[str, str] = {}

    def add(self, class_type: str, output: int = 0, /, **inputs) -> Link:
        node = {"class_type": class_type, "inputs": inputs}
        text = json.dumps(node, sort_keys=True)
        if text not in self._known:
            self._known[text] = str(len(self.nodes) + 1)
            self.nodes[self._known[text]] = node
        return [self._known[text], output]

    def model(self, side: str) -> Link:
        if side == "ours":
            return self.add("ZImageModelLoader", transformer=self.file, weight_dtype="auto")
        if WIDE:
            native = self.add("UNETLoader", unet_name=self.file, weight_dtype="default")
        else:
            native = self.add("NativeZImage", name=self.file)
        return native if side == "native" else self.add("ZImageAccelerate", model=native)

    @property
    def clip(self) -> Link:
        return self.add("ZImageTextEncoderLoader", text_encoder="built-in: nano")

    @property
    def vae(self) -> Link:
        return self.add("ZImageVAELoader", vae="built-in: nano")

    def prompt(self, text: str) -> Link:
        return self.add("CLIPTextEncode", clip=self.clip, text=text)

    def empty(self, batch: int = 1, width: int = 64, height: int = 64) -> Link:
        return self.add("EmptySD3LatentImage", width=width, height=height, batch_size=batch)

    def ksampler(self, model: Link, **changed) -> Link:
        inputs = {
            "seed": 5,
            "steps": 2,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": self.prompt(SHORT),
            "negative": self.prompt(SHORT),
            "latent_image": self.empty(),
            "denoise": 1.0,
        }
        return self.add("KSampler", model=model, **{**inputs, **changed})


def run(
    server: ComfyServer, make: Callable[[Graph, Link], Link], sides=SIDES, file: str = FILE
) -> tuple[dict[str, Tensor], Result]:
    """make(graph, MODEL) -> a LATENT; returns each side's samples."""
    graph = Graph(file)
    outputs = {
        side: graph.add(
            "SaveLatent", samples=make(graph, graph.model(side)), filename_prefix=f"latents/{side}"
        )
        for side in sides
    }
    result = server.run(graph.nodes, timeout=900)
    assert result.ok, explained(result)
    return {side: saved(server, result, output) for side, output in outputs.items()}, result


def saved(server: ComfyServer, result: Result, output: Link) -> Tensor:
    """What a SaveLatent node wrote."""
    (file,) = result.outputs[output[0]]["latents"]
    latent = load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]
    assert torch.isfinite(latent).all()
    return latent


def distances(latents: dict[str, Tensor]) -> dict[str, float]:
    """Relative L2 distance of every side from the host's own."""
    return {side: relative(latents[side], latents["native"]) for side in latents if side != "native"}


def write_files(models: Path, control: bool) -> None:
    for name in ("checkpoints", "diffusion_models", "loras", "model_patches"):
        (models / name).mkdir(parents=True, exist_ok=True)
    state = random_s3dit(CONFIG, seed=7).state_dict()
    save_file({k: v.bfloat16() for k, v in state.items()}, models / "diffusion_models" / FILE)
    if WIDE:
        whole = {f"model.diffusion_model.{k}": v.bfloat16() for k, v in state.items()}
        save_file(whole, models / "checkpoints" / CHECKPOINT)
    for name, tensors in lora_dialects().items():
        save_file(tensors, models / "loras" / f"{name}.safetensors")
    if control:
        save_file(control_patch(state), models / "model_patches" / "control.safetensors")


def control_patch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ControlNet of the lite kind, 3 layers and a refiner of its own, on the blocks of `state`."""
    generator = torch.Generator().manual_seed(3)
    dim = CONFIG.dim
    parts = {"control_all_x_embedder.2-1.weight": torch.randn(dim, 4 * (16 + 17), generator=generator) / 12}
    parts["control_all_x_embedder.2-1.bias"] = torch.zeros(dim)
    block = {k.removeprefix("layers.0."): v for k, v in state.items() if k.startswith("layers.0.")}
    names = [f"control_layers.{i}" for i in range(3)] + [f"control_noise_refiner.{i}" for i in range(2)]
    for name in names:
        parts |= {f"{name}.{key}": value for key, value in block.items()}
        for projection in ("before_proj", "after_proj") if name.endswith(".0") else ("after_proj",):
            parts[f"{name}.{projection}.weight"] = torch.randn(dim, dim, generator=generator) / dim**0.5
            parts[f"{name}.{projection}.bias"] = torch.zeros(dim)
    return {key: value.bfloat16().clone() for key, value in parts.items()}


def lora_dialects(rank: int = 4) -> dict[str, dict[str, Tensor]]:
    """One change of every block as trainers spell it: split or fused q, k, v, under their prefixes."""
    generator = torch.Generator().manual_seed(2)
    dim, ffn = CONFIG.dim, CONFIG.ffn_dim
    split: dict[str, tuple[Tensor, Tensor]] = {}
    fused: dict[str, tuple[Tensor, Tensor]] = {}

    def pair(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        return down, 0.5 * torch.randn(rows, rank, generator=generator) / rank**0.5

    blocks = [f"layers.{i}" for i in range(CONFIG.n_layers)]
    blocks += ["noise_refiner.1", "context_refiner.0"]
    for block in blocks:
        parts = [pair(dim, dim) for _ in range(3)]
        for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
            split[f"{block}.attention.{name}"] = part
        downs, ups = zip(*parts, strict=True)
        fused[f"{block}.attention.qkv"] = torch.cat(downs), torch.block_diag(*ups)
        out, up, down = pair(dim, dim), pair(ffn, dim), pair(dim, ffn)
        split[f"{block}.attention.to_out.0"] = fused[f"{block}.attention.out"] = out
        for table in (split, fused):
            table[f"{block}.feed_forward.w1"], table[f"{block}.feed_forward.w2"] = up, down

    def spelled(table: dict, name, ends: tuple[str, str]) -> dict[str, Tensor]:
        return {
            f"{name(layer)}.{end}": value.contiguous().clone()
            for layer, values in table.items()
            for end, value in zip(ends, values, strict=True)
        }

    peft, kohya = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
    return {
        "comfy_fused": spelled(fused, lambda layer: f"diffusion_model.{layer}", peft),
        "comfy_split": spelled(split, lambda layer: f"diffusion_model.{layer}", peft),
        "kohya_fused": spelled(fused, lambda layer: "lora_unet_" + layer.replace(".", "_"), kohya),
        "lycoris_split": spelled(split, lambda layer: "lycoris_" + layer.replace(".", "_"), kohya),
        "peft_split": spelled(split, lambda layer: f"transformer.{layer}", peft),
        "bare_split": spelled(split, lambda layer: layer, peft),
        "bare_default": spelled(
            split, lambda layer: layer, ("lora_A.default.weight", "lora_B.default.weight")
        ),
    }
