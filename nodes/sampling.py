"""Turbo sampling: the official grid, in one node or as SIGMAS for custom graphs."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.sampling.schedule import flow_sigmas
from .host.page.run_notes import collected, with_notes
from .host.page.schema import schema
from .host.running.sampling import sample_euler
from .sampling_inputs import seed, shift, steps

NOTHING_SAMPLED = "denoise is 0: nothing is sampled, the latent comes back as it was."


def grid_inputs() -> list:
    """steps, shift and denoise, the same in both nodes."""
    return [
        steps("Steps. Turbo: 8; 4 to 6 for drafts, more than 9 gain little. Base: 28 to 50."),
        shift("Higher: better layout. Lower: more detail. Leave it at 3, for every size."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="1 starts from pure noise. Below 1 keeps some of the given latent, for image to image: "
            "0.6 changes a lot, 0.3 little. The steps are spread over what remains.",
        ),
    ]


class ZImageTurboSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageTurboSampler",
            display_name="Z-Image Turbo Sampler",
            category="Z-Image/sampling",
            description="The official Turbo sampling: 8 Euler steps without guidance.",
            search_aliases=["ksampler", "z-image sampler", "zit sampler"],
            inputs=[
                io.Model.Input("model", tooltip="Z-Image Turbo, with any LoRA applied."),
                # Without a display name of its own: pages show that one in every language.
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The encoded prompt. Turbo has no negative.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent, or an encoded picture with denoise below 1.",
                ),
                seed("The starting noise: the same seed and settings give the same picture."),
                *grid_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The finished latent, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        conditioning: list,
        latent_image: dict,
        seed: int,
        steps: int,
        shift: float,
        denoise: float,
    ) -> io.NodeOutput:
        sigmas = flow_sigmas(steps, shift, denoise)
        if len(sigmas) == 0:
            return with_notes(NOTHING_SAMPLED, latent_image.copy())
        with collected() as found:
            latent = sample_euler(model, conditioning, latent_image, seed, sigmas)
        return with_notes(found.text, latent)


class ZImageSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageSigmas",
            display_name="Z-Image Sigmas",
            category="Z-Image/sampling",
            description="The official sigma grid, for SamplerCustom and SamplerCustomAdvanced.",
            search_aliases=["scheduler", "sigmas", "flow match euler"],
            inputs=grid_inputs(),
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="From 1 (pure noise) down to 0; 8 steps at shift 3 are Turbo's grid.",
                )
            ],
        )

    @classmethod
    def execute(cls, steps: int, shift: float, denoise: float) -> io.NodeOutput:
        sigmas = flow_sigmas(steps, shift, denoise)
        return with_notes("" if len(sigmas) else NOTHING_SAMPLED, sigmas)
