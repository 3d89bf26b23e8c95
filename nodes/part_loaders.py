"""The loaders of one part each, file -> MODEL, CLIP, VAE, CLIP_VISION or control, made from PARTS."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.weights import READERS
from .host.loading.files import resolve
from .host.loading.footprint import gigabytes, in_memory, memory_note
from .host.loading.loaded_parts import held, loaded
from .host.page.progress import show_text
from .host.page.schema import schema
from .parts import PARTS, part_input, part_output

CATEGORY = "Z-Image/loaders"


def part_loader(widget: str) -> type[io.ComfyNode]:
    """The node that loads one part."""
    part = PARTS[widget]

    class PartLoader(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return schema(
                node_id=part.node,
                display_name=part.title,
                category=CATEGORY,
                description=part.description,
                search_aliases=part.aliases,
                inputs=[part_input(widget), *(setting() for setting in part.settings)],
                outputs=[part_output(widget)],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        def validate_inputs(cls, **inputs: str) -> bool:
            """Names are looked up when the node runs: graphs of another system separate folders otherwise."""
            return True

        @classmethod
        def execute(cls, **inputs: str) -> io.NodeOutput:
            path = resolve(part.kind, inputs.pop(widget))
            checkpoint = READERS[part.kind](path, values=False)
            needed = in_memory(checkpoint, *inputs.values())
            missing = 0 if held(part.load, path, *inputs.values()) else needed
            text = "\n".join([f"{checkpoint.summary}, {gigabytes(needed)}", *memory_note(missing)])
            show_text(cls.hidden.unique_id, text)
            return io.NodeOutput(loaded(part.load, path, *inputs.values()), ui=ui.PreviewText(text))

    PartLoader.__name__ = PartLoader.__qualname__ = part.node
    return PartLoader


PART_LOADERS = {widget: part_loader(widget) for widget in PARTS}
