"""The inputs of the edit node."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.sampling.edit_plan import AUTO, STRENGTHS
from .host.page.schema import advanced
from .sampling_inputs import guidance_range, seed, shift, steps

PATTERNS = "patterns"


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
            tooltip="What to change, English or Chinese: make her smile; replace the fox with an apple; make "
            "the background blue; add a hat. Or a description of the result.",
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
            tooltip="How much may change, up to 1. 0 is automatic: 1 for inpaint and omni, 0.75 for "
            "flowedit, 0.6 for img2img. Any other value is taken as it is: 0.1 changes little.",
        ),
        steps(
            "Steps. Turbo: 8. Base: 28 to 50. All are run, whatever the strength. flowedit runs the model "
            "for two pictures in each."
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
            tooltip="What the picture shows now; the text encoder changes these words as you say. Z-Image "
            "Picture Text reads them from a picture of ComfyUI's. Empty: what the instruction says of it.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where to edit: white changes, black stays exactly as it is, grey changes in part. The "
            "mask of Pad Image for Outpainting fits.",
        ),
        io.Image.Input("image_2", optional=True, tooltip="A second reference picture, for omni weights."),
        io.Image.Input("image_3", optional=True, tooltip="A third reference picture, for omni weights."),
        io.ClipVision.Input(
            "vision", optional=True, tooltip="SigLIP 2, which shows the references to omni weights."
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="What the result should not show, with guidance. Leave it open if unsure.",
        ),
        shift(
            "Higher: better layout. Lower: more detail. Leave it at 3.",
            optional=True,
        ),
        advanced(
            io.Float,
            "guidance_scale",
            **guidance_range(0.0),
            tooltip="0 for Turbo, 3 to 5 for Z-Image Base. It is KSampler's cfg minus 1 (cfg 5 = 4 here).",
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
            tooltip="flowedit: how many of the last steps sample the target freely. More changes shapes "
            "more; 0 keeps most of the picture.",
            default=0,
            min=0,
            max=1000,
            optional=True,
        ),
        advanced(
            io.Int,
            "n_avg",
            tooltip="flowedit: noises per step. More are steadier, and as many times slower. Leave it at 1.",
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
        io.String.Input(
            "target_prompt",
            default="",
            multiline=True,
            optional=True,
            tooltip="What the picture shall show. Empty: it is written from source_prompt and instruction, "
            "and shown here. Your own words are used as they stand. Omni weights do not read it.",
        ),
        advanced(
            io.Combo,
            "writer",
            options=[AUTO, PATTERNS],
            default=AUTO,
            optional=True,
            tooltip="Who writes the target. auto: the text encoder where it can and source_prompt is given, "
            "else fixed sentence patterns. patterns: only these, as older versions did.",
        ),
    ]
