"""A picture that ComfyUI made -> the prompt that it was made from."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.prompt.syntax import whole_letters
from .host.page.graph_facts import saved_prompts
from .host.page.input_pictures import input_picture, input_pictures
from .host.page.png_text import PngError, graph_in
from .host.page.progress import show_text
from .host.page.schema import schema


class ZImagePictureText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImagePictureText",
            display_name="Z-Image Picture Text",
            category="Z-Image/image",
            description="Reads the prompt of a picture from the graph that ComfyUI saved in its PNG file. "
            "Link it to source_prompt of Z-Image Edit. Nothing of that graph is run.",
            search_aliases=["png info", "metadata", "read prompt", "source prompt", "caption"],
            inputs=[
                io.Combo.Input(
                    "image",
                    options=input_pictures(),
                    upload=io.UploadType.image,
                    tooltip="The picture, as Load Image lists it. Take the PNG file that ComfyUI saved: "
                    "copies from chats and websites have lost the graph.",
                )
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    tooltip="The prompt, as the prompt enhancer wrote it. Empty where the file tells none.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was found, or why there is no prompt.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, image: str | None) -> bool | str:
        """Pictures in folders of the input folder are not in the list. None: it is linked."""
        try:
            if image is not None:
                input_picture(image)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, image: str | None) -> str | float:
        if image is None:
            return float("nan")  # which file is not known yet: it is read anew
        file = input_picture(image).stat()
        return f"{file.st_mtime_ns} {file.st_size}"

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        path = input_picture(image)
        try:
            prompts = saved_prompts(graph_in(path))
        except PngError as error:
            text, report = "", str(error)
        else:
            text = whole_letters(prompts[0]) if prompts else ""
            report = f"The prompt of {path.name}:"
            if not prompts:
                report = f"The graph in {path.name} has no prompt, or has it behind a node unknown here."
            elif len(prompts) > 1:
                report = f"{path.name} was saved with {len(prompts)} prompts: this is the first:"
        shown = "\n".join(filter(None, (report, text)))
        show_text(cls.hidden.unique_id, shown)
        return io.NodeOutput(text, report, ui=ui.PreviewText(shown))
