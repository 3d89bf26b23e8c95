"""A short prompt -> the long description that Z-Image is used to, by a language model."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.enhancer import Request, describe_faithfully, enhance, terms
from ..zimage_core.prompt.faithful import FAITHFUL, offer
from ..zimage_core.prompt.messages import AUTO, choose_template
from ..zimage_core.prompt.syntax import unix_lines
from .enhancer_settings import CHOICES, USE_PROMPT, widgets
from .host.page.progress import show_text
from .host.page.saved_workflow import put_widgets
from .host.page.schema import schema
from .host.writing.sources import chooser, writer


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
            text, notes = values["text"], ["locked: the text is used as it stands"]
        else:
            text, notes = written(unix_lines(prompt), clip, values, cls.hidden.unique_id)
        put_widgets(cls.hidden, [widget.id for widget in widgets()], {"text": text, "locked": True})
        report = "\n".join(notes)
        show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(text, report, ui={"text": (report,), "enhanced": (text,)})


def written(prompt: str, clip: object, values: dict, node_id: str) -> tuple[str, list[str]]:
    """The description and what is to be said of it. Raises ValueError where there is none."""
    if not prompt.strip():
        raise ValueError("prompt is empty: say in a few words what the picture shows.")
    fixed = terms(values["fixed_terms"])
    if FAITHFUL in (values["mode"], values["template"]):
        how = "faithful"
        outcome = describe_faithfully(offer(prompt, values["seed"]), chooser(clip, values, node_id), fixed)
    else:
        write, vocab_size = writer(clip, values, node_id)
        template = choose_template(vocab_size) if values["template"] == AUTO else values["template"]
        how = f"template {template}"
        outcome = enhance(Request(prompt, template, values["language"], fixed, values["seed"]), write)
    notes = [f"{values['source']}, {how}", *outcome.notes]
    if outcome.text is not None:
        return outcome.text, notes
    if values["on_failure"] != USE_PROMPT:
        # the reason first: a toast shows three lines
        raise ValueError("\n".join((*reversed(outcome.notes), f"No description was written ({notes[0]}).")))
    return prompt, [*notes, "the prompt is used as it is"]
