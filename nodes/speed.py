"""MODEL -> MODEL: the same pictures in less time, in the way that the user chooses."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .host.page.progress import show_text
from .host.page.schema import schema
from .host.running.speed import MODES, sped_up


class ZImageSpeed(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageSpeed",
            display_name="Z-Image Speed",
            category="Z-Image/model",
            description="Makes a Z-Image MODEL from any loader faster and says what that does here. What the "
            "machine cannot do is left out, and results are then exact.",
            search_aliases=["faster", "torch compile", "cuda graph", "fp8", "int8", "teacache", "easycache"],
            inputs=[
                io.Model.Input("model", tooltip="A Z-Image MODEL from any loader, LoRAs included."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: what changes pictures by rounding at most. exact: the same to the bit, by "
                    "CUDA graphs alone. compiled: torch.compile, a minute at the first run. 8-bit: the "
                    "card's 8-bit units, half the memory; a step is 2 % (int8) or 5 % (fp8) off. cache: for "
                    "Base with 16 steps and more, six of ten are computed; details differ.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: object, mode: str) -> io.NodeOutput:
        faster, lines = sped_up(model, mode)
        text = "\n".join(lines)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(faster, ui=ui.PreviewText(text))
