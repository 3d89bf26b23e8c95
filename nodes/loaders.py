"""Files -> MODEL, CLIP, VAE: each part alone, and the three together."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.weights import READERS, WeightsError
from .host.clip import load_clip
from .host.files import choices, resolve
from .host.graph import expanded
from .host.model import DTYPES, load_patcher
from .host.progress import show_text
from .host.schema import known, schema
from .host.vae import load_vae

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
    }
    return [made[name][0].Output(display_name=name, tooltip=made[name][1]) for name in names]


class ZImagePartLoader(io.ComfyNode):
    """What the loaders of one part share; not a node itself."""

    @classmethod
    def loaded(cls, part: object, summary: str) -> io.NodeOutput:
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
        model = load_patcher(str(resolve("transformer", transformer)), weight_dtype)
        return cls.loaded(model, model.model.summary)


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
        clip, checkpoint = load_clip(resolve("text_encoder", text_encoder))
        return cls.loaded(clip, checkpoint.summary)


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
        decoder, checkpoint = load_vae(resolve("autoencoder", vae))
        return cls.loaded(decoder, checkpoint.summary)


class ZImageLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageLoader",
            display_name="Z-Image Loader",
            category=CATEGORY,
            description="Loads Z-Image from any file people have: ComfyUI single files, diffusers folders, "
            "fp8. 'built-in: nano' is a small model that comes with the extension.",
            search_aliases=["zimage", "z-image", "zit", "load z-image"],
            inputs=[*map(part_input, PARTS), weight_dtype_input()],
            outputs=outputs("model", "clip", "vae"),
            hidden=[io.Hidden.unique_id],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, transformer: str, text_encoder: str, vae: str, weight_dtype: str) -> io.NodeOutput:
        """Checks the three files by their headers and leaves the loading to the nodes of one part each: the
        host keeps what those gave, so that another VAE does not read the transformer again.
        """
        names = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
        found = {}
        for widget, name in names.items():
            kind = PARTS[widget][0]
            found[widget] = READERS[kind](resolve(kind, name), values=False)
        width = found["text_encoder"].config.hidden_size
        needed = found["transformer"].config.cap_feat_dim
        if width != needed:
            raise WeightsError(
                f"{text_encoder} gives features {width} wide, {transformer} takes {needed}: "
                "choose the text encoder that belongs to it (Qwen3-4B, 2560, for Z-Image)."
            )
        summary = "\n".join(checkpoint.summary for checkpoint in found.values())
        show_text(cls.hidden.unique_id, summary)
        parts = (
            ("ZImageModelLoader", {"transformer": transformer, "weight_dtype": weight_dtype}),
            ("ZImageTextEncoderLoader", {"text_encoder": text_encoder}),
            ("ZImageVAELoader", {"vae": vae}),
        )
        links, graph = expanded(parts)
        return io.NodeOutput(*links, expand=graph, ui=ui.PreviewText(summary))
