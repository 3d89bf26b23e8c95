"""A short prompt -> the long description that Z-Image is used to, by a language model."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.enhancer import LARGEST_SEED
from ..zimage_core.prompt.syntax import unix_lines
from .enhancer_settings import CHOICES, USE_PROMPT, widgets
from .host.page.progress import show_text
from .host.page.saved_workflow import put_widgets
from .host.page.schema import schema
from .host.writing.description import describer


class ZImagePromptEnhancer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImagePromptEnhancer",
            display_name="Z-Image Prompt Enhancer",
            category="Z-Image/conditioning",
            description="Turns a short prompt into the detailed description that Z-Image was tuned on, "
            "written by Z-Image's own text encoder (Qwen3-4B), so nothing else is loaded. The text can be "
            "edited and locked; pictures carry it.",
            has_intermediate_output=True,  # the text is shown again after a page was loaded again
            search_aliases=["prompt enhance", "prompt expander", "rewrite", "llm", "qwen"],
            inputs=[
                io.Clip.Input(
                    "clip", optional=True, tooltip="Z-Image's text encoder, Qwen3-4B. Endpoints need none."
                ),
                *widgets(),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The description, for a text encode node."),
                io.String.Output(
                    display_name="report",
                    tooltip="Who wrote, how many tokens, what faithful mode added, and what is lacking.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, prompt: str, clip: object = None, **given) -> io.NodeOutput:
        values = {widget.id: widget.default for widget in widgets()} | given
        for name, (options, _) in CHOICES.items():
            if values[name] not in options:
                raise ValueError(f"{name} is {values[name]!r}; it can be {', '.join(options)}")
        if values["locked"]:
            texts, notes = [values["text"]], ["locked: the text is used as it stands"]
        else:
            texts, notes = written(unix_lines(prompt), clip, values, cls.hidden.unique_id)
        text = texts[0]
        put_widgets(cls.hidden, [widget.id for widget in widgets()], {"text": text, "locked": True})
        report = "\n".join(notes)
        show_text(cls.hidden.unique_id, report)
        shown = {"text": (report,), "enhanced": (text,)}
        if not values["locked"]:
            shown["variants"] = tuple(texts)
        return io.NodeOutput(text, report, ui=shown)


def written(prompt: str, clip: object, values: dict, node_id: str) -> tuple[list[str], list[str]]:
    """The descriptions and what is to be said of them. Raises ValueError where there is none."""
    if not prompt.strip():
        raise ValueError("prompt is empty: say in a few words what the picture shows.")
    how, describe = describer(prompt, clip, values, node_id)
    notes, texts, wanted = [f"{values['source']}, {how}"], [], values["variants"]
    for n in range(wanted):
        outcome = describe((values["seed"] + n) % (LARGEST_SEED + 1))
        if outcome.text is not None:
            texts.append(outcome.text)
        # the number is that of the text's button on the page
        mark = "" if wanted == 1 else "- " if outcome.text is None else f"{len(texts)}. "
        notes += [mark + note for note in outcome.notes]
        if outcome.failed:
            break
    if texts:
        return texts, notes if len(texts) == wanted else [*notes, f"{len(texts)} of {wanted} were written"]
    if values["on_failure"] != USE_PROMPT:
        # the reason first: a toast shows three lines
        raise ValueError("\n".join((*reversed(notes[1:]), f"No description was written ({notes[0]}).")))
    return [prompt], [*notes, "the prompt is used as it is"]
