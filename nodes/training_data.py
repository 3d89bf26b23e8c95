"""A folder of pictures with captions -> what is trained on, and a look at it."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .host.page.errors import bare_names
from .host.page.progress import show_text
from .host.page.schema import schema
from .host.training.data_folders import choices, load, state_of

DATA = io.Custom("ZIMAGE_TRAINING_DATA")
CATEGORY = "Z-Image/training"


class ZImageTrainingData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageTrainingData",
            display_name="Z-Image Training Data",
            category=CATEGORY,
            description="A folder of pictures with captions, looked at before a LoRA is trained on it: how "
            "many there are, their sizes, what is missing, and a contact sheet.",
            search_aliases=["dataset", "data set", "load images folder", "captions", "train", "training"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=choices(),
                    tooltip="A folder in ComfyUI's input folder, with a .txt file of the same name beside "
                    "each picture; or a .jsonl or .toml list in it. Press R to see new ones. Pictures up to "
                    "80 megapixels, captions up to 8192 characters.",
                ),
                io.Boolean.Input(
                    "leave_out",
                    default=False,
                    tooltip="Train without the pictures that the report names as faulty or as copies. Off: "
                    "it only names them.",
                ),
            ],
            outputs=[
                DATA.Output(display_name="data", tooltip="For Z-Image Train LoRA."),
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip="The pictures, those with findings first: framed red where they are left out.",
                ),
                io.String.Output(
                    display_name="report", tooltip="How many pictures of which sizes, and what is wrong."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool:
        """Names are looked up when the node runs: folders come and go."""
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **settings: object) -> list | float:
        return float("nan") if folder is None else state_of(folder)

    @classmethod
    def execute(cls, folder: str, leave_out: bool = False) -> io.NodeOutput:
        from .host.training.look import looked_at  # what only training needs takes long to import

        bare_names()
        data, sheet, text = looked_at(load(folder), leave_out)
        show_text(cls.hidden.unique_id, text)
        shown = ui.PreviewImage(sheet, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(data, sheet, text, ui=shown)
