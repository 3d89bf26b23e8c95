"""Files -> MODEL, CLIP, VAE."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.weights import WeightsError
from .host.clip import load_clip
from .host.files import choices, resolve
from .host.model import DTYPES, load_patcher
from .host.progress import show_text
from .host.schema import known, schema
from .host.vae import load_vae


class ZImageLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageLoader",
            display_name="Z-Image Loader",
            category="Z-Image/loaders",
            description="Loads Z-Image from any file people have: ComfyUI single files, diffusers folders, "
            "fp8. 'built-in: nano' is a small model that comes with the extension.",
            search_aliases=["zimage", "z-image", "zit", "load z-image"],
            inputs=[
                io.Combo.Input(
                    "transformer",
                    options=choices("transformer"),
                    tooltip="The Z-Image transformer, from models/diffusion_models: bf16, fp16, fp32 or "
                    "fp8, ComfyUI or diffusers names. Entries that end in / are diffusers folders.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=choices("text_encoder"),
                    tooltip="Qwen3-4B, from models/text_encoders. The built-in transformer needs the "
                    "built-in encoder.",
                ),
                io.Combo.Input(
                    "vae",
                    options=choices("autoencoder"),
                    tooltip="The Flux.1 autoencoder with 16 channels (ae.safetensors), from models/vae.",
                ),
                known(
                    io.Combo.Input,
                    "weight_dtype",
                    options=list(DTYPES),
                    default="auto",
                    advanced=True,
                    tooltip="How the transformer's weights are kept in memory. auto keeps the file's type "
                    "where the card can use it; fp8_e4m3fn halves the memory and loses detail; fp32 is for "
                    "tests.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The transformer, a normal MODEL: any sampler and LoRA node takes it.",
                ),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder with Z-Image's prompt template."
                ),
                io.Vae.Output(display_name="vae", tooltip="Turns latents into pictures and back."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, transformer: str, text_encoder: str, vae: str, weight_dtype: str) -> io.NodeOutput:
        if weight_dtype not in DTYPES:
            raise ValueError(f"weight_dtype is {weight_dtype!r}, expected one of {', '.join(DTYPES)}")
        paths = [
            resolve(kind, name)
            for kind, name in zip(
                ("transformer", "text_encoder", "autoencoder"), (transformer, text_encoder, vae), strict=True
            )
        ]
        clip, encoder = load_clip(paths[1])
        model = load_patcher(str(paths[0]), weight_dtype)
        width, needed = encoder.config.hidden_size, model.model.diffusion_model.config.cap_feat_dim
        if width != needed:
            raise WeightsError(
                f"{text_encoder} gives features {width} wide, {transformer} takes {needed}: "
                "choose the text encoder that belongs to it (Qwen3-4B, 2560, for Z-Image)."
            )
        decoder, autoencoder = load_vae(paths[2])
        found = "\n".join((model.model.summary, encoder.summary, autoencoder.summary))
        show_text(cls.hidden.unique_id, found)
        return io.NodeOutput(model, clip, decoder, ui=ui.PreviewText(found))
