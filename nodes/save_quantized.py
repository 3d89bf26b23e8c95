"""MODEL -> a smaller file of it."""

from __future__ import annotations

import comfy.model_management as management
import comfy.utils
from comfy_api.latest import io, ui

from ..zimage_core.weights.convert import write_smaller
from ..zimage_core.weights.targets import TARGETS
from .host.page.model_files import new_transformer, said_of
from .host.page.progress import show_text
from .host.page.schema import schema
from .host.running.lora_fit import lora_notes
from .host.running.merged import merged_weights, not_merged

COMPUTING = 1 << 30  # bytes that the forward behind the printed error needs, by far


class ZImageSaveQuantized(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageSaveQuantized",
            display_name="Z-Image Save Quantized",
            category="Z-Image/model",
            description="Saves a Z-Image MODEL as a smaller file, its LoRAs merged in, and says how far the "
            "result is from the MODEL. Loaders list the file after the page is refreshed (R).",
            search_aliases=["quantize", "convert", "fp8", "int8", "gguf", "save model", "merge lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A Z-Image MODEL from any loader, LoRAs included."),
                io.String.Input(
                    "filename_prefix",
                    default="zimage",
                    tooltip="The file's name, in diffusion_models in ComfyUI's output folder.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(TARGETS),
                    default="fp8",
                    tooltip="fp8 and int8 are half of bf16, gguf-q8_0 a little more, gguf-q4_0 the smallest "
                    "and farthest from the MODEL. GGUF needs the Python package gguf.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: object, filename_prefix: str, format: str) -> io.NodeOutput:
        weights = merged_weights(model)
        bar = comfy.utils.ProgressBar(100)

        def progress(done: int, total: int) -> None:
            management.throw_exception_if_processing_interrupted()
            bar.update_absolute(100 * done // total)

        device = management.get_torch_device()
        management.free_memory(COMPUTING, device)
        path = new_transformer(filename_prefix, TARGETS[format].suffix)
        written = write_smaller(weights, path, format, progress, device)
        notes = (*not_merged(model), *lora_notes(model))
        text = "\n".join((said_of(written, bool(weights.stored_as)), *notes))
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(ui=ui.PreviewText(text))
