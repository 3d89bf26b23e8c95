"""Control pictures on a MODEL: Z-Image-Fun-Controlnet-Union of every version."""

from __future__ import annotations

from comfy_api.latest import io

from .host.page.schema import advanced, schema
from .host.running.control import ZImageControlPatch, controlled
from .parts import CONTROL


class ZImageControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def percent(name: str, default: float, tooltip: str) -> io.Float.Input:
            return advanced(
                io.Float,
                name,
                default=default,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip=tooltip,
            )

        return schema(
            node_id="ZImageControl",
            display_name="Z-Image Control",
            category="Z-Image/model",
            description="Steers the picture by edges, depth, a pose or another control picture, and repaints "
            "masked parts, as the ControlNet was trained to. Chain several to use them together.",
            search_aliases=["controlnet", "apply controlnet", "fun controlnet", "inpaint", "canny", "depth"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Z-Image MODEL from the Z-Image loader, or any other after Z-Image Accelerate.",
                ),
                CONTROL.Input("control", tooltip="From the Z-Image Control Loader."),
                io.Vae.Input("vae", tooltip="The VAE that decodes the result; it encodes the pictures here."),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much the control adds. 0.65 to 0.8 suits version 1.0, 0.75 to 0.9 the later "
                    "ones; more follows the control picture at the cost of natural detail. 0 is off.",
                ),
                percent(
                    "start_percent", 0.0, "Where the control starts, as a share of the way from noise (0)."
                ),
                percent(
                    "end_percent",
                    1.0,
                    "Where the control ends: 1 is at the picture. Less leaves the detail to the model, and "
                    "the rest runs as fast as without control.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The control picture: edges, depth, pose, lines, greyscale, or a blurred picture "
                    "for Tile. Resized and cropped to the latent's size. Not needed to inpaint only.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is repainted, black stays. Needs inpaint_image, and version 2.0 or later.",
                ),
                io.Image.Input(
                    "inpaint_image",
                    optional=True,
                    tooltip="The picture of which the masked part is repainted. Needs mask.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The same MODEL with the control; any sampler takes it."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        control: object,
        vae: object,
        strength: float,
        start_percent: float,
        end_percent: float,
        image: object = None,
        mask: object = None,
        inpaint_image: object = None,
    ) -> io.NodeOutput:
        if vae is None:
            raise ValueError("vae is empty: the checkpoint that it comes from has none. Use a VAE loader.")
        if (mask is None) != (inpaint_image is None):
            there, missing = ("inpaint_image", "mask") if mask is None else ("mask", "inpaint_image")
            raise ValueError(f"{there} is connected and {missing} is not: inpainting needs both")
        if image is None and inpaint_image is None:
            raise ValueError("connect image, or inpaint_image and mask: there is nothing to steer by")
        if inpaint_image is not None and not control.model.config.inpaints:
            raise ValueError(
                "this control cannot inpaint, as version 1.0 cannot: disconnect inpaint_image and mask, or "
                "load version 2.0 or later"
            )
        if not strength or start_percent >= end_percent:
            return io.NodeOutput(model)
        patch = ZImageControlPatch(control, vae, image, strength, inpaint_image, mask)
        patch.percents = (start_percent, end_percent)
        return io.NodeOutput(controlled(model, patch))
