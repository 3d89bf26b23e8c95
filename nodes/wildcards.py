"""A prompt with choices -> one that a seed has drawn."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.wildcards import WildcardError, Wildcards, draw
from .host.page.saved_workflow import put_widgets
from .host.page.schema import schema
from .host.writing.own_files import own_folder

CONTROL = "control_after_generate"  # the page's own, behind a seed
WIDGETS = ["text", "seed", CONTROL, "drawn"]  # as a workflow saves them


class ZImageWildcards(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageWildcards",
            display_name="Z-Image Wildcards",
            category="Z-Image/conditioning",
            description="Draws the choices in a prompt by a seed: words in curly brackets, and lines of your "
            "own text files by __name__. The drawn text is shown here and saved with the picture.",
            has_intermediate_output=True,  # the drawn text is shown again after a page was loaded again
            search_aliases=["wildcard", "dynamic prompts", "random prompt", "prompt variations"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,  # or the page would draw, and API graphs would be left out
                    tooltip="The prompt. Choices stand in curly brackets, divided by vertical bars; __name__ "
                    "is a line of name.txt in user/zimage/wildcards of ComfyUI. A backslash before either "
                    "keeps it as text.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Another seed, other choices. The same seed, text and files give the same text.",
                ),
                io.String.Input(
                    "drawn",
                    multiline=True,
                    default="",
                    optional=True,
                    socketless=True,
                    tooltip="The text that was drawn last. It is only shown: the seed decides.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="The prompt with every choice made.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, text: str | None, seed: int | None, drawn: str = "") -> object:
        """The drawn text: only files that change it make a new run. Where text is linked, any file does."""
        if text is None or seed is None:
            return _files().state()
        try:
            return draw(text, seed, _files())
        except WildcardError as error:
            return str(error)

    @classmethod
    def execute(cls, text: str, seed: int, drawn: str = "") -> io.NodeOutput:
        result = draw(text, seed, _files())
        put_widgets(cls.hidden, WIDGETS, {"drawn": result})
        return io.NodeOutput(result, ui={"drawn": (result,)})


def _files() -> Wildcards:
    return Wildcards(own_folder() / "wildcards")
