"""A prompt -> the same in a style."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.styles import POSITIONS, StyleError, in_style
from .host.page.saved_workflow import put_widgets
from .host.page.schema import schema
from .host.writing.styles import style as words_of
from .host.writing.styles import styles

WIDGETS = ["text", "style", "position", "styled"]


def style_input() -> io.Combo.Input:
    """The list of styles, read anew; the page gets the words of each and shows them before a run."""
    known = styles()
    made = io.Combo.Input(
        "style",
        options=list(known),
        tooltip="The style. Type in the list to search it; its words are shown below. Your own styles come "
        "last.",
    )
    made.extra_dict["styles"] = known
    return made


class ZImageStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageStyle",
            display_name="Z-Image Style",
            category="Z-Image/conditioning",
            description="Adds the words of a style to a prompt, English or Chinese as the prompt is. About "
            "sixty come along; your own go into user/zimage/styles.json of ComfyUI.",
            has_intermediate_output=True,  # the text is shown again after a page was loaded again
            search_aliases=["style", "styles selector", "prompt styler", "preset", "look"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, English or Chinese. It stays as it is; the style is added.",
                ),
                style_input(),
                io.Combo.Input(
                    "position",
                    options=list(POSITIONS),
                    default=POSITIONS[0],
                    optional=True,
                    tooltip="Where its words go: after the prompt, or before it.",
                ),
                io.String.Input(
                    "styled",
                    multiline=True,
                    default="",
                    optional=True,
                    socketless=True,
                    tooltip="The words of the style; after a run, the whole text. It is only shown.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="The prompt with the style's words.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, style: str | None) -> bool | str:
        """None: it is linked, and known when it runs."""
        try:
            return style is None or bool(words_of(style))
        except StyleError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, style: str | None, **_: object) -> object:
        """People's own styles change under the same name; a linked one may be any."""
        return words_of(style) if style else styles()

    @classmethod
    def execute(cls, text: str, style: str, position: str = POSITIONS[0], styled: str = "") -> io.NodeOutput:
        result = in_style(text, words_of(style), position)
        put_widgets(cls.hidden, WIDGETS, {"styled": result})
        return io.NodeOutput(result, ui={"styled": (result,)})
