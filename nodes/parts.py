"""The parts of the model as nodes name them: the files that they come from, and what they are loaded as."""

from __future__ import annotations

from typing import NamedTuple

from comfy_api.latest import io

from .host.loading.clip import load_clip
from .host.loading.control import load_control
from .host.loading.files import choices
from .host.loading.model import DTYPES, load_patcher
from .host.loading.vae import load_vae
from .host.loading.vision import load_vision
from .host.page.schema import advanced

CONTROL = io.Custom("ZIMAGE_CONTROL")


def weight_dtype_input() -> io.Combo.Input:
    return advanced(
        io.Combo,
        "weight_dtype",
        options=list(DTYPES),
        default="auto",
        tooltip="How the transformer's weights are kept in memory. auto keeps the file's type where the card "
        "can use it; fp8_e4m3fn halves the memory and loses detail; fp32 is for tests.",
    )


class Part(NamedTuple):
    """One part of the model: its files, its own loader node, and what that gives."""

    kind: str  # of READERS and of the listed files
    load: object  # (path, *settings) -> what the node gives
    tooltip: str  # of the input that names the file
    node: str
    title: str
    description: str
    aliases: list[str]
    output: type
    name: str  # of the output
    gives: str  # its tooltip
    settings: tuple = ()  # functions that make its further inputs


PARTS = {  # the input's name -> the part
    "transformer": Part(
        "transformer",
        load_patcher,
        "The Z-Image transformer, from models/diffusion_models or an all-in-one file of models/checkpoints: "
        "bf16, fp16, fp32, fp8, int8, mxfp8, nvfp4 or GGUF, ComfyUI or diffusers names. Entries that end in "
        "/ are folders, of a diffusers model or of shards.",
        "ZImageModelLoader",
        "Z-Image Model Loader",
        "Loads a Z-Image transformer alone, from a bf16, fp16, fp32, fp8, int8, mxfp8, nvfp4 or GGUF file or "
        "a diffusers folder.",
        ["unet loader", "load diffusion model", "zit"],
        io.Model,
        "model",
        "The transformer, a normal MODEL: any sampler and LoRA node takes it.",
        (weight_dtype_input,),
    ),
    "text_encoder": Part(
        "text_encoder",
        load_clip,
        "Qwen3-4B, from models/text_encoders. The built-in transformer needs the built-in encoder.",
        "ZImageTextEncoderLoader",
        "Z-Image Text Encoder Loader",
        "Loads Z-Image's text encoder alone: Qwen3-4B, from a file or a diffusers folder.",
        ["clip loader", "qwen", "load text encoder"],
        io.Clip,
        "clip",
        "The text encoder with Z-Image's prompt template.",
    ),
    "vae": Part(
        "autoencoder",
        load_vae,
        "The Flux.1 autoencoder with 16 channels (ae.safetensors), from models/vae.",
        "ZImageVAELoader",
        "Z-Image VAE Loader",
        "Loads Z-Image's autoencoder alone: the Flux.1 one, or the built-in small one.",
        ["vae loader", "load vae", "autoencoder"],
        io.Vae,
        "vae",
        "Turns latents into pictures and back.",
    ),
    "vision": Part(
        "vision",
        load_vision,
        "SigLIP 2 so400m, patch 16, naflex, from models/clip_vision; nano needs its own.",
        "ZImageVisionLoader",
        "Z-Image Vision Loader",
        "Loads SigLIP 2, through which omni weights (Z-Image-Omni, Z-Image-Edit) see reference pictures.",
        ["clip vision loader", "siglip", "image encoder", "omni"],
        io.ClipVision,
        "vision",
        "Shows reference pictures to omni weights.",
    ),
    "control": Part(
        "control",
        load_control,
        "The control, from models/model_patches or models/controlnet: bf16, fp16, fp32 "
        "or fp8. It belongs to the transformer that it was trained for, Turbo or Base; the "
        "built-in one, for edges, to the built-in transformer.",
        "ZImageControlLoader",
        "Z-Image Control Loader",
        "Loads a Z-Image-Fun-Controlnet-Union of any version, 1.0 to 2.1 and lite.",
        ["controlnet loader", "load controlnet model", "model patch loader"],
        CONTROL,
        "control",
        "For Z-Image Control.",
    ),
}


def part_input(widget: str) -> io.Combo.Input:
    part = PARTS[widget]
    return io.Combo.Input(widget, options=choices(part.kind), tooltip=part.tooltip)


def part_output(widget: str) -> io.Output:
    part = PARTS[widget]
    return part.output.Output(display_name=part.name, tooltip=part.gives)
