"""MODEL -> MODEL: our S3-DiT under weights that another loader brought."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .host.page.progress import show_text
from .host.page.schema import schema
from .host.running.accelerate import accelerated


class ZImageAccelerate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageAccelerate",
            display_name="Z-Image Accelerate",
            category="Z-Image/model",
            description="Runs a Z-Image MODEL from any loader with this extension's code: regional prompts, "
            "Z-Image Control and attention patches then work. LoRAs and patches stay, nothing is loaded "
            "twice. Put it anywhere between loader and sampler.",
            search_aliases=["attention patch", "nag", "pag", "regional", "zit"],
            inputs=[io.Model.Input("model", tooltip="A Z-Image MODEL from any loader, LoRAs included.")],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The same weights and patches, for regional prompts, Z-Image Control and "
                    "attention patches.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: object) -> io.NodeOutput:
        patched, note = accelerated(model)
        show_text(cls.hidden.unique_id, note)
        return io.NodeOutput(patched, ui=ui.PreviewText(note))
