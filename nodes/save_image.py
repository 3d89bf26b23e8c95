"""Pictures -> files that sharing sites can read."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.prompt.parameters import parameters
from ..zimage_core.prompt.syntax import whole_letters
from .host.loading.graph_files import hashes_of
from .host.page.graph_facts import GraphFacts, facts_of
from .host.page.picture_files import SUFFIXES, nothing_is_written, save_pictures
from .host.page.progress import show_text
from .host.page.saved_workflow import put_again
from .host.page.schema import schema

EXPECTED = (
    "prompt",
    "steps",
    "sampler",
    "seed",
    "model",
)  # what a note names where the graph does not tell it


class ZImageSaveImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageSaveImage",
            display_name="Z-Image Save Image",
            category="Z-Image/image",
            description="Saves pictures as PNG, WebP or JPEG, with the fields that sharing sites read: "
            "prompt, negative, steps, sampler, seed, size, model and LoRA names.",
            search_aliases=["save image", "metadata", "a1111", "civitai", "webp", "jpeg", "jpg", "export"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to save."),
                io.String.Input(
                    "filename_prefix",
                    default="zimage",
                    tooltip="The files' name, with folders in ComfyUI's output folder if you like. %year%, "
                    "%month%, %day%, %width%, %height% and %batch_num% are filled in.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(SUFFIXES),
                    default="png",
                    optional=True,
                    tooltip="png and webp also carry the graph, so that they can be dropped on the page. "
                    "jpeg carries the fields only.",
                ),
                io.Int.Input(
                    "quality",
                    default=90,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="For webp and jpeg: higher is larger and better. 100 makes webp lossless. png "
                    "always is.",
                ),
                io.Boolean.Input(
                    "hashes",
                    default=False,
                    optional=True,
                    tooltip="Also write the hashes by which sites find model and LoRAs. Each file is read "
                    "once for it, beside the runs; pictures saved before that lack it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="parameters", tooltip="The fields that were written, of the first picture."
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        images: object,
        filename_prefix: str,
        format: str = "png",
        quality: int = 90,
        hashes: bool = False,
    ) -> io.NodeOutput:
        put_again(cls.hidden)
        graph, node = cls.hidden.prompt or {}, str(cls.hidden.unique_id)
        facts = [facts_of(graph, node, "images", index) for index in range(len(images))]
        known, awaited = hashes_of(facts) if hashes else ({}, [])
        size = (images.shape[2], images.shape[1])
        fields = [_fields(said, size, known) for said in facts]
        results, notes = save_pictures(images, filename_prefix, format, quality, cls.hidden, fields)
        shown = ui.SavedImages(results).as_dict()
        if notes := [*_notes(facts[0], awaited), *notes]:
            shown["text"] = ("\n".join(notes),)
            show_text(node, *shown["text"])
        return io.NodeOutput(fields[0], ui=shown)


def _fields(said: GraphFacts, size: tuple[int, int], hashes: dict[str, str]) -> str:
    told = {name: value for name, value in vars(said).items() if name != "loader"}
    return whole_letters(parameters(size=size, hashes=hashes, **told))


def _notes(said: GraphFacts, awaited: list[str]) -> list[str]:
    if nothing_is_written():
        return ["Nothing is written into the pictures: ComfyUI was started with --disable-metadata."]
    notes = []
    if untold := [name for name in EXPECTED if getattr(said, name) is None]:
        notes.append(f"Not told by the graph, so not written: {', '.join(untold)}.")
    if awaited:
        notes.append(f"Hashes are being computed, later pictures have them: {', '.join(awaited)}.")
    return notes
