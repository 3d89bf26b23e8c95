"""Prompts -> CONDITIONING."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.prompt.syntax import embedding_names, foreign_syntax, several_prompts
from .host.page.progress import show_text
from .host.page.schema import advanced, schema
from .host.writing import encodings

SHOWN = 60  # characters of a prompt's words that a note repeats


class ZImageTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageTextEncode",
            display_name="Z-Image Text Encode",
            category="Z-Image/conditioning",
            description="Encodes a prompt, or several as one batch, as Z-Image expects it and says how many "
            "tokens it has. Nothing is cut off unless you ask for it.",
            search_aliases=["prompt", "clip text encode", "z-image prompt", "prompt list", "system prompt"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder from the Z-Image loader, or Qwen3-4B from the host's CLIP "
                    "loader.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, English or Chinese. Long, concrete descriptions work best; text to "
                    "be written in the picture goes into double quotes. Weights like (word:1.2) have no "
                    "effect on Z-Image; embedding:name puts in a textual inversion.",
                ),
                io.Boolean.Input(
                    "batch",
                    default=False,
                    optional=True,
                    tooltip="Several prompts, a picture of each in one run: one prompt per line, or blocks "
                    "of lines divided by lines of ---. Connect batch_size to the latent.",
                ),
                advanced(
                    io.Int,
                    "max_tokens",
                    default=0,
                    min=0,
                    max=32768,
                    optional=True,
                    tooltip="Cut the prompt after this many tokens, its template's included. 0 cuts nothing; "
                    "512 makes the pictures that the reference pipeline makes of long prompts.",
                ),
                advanced(
                    io.String,
                    "system_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A system turn before the prompt, such as a style for every picture. Z-Image was "
                    "trained without one: leave it empty for the official result.",
                ),
                advanced(
                    io.String,
                    "template",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The text around the prompt, with the word prompt in curly brackets in its "
                    "place. Empty: Z-Image's own chat template.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The encoded prompt, for any sampler."
                ),
                io.Int.Output(
                    display_name="batch_size",
                    tooltip="How many prompts there are, for the latent's batch_size.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip: object,
        text: str,
        batch: bool = False,
        max_tokens: int = 0,
        system_prompt: str = "",
        template: str = "",
    ) -> io.NodeOutput:
        prompts = several_prompts(text) if batch else [text]
        tokens = [encodings.tokens_of(clip, prompt, system_prompt, template) for prompt in prompts]
        notes = [
            encodings.length_note(tokens, max_tokens),
            *_syntax_warnings(clip, "\n".join((text, system_prompt, template))),
            *encodings.vocabulary_note(clip, text),
        ]
        if max_tokens:
            tokens = [encodings.cut(t, max_tokens) for t in tokens]
        made = [encodings.encode(clip, t) for t in tokens]
        show_text(cls.hidden.unique_id, "\n".join(notes))
        conditioning = made[0] if len(made) == 1 else encodings.joined(made)
        return io.NodeOutput(conditioning, len(prompts), ui=ui.PreviewText("\n".join(notes)))


def _syntax_warnings(clip: object, text: str) -> list[str]:
    """A sentence for each piece of other programs' prompt syntax that Z-Image does not know."""
    said = [f"{word:.{SHOWN}} {why}" for word, why in foreign_syntax(text).items()]
    names = embedding_names(text)
    if names:
        unusable = encodings.unusable_embeddings(clip, names)
        said += [f"embedding:{name:.{SHOWN}} {why}" for name, why in unusable.items()]
    return said
