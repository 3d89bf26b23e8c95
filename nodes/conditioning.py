"""Prompts -> CONDITIONING."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.config import REFERENCE_MAX_TOKENS
from .host.progress import show_text
from .host.schema import schema


class ZImageTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageTextEncode",
            display_name="Z-Image Text Encode",
            category="Z-Image/conditioning",
            description="Encodes a prompt as Z-Image expects it and says how many tokens it has. Nothing is "
            "cut off.",
            search_aliases=["prompt", "clip text encode", "z-image prompt"],
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
                    "effect on Z-Image.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The encoded prompt, for any sampler."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip: object, text: str) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "clip is empty: the checkpoint that it comes from has no text encoder. Use the Z-Image "
                "loader."
            )
        tokens = clip.tokenize(text)
        count = sum(len(chunk) for chunks in tokens.values() for chunk in chunks)
        note = f"{count} tokens"
        if count > REFERENCE_MAX_TOKENS:
            note += (
                f", {count - REFERENCE_MAX_TOKENS} more than the reference pipeline reads; none are cut here"
            )
        show_text(cls.hidden.unique_id, note)
        return io.NodeOutput(clip.encode_from_tokens_scheduled(tokens), ui=ui.PreviewText(note))
