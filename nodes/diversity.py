"""More variety between the pictures of one prompt."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.sampling.diversity import UNTIL
from .host.page.schema import advanced, schema
from .host.running.diversity import diversified


class ZImageDiversity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageDiversity",
            display_name="Z-Image Diversity",
            category="Z-Image/sampling",
            description="Makes pictures of one prompt differ more from seed to seed, which Turbo does little "
            "by itself: the first steps read the prompt with noise on it.",
            search_aliases=["seed variance", "variation", "variety", "same face", "diversity"],
            inputs=[
                io.Model.Input("model", tooltip="Any Z-Image, from any loader, with any LoRA applied."),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How different the pictures get. 0: off. Start with 0.5. 1: strong, and the "
                    "prompt is followed least.",
                ),
                advanced(
                    io.Float,
                    "until",
                    default=UNTIL,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Only the first part of the steps reads the noisy prompt: 0.2 is the first 2 of "
                    "8. They lay the picture out; the rest follow the prompt as it is.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="For any sampler. Its seed decides the variation too: the same seed and settings "
                    "give the same picture, each picture of a batch has its own.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: object, strength: float, until: float = UNTIL) -> io.NodeOutput:
        return io.NodeOutput(diversified(model, strength, until))
