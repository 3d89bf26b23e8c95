"""What Z-Image Train LoRA is asked for."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.train.presets import PRESETS
from .host.loading import lora as files
from .host.page.schema import advanced
from .training_data import DATA

NONE = "none"
MOST_STEPS = 100_000


def _whole(name: str, **settings: object) -> io.Input:
    """A number from 0, folded away."""
    return advanced(io.Int, name, min=0, **settings)


def inputs() -> list[io.Input]:
    """The first are in sight, the others folded away."""
    return [
        io.Model.Input(
            "model",
            tooltip="The Z-Image to train on, in bf16, fp8, int8 or GGUF as it is loaded, with the LoRAs on "
            "it. It stays as it is. Base learns best; for Turbo see adapter.",
        ),
        io.Clip.Input("clip", tooltip="Its text encoder, which reads the captions."),
        io.Vae.Input("vae", tooltip="Its autoencoder, which reads the pictures."),
        DATA.Input("data", tooltip="The pictures, from Z-Image Training Data."),
        io.String.Input(
            "name",
            default="my lora",
            tooltip="Of the run and of the LoRA's file: letters, digits, spaces and - _ . + between them. "
            "The same name goes on with the run, another one begins a new one.",
        ),
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            default="concept",
            tooltip="A person or figure, a style, or a thing. It sets steps, rank and noise.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=MOST_STEPS,
            tooltip="How long to train. 0: by preset and number of pictures, 500 to 3000. A finished run "
            "goes on when this is raised.",
        ),
        io.String.Input(
            "trigger",
            default="",
            tooltip="A word for what is new, such as ohwx, put in front of captions that lack it. Write it "
            "into prompts later. Empty: the captions alone.",
        ),
        io.String.Input(
            "sample_prompts",
            multiline=True,
            default="",
            tooltip="Pictures that are drawn on the way and shown here, a prompt a line, at most 8. They "
            "take as long as any pictures.",
        ),
        io.Boolean.Input(
            "save",
            default=False,
            tooltip="Also put the finished LoRA into models/loras, where LoRA loaders find it; over no file "
            "that this run did not make. Off: it stays in output/zimage_training.",
        ),
        advanced(
            io.Float,
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.00001,
            round=False,
            tooltip="0: 0.0001 for the full-size model. Lower it when the loss rises or pictures break, "
            "raise it when nothing is learned.",
        ),
        _whole(
            "rank",
            default=0,
            max=256,
            tooltip="Size of the LoRA. 0: by preset, 16 or 32. Higher holds more and makes a larger file.",
        ),
        advanced(
            io.Int,
            "batch",
            default=1,
            min=1,
            max=64,
            tooltip="Pictures of a step. More is steadier, slower, and takes more memory.",
        ),
        advanced(
            io.Int,
            "resolution",
            default=1024,
            min=64,
            max=2048,
            step=16,
            tooltip="Side of a square picture in pixels; others get as many pixels in their own shape. "
            "Lower is faster and takes less memory: 512 and 768 work well.",
        ),
        advanced(
            io.String,
            "prior_captions",
            multiline=True,
            default="",
            tooltip="What the model shall go on drawing as before, a caption a line. It draws each once, and "
            "learns from these pictures beside yours. Empty: only yours.",
        ),
        advanced(
            io.Float,
            "prior_share",
            default=0.5,
            min=0.0,
            max=0.9,
            step=0.05,
            tooltip="Share of these pictures in each step. Higher keeps more of the old and learns slower.",
        ),
        _whole(
            "sample_every",
            default=250,
            max=MOST_STEPS,
            tooltip="Steps between samples. 0: only before and after.",
        ),
        _whole(
            "save_every",
            default=250,
            max=MOST_STEPS,
            tooltip="Steps between states from which a run that broke off goes on; each two minutes there "
            "is one anyway. The last two are kept.",
        ),
        _whole(
            "run_seed",
            default=0,
            max=0xFFFFFFFF,
            tooltip="Of the order of pictures and of noise: the same one trains the same LoRA.",
        ),
        advanced(
            io.Combo,
            "adapter",
            options=[NONE, *files.listed()],
            default=NONE,
            tooltip="For Turbo: zimage_turbo_training_adapter from models/loras. It is under the model while "
            "it trains, and not in the LoRA. Without it Turbo unlearns its few steps.",
        ),
    ]
