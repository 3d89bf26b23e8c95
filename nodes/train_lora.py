"""MODEL, CLIP, VAE and pictures -> the MODEL with a LoRA of them."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .host.loading import lora as files
from .host.page.errors import bare_names
from .host.page.progress import show_text
from .host.page.schema import schema
from .host.training.run_folder import RunError, RunFolder
from .train_lora_inputs import NONE, inputs
from .training_data import CATEGORY

MOST_PROMPTS = 8


class ZImageTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ZImageTrainLora",
            display_name="Z-Image Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on pictures of yours, and gives the MODEL with it. Losses, samples "
            "and time left are shown while it runs. Cancel keeps what there is; the next run goes on.",
            search_aliases=["train", "training", "finetune", "fine-tune", "dreambooth", "lora training"],
            is_output_node=True,
            inputs=inputs(),
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with the LoRA on it, at 1."),
                io.String.Output(
                    display_name="lora",
                    tooltip="The LoRA's file: its name in models/loras where it was saved, else below the "
                    "output folder.",
                ),
                io.String.Output(display_name="report", tooltip="What was trained on, and how."),
                io.Image.Output(display_name="samples", tooltip="A row of samples a prompt, before to now."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool:
        """The file is looked up when the node runs: graphs of another system separate folders otherwise."""
        return True

    @classmethod
    def execute(
        cls,
        model: object,
        clip: object,
        vae: object,
        data: object,
        name: str,
        preset: str,
        steps: int,
        trigger: str,
        sample_prompts: str,
        save: bool,
        learning_rate: float,
        rank: int,
        batch: int,
        resolution: int,
        prior_captions: str,
        prior_share: float,
        sample_every: int,
        save_every: int,
        run_seed: int,
        adapter: str,
    ) -> io.NodeOutput:
        from .host.page.training import Live, sample_sheet, shown_of  # take long to import
        from .host.training.train import Wanted, train

        bare_names()
        folder, prompts = RunFolder(name), _lines(sample_prompts)
        if len(prompts) > MOST_PROMPTS:
            raise RunError(f"{len(prompts)} sample prompts: expected at most {MOST_PROMPTS} lines.")
        wanted = Wanted(
            name=name,
            preset=preset,
            steps=steps,
            learning_rate=learning_rate,
            rank=rank,
            batch=batch,
            resolution=resolution,
            trigger=trigger,
            prior=_lines(prior_captions),
            prior_share=prior_share,
            sample_prompts=prompts,
            sample_every=sample_every,
            save_every=save_every,
            seed=run_seed,
            save=save,
            adapter=None if adapter == NONE else files.path_of(adapter),
        )
        node = cls.hidden.unique_id
        made = train(model, clip, vae, data, wanted, Live(node, folder, prompts, max(steps, 1)))
        report = "\n".join(made.said)
        show_text(node, report)
        shown = ui.PreviewText(report).as_dict() | {"training": (shown_of(folder),)}
        return io.NodeOutput(made.model, made.listed, report, sample_sheet(folder, prompts), ui=shown)


def _lines(text: str) -> tuple[str, ...]:
    """Each once."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
