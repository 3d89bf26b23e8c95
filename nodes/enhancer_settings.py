"""The settings of the prompt enhancer, one widget each."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.enhancer import LARGEST_SEED
from ..zimage_core.prompt.faithful import FAITHFUL
from ..zimage_core.prompt.messages import AUTO, LANGUAGES, PLAIN
from .host.page.schema import advanced
from .host.writing.sources import TEXT_ENCODER, sources

USE_PROMPT = "original prompt"
MOST_VARIANTS = 3
CHOICES = {  # combo -> its options and what they do; the first is the default
    "template": (
        (AUTO, "standard", "short", FAITHFUL, PLAIN),
        "What is asked for. standard: 120 to 300 words; short: at most 100; faithful: turns that mode on; "
        "plain: only your prompt, for the built-in nano. auto takes what fits the model.",
    ),
    "language": (
        (AUTO, *LANGUAGES),
        "Language of the description. auto keeps the prompt's own. Not read in faithful mode.",
    ),
    "mode": (
        ("normal", FAITHFUL),
        "faithful: your prompt letter by letter, and after it phrases from fixed lists: view, framing, "
        "focus, light, background, finish. The image model may still invent. Not read then: language, "
        "thinking, top_k, min_p, repetition_penalty; max_tokens and top_p only by endpoints.",
    ),
    "on_failure": (
        ("error", USE_PROMPT),
        "When nothing usable was written: stop with the reason, or use your prompt as it is.",
    ),
}

SAMPLING = (  # kind, name, default, least, most, what it does
    (
        io.Float,
        "temperature",
        0.7,
        0,
        2,
        "Higher is bolder, lower keeps to the likely. 0: always the likeliest word.",
    ),
    (io.Int, "top_k", 20, 0, 1000, "Only so many of the likeliest words may come. 0: no limit."),
    (io.Float, "top_p", 0.8, 0, 1, "Only the likeliest words that make up this share may come. 1: all."),
    (io.Float, "min_p", 0, 0, 1, "Only words at least this likely, against the likeliest. 0: all."),
    (io.Float, "repetition_penalty", 1, 1, 2, "Over 1 avoids words that it has written. Try 1.05 for loops."),
)


def combo(name: str) -> io.Combo.Input:
    options, tooltip = CHOICES[name]
    return io.Combo.Input(name, options=list(options), default=options[0], optional=True, tooltip=tooltip)


def number(kind: type, name: str, default: float, least: float, most: float, tooltip: str) -> object:
    settings = {"default": default, "min": least, "max": most, "step": 1 if kind is io.Int else 0.01}
    return advanced(kind, name, **settings, optional=True, tooltip=tooltip)


def widgets() -> list:
    """In the order of the page; the endpoints are read anew each time."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            dynamic_prompts=True,
            tooltip="What you want to see, in a few words, English or Chinese. Text for the picture goes "
            "into double quotes.",
        ),
        io.String.Input(
            "text",
            multiline=True,
            default="",
            optional=True,
            socketless=True,
            tooltip="The description: filled in while it is written. Edit it as you like and turn on locked, "
            "and it is used as it stands.",
        ),
        io.Boolean.Input(
            "locked",
            default=False,
            optional=True,
            tooltip="On: the text above is the result, and the prompt is not read. Off: every run writes it "
            "anew. Changing prompt, seed or template by hand turns it off.",
        ),
        io.Combo.Input(
            "source",
            options=sources(),
            default=TEXT_ENCODER,
            optional=True,
            tooltip="Who writes. text encoder: Z-Image's own, without network. The others are the endpoints "
            "of your own settings file.",
        ),
        combo("template"),
        combo("language"),
        combo("mode"),
        io.String.Input(
            "fixed_terms",
            default="",
            optional=True,
            tooltip="Terms that are wanted letter by letter, separated by commas. Where one is lost, it is "
            "written once more, then your prompt is put before it. Faithful mode only names those that your "
            "prompt lacks.",
        ),
        combo("on_failure"),
        io.Boolean.Input(
            "thinking",
            default=False,
            optional=True,
            tooltip="Lets Qwen3 think before it writes: better for requests that need an answer, and several "
            "times as long. Thinking counts towards max_tokens. Not read in faithful mode.",
        ),
        io.Int.Input(
            "max_tokens",
            default=1024,
            min=16,
            max=16384,
            optional=True,
            tooltip="Most tokens that are written. 1024 are plenty without thinking; with it take 4096. "
            "Faithful mode reads it for endpoints only.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=True,
            optional=True,
            tooltip="Another seed, another description. The same seed writes the same one.",
        ),
        *(number(*each) for each in SAMPLING),
        advanced(
            io.Int,
            "variants",
            default=1,
            min=1,
            max=MOST_VARIANTS,
            optional=True,
            tooltip="How many descriptions are written, with this seed and the next ones. The first goes on; "
            "the buttons on the node take another one and lock it.",
        ),
    ]
