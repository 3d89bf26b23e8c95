"""The inputs of the edit node."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.sampling.edit_plan import AUTO, STRENGTHS
from .host.page.schema import advanced
from .sampling_inputs import guidance_range, seed, shift, steps


def required() -> list:
    return [
        io.Model.Input("model", tooltip="Z-Image Turbo, Base or omni weights, with any LoRA applied."),
        io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
        io.Vae.Input("vae", tooltip="Turns the picture into a latent and the result back."),
        io.Image.Input("image", tooltip="The picture to edit, of any size; the result has the same size."),
        io.String.Input(
            "instruction",
            multiline=True,
            dynamic_prompts=True,
            tooltip="What to change, English or Chinese: replace the fox with an apple; make the background "
            "blue; add a hat; remove the hat. Or a description of the result.",
        ),
        io.Combo.Input(
            "route",
            options=[AUTO, *STRENGTHS],
            default=AUTO,
            tooltip="How to edit. auto takes omni where the weights can, else inpaint with a mask, else "
            "flowedit where it is known what the picture shows, else img2img. The report says which and why.",
        ),
        io.Float.Input(
            "strength",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far to go back towards noise: higher changes more, 1 keeps nothing of what is "
            "repainted. 0 is what suits the route: inpaint and omni 1, flowedit 0.75, img2img 0.6.",
        ),
        steps(
            "Steps from that strength to the finished picture: 8 for Turbo, 28 to 50 for Base. "
            "flowedit calls the model for two pictures in each."
        ),
        seed("The noise: the same seed and settings give the same picture."),
    ]


def optional() -> list:
    return [
        io.String.Input(
            "source_prompt",
            default="",
            multiline=True,
            optional=True,
            tooltip="What the picture shows now, for flowedit. The instruction then changes these words. "
            "Empty: what the instruction itself says of it.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where to edit: white changes, black stays to the bit, grey changes less. The mask of "
            "Pad Image for Outpainting fits.",
        ),
        io.Image.Input("image_2", optional=True, tooltip="A second reference picture, for omni weights."),
        io.Image.Input("image_3", optional=True, tooltip="A third reference picture, for omni weights."),
        io.ClipVision.Input(
            "vision", optional=True, tooltip="SigLIP 2, which shows the references to omni weights."
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="What the result should not show, with guidance; the empty text when nothing is given.",
        ),
        shift(
            "Moves steps towards noise (higher: layout) or detail (lower). 3 is the official value.",
            optional=True,
        ),
        advanced(
            io.Float,
            "guidance_scale",
            **guidance_range(0.0),
            tooltip="Guidance for Z-Image Base: 3 to 5. 0 is off, for Turbo. It is KSampler's cfg minus 1.",
            optional=True,
        ),
        advanced(
            io.Float,
            "source_guidance_scale",
            **guidance_range(0.5),
            tooltip="flowedit with guidance: the guidance of the source prompt, much weaker than the "
            "target's.",
            optional=True,
        ),
        advanced(
            io.Int,
            "n_min",
            tooltip="flowedit: how many of the last steps are plain sampling of the target, which frees its "
            "form. 0 keeps most of the picture.",
            default=0,
            min=0,
            max=1000,
            optional=True,
        ),
        advanced(
            io.Int,
            "n_avg",
            tooltip="flowedit: noises per step. More are steadier, and as many times slower.",
            default=1,
            min=1,
            max=16,
            optional=True,
        ),
        advanced(
            io.Int,
            "grow",
            tooltip="Pixels that the mask grows to all sides; below 0 it shrinks.",
            default=4,
            min=-512,
            max=512,
            optional=True,
        ),
        advanced(
            io.Int,
            "feather",
            tooltip="Pixels over which the edge of the mask fades outwards, so that the edit has no seam.",
            default=16,
            min=0,
            max=512,
            optional=True,
        ),
    ]
