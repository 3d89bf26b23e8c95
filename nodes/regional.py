"""Prompts for parts of the picture."""

from __future__ import annotations

from comfy_api.latest import io

from .host.page.schema import schema
from .host.running.regions import with_region


class ZImageRegionalPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageRegionalPrompt",
            display_name="Z-Image Regional Prompt",
            category="Z-Image/conditioning",
            description="Gives a part of the picture a prompt of its own. All prompts run in one pass: each "
            "part follows its prompt, and the parts still see each other.",
            search_aliases=["regional prompting", "attention mask", "area conditioning", "attention couple"],
            inputs=[
                # Without display names of their own: pages show those in every language.
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt of the whole picture, or what another Z-Image Regional Prompt gives "
                    "out: chain as many as there are regions.",
                ),
                io.Conditioning.Input(
                    "region_conditioning",
                    tooltip="The region's prompt, from Z-Image Text Encode: what is in the region, and the "
                    "style or background that it shares with the picture.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="The region is where the mask is white. Any size: it is stretched over the "
                    "picture. Grey is in between. One serves the whole batch, or each picture has its own.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the region's prompt replaces the picture's inside the region. 1: only "
                    "the region's counts there. 0.5: both count half. 0: as if there were no region.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="For any sampler, with a MODEL from the Z-Image loader or Z-Image Accelerate; "
                    "others refuse it.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, conditioning: list, region_conditioning: list, mask: object, strength: float
    ) -> io.NodeOutput:
        return io.NodeOutput(with_region(conditioning, region_conditioning, mask, strength))
