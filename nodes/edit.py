"""An instruction and a picture -> the edited picture, by the way that the weights allow."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..zimage_core.prompt.edit_target import GIVEN, edit_prompts
from ..zimage_core.prompt.instruction import Prompts
from ..zimage_core.prompt.syntax import whole_letters
from ..zimage_core.sampling.edit_plan import AUTO, plan
from .edit_inputs import PATTERNS, optional, required
from .host.page.progress import show_text
from .host.page.run_notes import collected
from .host.page.saved_workflow import put_widgets
from .host.page.schema import schema
from .host.running.edit import Parts, Sampling, edit, has_omni_keys, soft_mask
from .host.writing.edit_target import target_writer

WIDGETS = (  # in the order in which the page saves them
    "instruction", "route", "strength", "steps", "seed", "control_after_generate", "source_prompt", "shift",
    "guidance_scale", "source_guidance_scale", "n_min", "n_avg", "grow", "feather", "target_prompt", "writer",
)  # fmt: skip


class ZImageEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageEdit",
            display_name="Z-Image Edit",
            category="Z-Image/image",
            description="Edits a picture by an instruction in English or Chinese, in one node: with omni "
            "weights, by FlowEdit, by inpainting or by image to image. Outside of a mask nothing changes.",
            has_intermediate_output=True,  # the comparison is shown again after a page was loaded again
            search_aliases=["inpaint", "img2img", "flowedit", "image edit", "outpaint", "omni", "instruct"],
            inputs=[*required(), *optional()],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The edited latent; sides are rounded up to multiples of 16 pixels.",
                ),
                io.Image.Output(
                    display_name="image",
                    tooltip="The edited picture in the size of the given one. Where the soft mask is black "
                    "it stays exactly as it was.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Which route was taken and why, the prompts, and what was not used.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        clip: object,
        vae: object,
        image: object,
        instruction: str,
        route: str,
        strength: float,
        steps: int,
        seed: int,
        source_prompt: str = "",
        mask: object = None,
        image_2: object = None,
        image_3: object = None,
        vision: object = None,
        negative: list | None = None,
        shift: float = 3.0,
        guidance_scale: float = 0.0,
        source_guidance_scale: float = 0.5,
        n_min: int = 0,
        n_avg: int = 1,
        grow: int = 4,
        feather: int = 16,
        target_prompt: str = "",
        writer: str = "auto",
    ) -> io.NodeOutput:
        omni, image = has_omni_keys(model), image[..., :3]
        soft = soft_mask(image, mask, grow, feather)
        more = {"image_2": image_2, "image_3": image_3, "vision": vision}
        more = {name: value for name, value in more.items() if value is not None}
        instruction = whole_letters(instruction)
        source, target = (whole_letters(text).strip() for text in (source_prompt, target_prompt))
        if omni and route in (AUTO, "omni"):
            prompts = Prompts(None, instruction, None)
            who = "Not used: target_prompt; omni weights read the instruction." if target else None
        elif target:
            prompts = Prompts(source or None, target, GIVEN)
            who = "Target: target_prompt as it stands; the instruction is not read."
        else:
            write = None if writer == PATTERNS else target_writer(clip, cls.hidden.unique_id)
            prompts, who = edit_prompts(instruction, source, write)
        asked = prompts.target if prompts.kind == GIVEN else instruction
        black = mask is not None and soft is None
        chosen = plan(route, asked, prompts, strength, omni, soft is not None, tuple(more), black)
        report = "\n".join(filter(None, (chosen.report(), who)))
        show_text(cls.hidden.unique_id, report)
        run = Sampling(
            seed=seed,
            steps=steps,
            shift=shift,
            guidance_scale=guidance_scale,
            source_guidance_scale=source_guidance_scale,
            negative=negative,
            n_min=n_min,
            n_avg=n_avg,
        )
        references = [more[name] for name in ("image_2", "image_3") if name in more]
        parts = Parts(model, clip, vae, references, vision)
        with collected(report) as found:
            latent, edited = edit(parts, image, soft, chosen, run)
        report = found.text
        shown = {
            "before": ui.PreviewImage(image[:1]).values,
            "after": ui.PreviewImage(edited[:1]).values,
            "text": (report,),
        }
        if chosen.route != "omni" and not prompts.derived and prompts.kind != GIVEN:
            shown["target"] = made = (prompts.target, instruction, source_prompt)
            put_widgets(cls.hidden, WIDGETS, {"target_prompt": prompts.target}, {"zimage_target": made})
        return io.NodeOutput(latent, edited, report, ui=shown)
