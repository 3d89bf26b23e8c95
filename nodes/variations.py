"""A list of values, a run of the graph for each, and the pictures of all on one sheet."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.variations import MOST, integer, number, values_of
from .host.page.blocked import blocked
from .host.page.schema import schema
from .host.page.sheet import sheet


class ZImageVariations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageVariations",
            display_name="Z-Image Variations",
            category="Z-Image/latent",
            description="A list of seeds, strengths, steps or prompts: what is connected behind it runs once "
            "for each. Z-Image Sheet puts the pictures together.",
            search_aliases=["xy plot", "grid", "list", "seeds", "compare", "for each"],
            inputs=[
                io.String.Input(
                    "values",
                    multiline=True,
                    default="0, 0.5, 1",
                    tooltip=f"Numbers with commas between them, or one text a line; at most {MOST}.",
                )
            ],
            outputs=[
                io.Int.Output(
                    display_name="integer",
                    is_output_list=True,
                    tooltip="The values for seed, steps and the like.",
                ),
                io.Float.Output(
                    display_name="number",
                    is_output_list=True,
                    tooltip="The values for strength, denoise and the like.",
                ),
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="The values as texts: prompts, or labels.",
                ),
            ],
        )

    @classmethod
    def execute(cls, values: str) -> io.NodeOutput:
        texts = values_of(values)
        found = []
        for kind, convert in (("whole numbers", integer), ("numbers", number)):
            converted = [convert(text) for text in texts]
            wrong = [text for text, value in zip(texts, converted, strict=True) if value is None]
            found.append(
                [blocked(f"Z-Image Variations: {wrong[0]!r:.60} is not one of {kind}.")]
                if wrong
                else converted
            )
        return io.NodeOutput(*found, texts)


class ZImageSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageSheet",
            display_name="Z-Image Sheet",
            category="Z-Image/image",
            description="Puts the pictures of all runs of a list on one sheet, each with its label.",
            search_aliases=["grid", "contact sheet", "xy plot", "collage", "compare"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Pictures, as many as there are runs. Where a run gives several, they share "
                    "a row.",
                ),
                io.String.Input(
                    "labels",
                    optional=True,
                    force_input=True,
                    tooltip="What stands above each: the text of Z-Image Variations.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=MOST,
                    optional=True,
                    tooltip="Pictures in a row where each run gives one. 0 comes near a square.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The sheet, white, with labels in black.")
            ],
        )

    @classmethod
    def execute(cls, images: list, labels: list | None = None, columns: list | None = None) -> io.NodeOutput:
        labels = labels or [""] * len(images)
        if len(labels) == 1:
            labels = labels * len(images)
        if len(labels) != len(images):
            raise ValueError(
                f"{len(images)} pictures and {len(labels)} labels: connect labels of the same list."
            )
        return io.NodeOutput(sheet(images, labels, columns[0] if columns else 0))
