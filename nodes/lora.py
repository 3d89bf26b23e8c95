"""LoRAs on MODEL and CLIP, chosen in slots or named in the prompt."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.prompt.lora_tags import STRONGEST, LoraTag, LoraTagError, without_lora_tags
from ..zimage_core.prompt.syntax import whole_letters
from .host.loading import lora as files
from .host.page.run_notes import with_notes
from .host.page.schema import advanced, schema, supported
from .host.running.lora import LoraUse, with_loras
from .part_loaders import CATEGORY

NONE = "none"
SLOTS, IN_SIGHT = range(1, 5), 2  # the others are folded away


def _slot(number: int) -> list[io.Input]:
    """The two inputs of a slot; the first two slots are always in sight."""
    make = advanced if number > IN_SIGHT else lambda kind, name, **said: supported(kind.Input, name, **said)
    return [
        make(
            io.Combo,
            f"lora_{number}",
            options=[NONE, *files.listed()],
            default=NONE,
            tooltip="A file of models/loras, of any trainer: LoRA, LoHa, LoKr or DoRA. none "
            "leaves the slot empty.",
        ),
        make(
            io.Float,
            f"strength_{number}",
            default=1.0,
            min=-STRONGEST,
            max=STRONGEST,
            step=0.05,
            tooltip="How strong it is on model and clip: 1 as it was trained, 0 off. Below 0 it takes away "
            "what it brings; the training adapter of Turbo is used at -1.",
        ),
    ]


class ZImageLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageLoraLoader",
            display_name="Z-Image LoRA Loader",
            category=CATEGORY,
            description="Puts up to four LoRAs on a Z-Image MODEL, and any number named in the prompt as "
            "<lora:name:0.8>. Reads the names of every trainer, and says how many keys of each "
            "file are used.",
            search_aliases=[
                "lora",
                "load lora",
                "lora stack",
                "power lora",
                "lycoris",
                "lokr",
                "dora",
                "trigger words",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A Z-Image MODEL from any loader, with or without Z-Image Accelerate."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder, for files that change it too. Most Z-Image LoRAs do not.",
                ),
                *(item for number in SLOTS for item in _slot(number)),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    dynamic_prompts=True,
                    tooltip="Typed or linked. <lora:name:0.8> in it loads that file, with or without "
                    "folder and extension; a third number is the strength on clip. The output prompt is the "
                    "rest of it.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with all of them."),
                io.Clip.Output(
                    display_name="clip", tooltip="The CLIP with all of them; nothing where none is linked."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many keys of each file are used, what the others are, and its trigger "
                    "words.",
                ),
                io.String.Output(
                    display_name="prompt",
                    tooltip="The prompt without its <lora:...> tags, for Z-Image Text Encode.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, **inputs: object) -> bool:
        """Names are looked up when the node runs: graphs of another system separate folders otherwise."""
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> list:
        """The files' sizes and times. Of names that come by links none is known yet: those of all files."""
        named = [inputs.get(name, "") for name in ("prompt", *(f"lora_{number}" for number in SLOTS))]
        if None in named:
            return files.state_of(files.listed())
        try:
            return files.state_of(tag.name for tag in _wanted(inputs)[1])
        except LoraTagError as error:
            return [str(error)]

    @classmethod
    def execute(cls, model: object, clip: object | None = None, **inputs: object) -> io.NodeOutput:
        prompt, wanted = _wanted(inputs)
        uses = [LoraUse(files.find(tag.name), files.read(tag.name), tag.model, tag.clip) for tag in wanted]
        model, clip, said = with_loras(model, clip, uses)
        report = whole_letters("\n".join(said) or "No LoRA is chosen, here or in the prompt.")
        return with_notes(report, model, clip, report, prompt)


def _wanted(inputs: dict) -> tuple[str, list[LoraTag]]:
    """The prompt without tags, and all that is to be loaded. Raises LoraTagError."""
    prompt, tags = without_lora_tags(inputs.get("prompt") or "")
    chosen = []
    for number in SLOTS:
        name = inputs.get(f"lora_{number}", NONE)
        if name not in (NONE, "", None):
            strength = _strength(inputs, f"strength_{number}")
            chosen.append(LoraTag(str(name), strength, strength))
    return prompt, [tag for tag in (*chosen, *tags) if tag.model or tag.clip]


def _strength(inputs: dict, widget: str) -> float:
    """1 where it is not known yet. Raises LoraTagError: the host checks no range of this node."""
    strength = inputs.get(widget)
    if strength is None:
        return 1.0
    if not abs(strength) <= STRONGEST:
        raise LoraTagError(f"{widget} is {strength}: expected a number from -{STRONGEST:g} to {STRONGEST:g}.")
    return strength
