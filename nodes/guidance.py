"""Guidance for Z-Image Base -> GUIDER."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.sampling.guidance import Guidance
from .host.page.schema import advanced, schema
from .host.running.guider import reference_guider
from .sampling_inputs import guidance_range


class ZImageGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageGuider",
            display_name="Z-Image Guider",
            category="Z-Image/sampling",
            description="Guidance as the official pipeline does it for Z-Image Base, with its normalisation "
            "and truncation, for SamplerCustomAdvanced.",
            search_aliases=["cfg guider", "cfg", "negative prompt", "z-image base"],
            inputs=[
                io.Model.Input("model", tooltip="Z-Image Base, with any LoRA applied."),
                io.Conditioning.Input("positive", tooltip="What the picture shows."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What it should not show, from a second Z-Image Text Encode. Leave that one's "
                    "prompt empty if unsure.",
                ),
                io.Float.Input(
                    "guidance_scale",
                    **guidance_range(4.0),
                    tooltip="How strongly to follow the prompt and avoid the negative: 3 to 5 for Base. It "
                    "is KSampler's cfg minus 1 (cfg 5 = 4 here). 0 is off, and runs the model once a step "
                    "instead of twice.",
                ),
                advanced(
                    io.Float,
                    "normalisation",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Keeps colours from burning out: the guided prediction may be at most this many "
                    "times as strong as the unguided one. 1 for realistic pictures, 0 (off) for stylised.",
                ),
                advanced(
                    io.Float,
                    "truncation",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Guidance stops when this share of the way from noise to picture is done; the "
                    "rest runs twice as fast. 1 guides to the end.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        positive: list,
        negative: list,
        guidance_scale: float,
        normalisation: float,
        truncation: float,
    ) -> io.NodeOutput:
        guidance = Guidance(guidance_scale, truncation, normalisation)
        return io.NodeOutput(reference_guider(model, positive, negative, guidance))
