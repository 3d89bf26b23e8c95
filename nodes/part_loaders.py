"""Files -> MODEL, CLIP, VAE or CLIP_VISION: the loaders of one part each."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.weights import READERS
from .host.loading.clip import load_clip
from .host.loading.files import choices, resolve
from .host.loading.loaded_parts import loaded
from .host.loading.model import DTYPES, load_patcher
from .host.loading.vae import load_vae
from .host.loading.vision import load_vision
from .host.page.progress import show_text
from .host.page.schema import known, schema

CATEGORY = "Z-Image/loaders"
PARTS = {  # widget -> what it names
    "transformer": (
        "transformer",
        "The Z-Image transformer, from models/diffusion_models: bf16, fp16, fp32 or fp8, ComfyUI or "
        "diffusers names. Entries that end in / are diffusers folders.",
    ),
    "text_encoder": (
        "text_encoder",
        "Qwen3-4B, from models/text_encoders. The built-in transformer needs the built-in encoder.",
    ),
    "vae": (
        "autoencoder",
        "The Flux.1 autoencoder with 16 channels (ae.safetensors), from models/vae.",
    ),
    "vision": ("vision", "SigLIP 2 so400m, patch 16, naflex, from models/clip_vision; nano needs its own."),
}


def part_input(widget: str) -> io.Combo.Input:
    kind, tooltip = PARTS[widget]
    return io.Combo.Input(widget, options=choices(kind), tooltip=tooltip)


def weight_dtype_input() -> io.Combo.Input:
    return known(
        io.Combo.Input,
        "weight_dtype",
        options=list(DTYPES),
        default="auto",
        advanced=True,
        tooltip="How the transformer's weights are kept in memory. auto keeps the file's type where the card "
        "can use it; fp8_e4m3fn halves the memory and loses detail; fp32 is for tests.",
    )


def outputs(*names: str) -> list:
    made = {
        "model": (io.Model, "The transformer, a normal MODEL: any sampler and LoRA node takes it."),
        "clip": (io.Clip, "The text encoder with Z-Image's prompt template."),
        "vae": (io.Vae, "Turns latents into pictures and back."),
        "vision": (io.ClipVision, "Shows reference pictures to omni weights."),
    }
    return [made[name][0].Output(display_name=name, tooltip=made[name][1]) for name in names]


class ZImagePartLoader(io.ComfyNode):
    """What the loaders of one part share; not a node itself."""

    @classmethod
    def give(cls, load: object, kind: str, name: str, *settings: str) -> io.NodeOutput:
        path = resolve(kind, name)
        part = loaded(load, path, *settings)
        summary = READERS[kind](path, values=False).summary
        show_text(cls.hidden.unique_id, summary)
        return io.NodeOutput(part, ui=ui.PreviewText(summary))


class ZImageModelLoader(ZImagePartLoader):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageModelLoader",
            display_name="Z-Image Model Loader",
            category=CATEGORY,
            description="Loads a Z-Image transformer alone, from any file or diffusers folder.",
            search_aliases=["unet loader", "load diffusion model", "zit"],
            inputs=[part_input("transformer"), weight_dtype_input()],
            outputs=outputs("model"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, transformer: str, weight_dtype: str) -> io.NodeOutput:
        return cls.give(load_patcher, "transformer", transformer, weight_dtype)


class ZImageTextEncoderLoader(ZImagePartLoader):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageTextEncoderLoader",
            display_name="Z-Image Text Encoder Loader",
            category=CATEGORY,
            description="Loads Z-Image's text encoder alone: Qwen3-4B, from a file or a diffusers folder.",
            search_aliases=["clip loader", "qwen", "load text encoder"],
            inputs=[part_input("text_encoder")],
            outputs=outputs("clip"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        return cls.give(load_clip, "text_encoder", text_encoder)


class ZImageVAELoader(ZImagePartLoader):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageVAELoader",
            display_name="Z-Image VAE Loader",
            category=CATEGORY,
            description="Loads Z-Image's autoencoder alone: the Flux.1 one, or the built-in small one.",
            search_aliases=["vae loader", "load vae", "autoencoder"],
            inputs=[part_input("vae")],
            outputs=outputs("vae"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, vae: str) -> io.NodeOutput:
        return cls.give(load_vae, "autoencoder", vae)


class ZImageVisionLoader(ZImagePartLoader):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageVisionLoader",
            display_name="Z-Image Vision Loader",
            category=CATEGORY,
            description="Loads SigLIP 2, through which omni weights (Omni, Edit) see reference pictures.",
            search_aliases=["clip vision loader", "siglip", "image encoder", "omni"],
            inputs=[part_input("vision")],
            outputs=outputs("vision"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, vision: str) -> io.NodeOutput:
        return cls.give(load_vision, "vision", vision)
