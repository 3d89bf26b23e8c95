"""Files -> MODEL, CLIP and VAE in one node."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.weights import READERS, WeightsError
from .host.loading.files import resolve
from .host.loading.footprint import in_memory, memory_note, summary
from .host.loading.loaded_parts import held
from .host.page.expand import expanded
from .host.page.progress import show_text
from .host.page.schema import schema
from .part_loaders import CATEGORY
from .parts import PARTS, part_input, part_output, weight_dtype_input

WIDGETS = ("transformer", "text_encoder", "vae")


class ZImageLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageLoader",
            display_name="Z-Image Loader",
            category=CATEGORY,
            description="Loads Z-Image from bf16, fp16, fp32, fp8, int8, mxfp8, nvfp4 or GGUF files: single "
            "files, all-in-one checkpoints or diffusers folders. 'built-in: nano' is a small demo model.",
            search_aliases=["zimage", "z-image", "zit", "load z-image"],
            inputs=[*map(part_input, WIDGETS), weight_dtype_input()],
            outputs=[*map(part_output, WIDGETS)],
            hidden=[io.Hidden.unique_id],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(cls, **inputs: str) -> bool:
        """Names are looked up when the node runs: graphs of another system separate folders otherwise."""
        return True

    @classmethod
    def execute(cls, transformer: str, text_encoder: str, vae: str, weight_dtype: str) -> io.NodeOutput:
        """Checks the three files by their headers, and hands on parts that are still held.

        The others are left to nodes of their own, whose results the host keeps by their own inputs.
        """
        names = dict(zip(WIDGETS, (transformer, text_encoder, vae), strict=True))
        paths = {widget: resolve(PARTS[widget].kind, name) for widget, name in names.items()}
        found = {widget: READERS[PARTS[widget].kind](path, values=False) for widget, path in paths.items()}
        width = found["text_encoder"].config.hidden_size
        needed = found["transformer"].config.cap_feat_dim
        if width != needed:
            raise WeightsError(
                f"{text_encoder} gives features {width} wide, {transformer} takes {needed}: "
                "choose the text encoder that belongs to it (Qwen3-4B, 2560, for Z-Image)."
            )
        settings = {"transformer": {"weight_dtype": weight_dtype}}
        parts, missing = [], 0
        for widget, name in names.items():
            part, given = PARTS[widget], settings.get(widget, {})
            held_part = held(part.load, paths[widget], *given.values())
            missing += 0 if held_part else in_memory(found[widget], *given.values())
            parts.append(held_part or (part.node, {widget: name, **given}))
        by_kind = {PARTS[widget].kind: (found[widget], paths[widget]) for widget in WIDGETS}
        text = "\n".join([summary(by_kind, weight_dtype), *memory_note(missing)])
        show_text(cls.hidden.unique_id, text)
        results, graph = expanded(parts)
        return io.NodeOutput(*results, expand=graph, ui=ui.PreviewText(text))
