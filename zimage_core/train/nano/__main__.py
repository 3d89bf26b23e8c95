"""Train the nano model, or one stage of it.

python -m zimage_core.train.nano --state DIR [--data DIR] [--out DIR] [stage]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...config import NanoConfig
from ...model.autoencoder import AutoencoderKL
from ...model.s3dit import S3DiT
from ...model.text_encoder import Qwen3TextEncoder
from ...model.vision import VisionEncoder
from ...prompt.template import load_tokenizer
from .. import state as states
from . import (
    autoencoder,
    captions,
    control,
    edits,
    export,
    lora,
    pictures,
    text,
    tokenizer,
    transformer,
    vision,
)
from .vocabulary import write_vocabulary

log = logging.getLogger("zimage_core.train.nano")

STAGES = ("data", "autoencoder", "text", "vision", "transformer", "writing", "export", "lora", "control")


class Training:
    """The stages in their order. Each keeps its state in one folder and is skipped when it is done."""

    def __init__(self, state: Path, data: Path, out: Path, workers: int):
        self.state, self.data, self.out, self.workers = state, data, out, workers
        self.config = NanoConfig()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if workers > 1:
            torch.set_num_threads(1)  # threads share batches instead of operations; see trainer.Shards

    def drawings(self) -> tuple[list[str], torch.Tensor]:
        stems, stored = pictures.load_drawings(self.data, self.state / f"drawings-{pictures.DRAWING}.npy")
        return stems, torch.from_numpy(stored[:].copy())

    def concept_drawings(self) -> torch.Tensor:
        """[concepts,128,128,4] uint8 in the concepts' order."""
        stems, stored = self.drawings()
        return stored[[pictures.stem_index(stems, code) for code in pictures.concept_codes()]]

    def run_data(self) -> None:
        """Fetch the pictures and names, and learn the tokenizer."""
        self.drawings()
        lines = tokenizer.corpus(self.data, captions.load_concepts(self.data))
        tokenizer.train_tokenizer(lines, self.config.text_encoder.vocab_size, self.state / "tokenizer")

    def run_autoencoder(self) -> None:
        stems, drawings = self.drawings()
        seen = autoencoder.seen_drawings(stems, drawings)
        model = autoencoder.train(
            self.config.autoencoder,
            seen,
            self.state / "autoencoder",
            device=self.device,
            workers=self.workers,
        ).cpu()
        unseen = autoencoder.unseen_pictures(stems, drawings)
        before = float(autoencoder.psnr(model, unseen).mean())
        concepts = self.concept_drawings()
        autoencoder.normalise(
            model, torch.cat([pictures.on_background(concepts, c.pixel) for c in pictures.colours()])
        )
        after = float(autoencoder.psnr(model, unseen).mean())
        log.info(
            "autoencoder: PSNR on unseen emoji %.2f dB, %.2f dB after normalising the latents", before, after
        )
        save_file(model.state_dict(), self.state / "autoencoder.safetensors")

    def run_text(self) -> None:
        model = self.train_text("text", start=self.start("text"))
        save_file(model.state_dict(), self.state / "text.safetensors")

    def run_writing(self) -> None:
        """Go on with the text encoder's last layer alone: pictures stay as they are when captions change."""
        weights = load_file(self.state / "text.safetensors")
        model = self.train_text("writing", plan=text.WRITING, start=weights, features=False)
        save_file(model.state_dict(), self.state / "writing.safetensors")

    def train_text(self, stage: str, **how: Any) -> Qwen3TextEncoder:
        bpe = load_tokenizer(self.state / "tokenizer")
        concepts = captions.load_concepts(self.data)
        groups = [text.encode(bpe, group) for group in text.texts(self.data, concepts)]
        model = text.train(
            self.config.text_encoder,
            groups,
            self.state / stage,
            device=self.device,
            workers=self.workers,
            **how,
        ).cpu()
        unseen = text.encode(bpe, [text.plain(pair.caption) for pair in captions.held_out_captions(concepts)])
        log.info(
            "%s: perplexity on held-out captions %.2f, unigram %.1f",
            stage,
            text.perplexity(model, unseen),
            text.unigram_perplexity(groups[2], unseen, self.config.text_encoder.vocab_size),
        )
        return model

    def start(self, part: str) -> dict[str, torch.Tensor] | None:
        """Weights in the state's folder `start`, of an earlier version, that a part goes on from."""
        file = self.state / "start" / f"{part}.safetensors"
        return load_file(file) if file.is_file() else None

    def trained_autoencoder(self) -> AutoencoderKL:
        model = AutoencoderKL(self.config.autoencoder)
        model.load_state_dict(load_file(self.state / "autoencoder.safetensors"))
        return model.eval()

    def trained_text_encoder(self) -> Qwen3TextEncoder:
        """As it writes at last; its features are those of the first stage."""
        model = Qwen3TextEncoder(self.config.text_encoder, language_model=True)
        written = self.state / "writing.safetensors"
        model.load_state_dict(load_file(written if written.is_file() else self.state / "text.safetensors"))
        return model.eval()

    def exported_encoders(self) -> tuple[AutoencoderKL, Qwen3TextEncoder]:
        """Autoencoder and text encoder with the values that their bf16 files have."""
        encoder, text_encoder = self.trained_autoencoder(), self.trained_text_encoder()
        for part in (encoder, text_encoder):
            part.load_state_dict({k: v.bfloat16().float() for k, v in part.state_dict().items()})
        return encoder, text_encoder

    def run_vision(self) -> None:
        _, text_encoder = self.exported_encoders()
        model = vision.train(
            self.config.vision,
            self.concept_drawings(),
            captions.CaptionSet(captions.load_concepts(self.data)),
            text_encoder,
            load_tokenizer(self.state / "tokenizer"),
            self.state / "vision",
        ).encoder
        save_file(export.contiguous(model.state_dict(), torch.float32), self.state / "vision.safetensors")

    def trained_vision_encoder(self) -> VisionEncoder:
        """With the values that its bf16 file has."""
        model = VisionEncoder(self.config.vision)
        weights = load_file(self.state / "vision.safetensors")
        model.load_state_dict({k: v.bfloat16().float() for k, v in weights.items()})
        return model.eval()

    def gallery(self, encoder: AutoencoderKL, pairs: list[edits.Picture]) -> transformer.Gallery:
        """Latents and vision features of all pictures; kept in the state, since encoding takes minutes."""
        kept = self.state / "gallery.safetensors"
        if not kept.is_file():
            torch.set_num_threads(max(self.workers, 1))
            drawings, palette = self.concept_drawings(), pictures.colours()
            both = pictures.with_small(
                drawings[[p.concept for p in pairs]], drawings[[p.second for p in pairs]]
            )
            backgrounds = torch.stack([palette[p.colour].pixel for p in pairs])
            with torch.no_grad():
                rows = [
                    encoder.encode(pictures.on_background(d, c)).mode()
                    for d, c in zip(both.split(16), backgrounds.split(16), strict=True)
                ]
            sighted = self.trained_vision_encoder()
            stored = {
                "latents": transformer.latent_table(encoder, drawings),
                "pairs": encoder.to_model(torch.cat(rows)),
                "features": vision.feature_table(sighted, drawings),
            }
            torch.set_num_threads(1)
            save_file({name: rows.contiguous() for name, rows in stored.items()}, kept)
        stored = load_file(kept)
        return transformer.Gallery(stored["latents"], stored["features"], pairs, stored["pairs"])

    def run_transformer(self) -> None:
        encoder, text_encoder = self.exported_encoders()
        concepts = captions.load_concepts(self.data)
        pairs = edits.trained_pairs(concepts, transformer.PAIRS)
        drawn = edits.Edits(concepts, pairs)
        gallery = self.gallery(encoder, pairs)
        language = text_encoder, load_tokenizer(self.state / "tokenizer")
        model = transformer.train(
            self.config.transformer,
            [
                transformer.FromCaptions(
                    gallery, captions.CaptionSet(concepts), *language, transformer.BATCH, drawn
                ),
                transformer.FromReference(gallery, drawn, *language, transformer.EDITS),
            ],
            self.state / "transformer",
            device=self.device,
            workers=self.workers,
            start=self.start("transformer"),
        )
        save_file(
            export.contiguous(model.state_dict(), torch.float32), self.state / "transformer.safetensors"
        )

    def run_export(self) -> None:
        """Write the files; before the transformer is finished, with its averaged weights so far."""
        model = S3DiT(self.config.transformer)
        finished = self.state / "transformer.safetensors"
        if finished.is_file():
            model.load_state_dict(load_file(finished))
        else:
            stored = states.load(self.state / "transformer")
            if stored is None:
                raise FileNotFoundError(f"{self.state} has no transformer yet: run that stage first")
            log.warning("export: the transformer is at step %d, not at its end", stored.step)
            model.load_state_dict(stored.average)
        encoder = self.trained_autoencoder()
        drawings = self.concept_drawings()
        latents = transformer.latent_table(encoder, drawings)
        images = torch.stack([pictures.on_background(drawings, c.pixel) for c in pictures.colours()], dim=1)
        preview = export.fit_preview(latents.flatten(0, 1), images.flatten(0, 1))
        size = export.export(
            self.out,
            self.config,
            model,
            self.trained_text_encoder(),
            encoder,
            self.trained_vision_encoder(),
            self.state / "tokenizer",
            preview,
        )
        write_vocabulary(self.out / "vocabulary.json", captions.load_concepts(self.data))
        log.info("export: %.1f MB in %s", size / 1e6, self.out)

    def run_lora(self) -> None:
        """Write the greyscale LoRA beside the exported files."""
        model = S3DiT(self.config.transformer)
        model.load_state_dict(load_file(self.state / "transformer.safetensors"))
        encoder, text_encoder = self.exported_encoders()
        grey = transformer.latent_table(encoder, self.concept_drawings(), lora.greyscale)
        task = transformer.FromCaptions(
            transformer.Gallery(grey),
            captions.CaptionSet(captions.load_concepts(self.data)),
            text_encoder,
            load_tokenizer(self.state / "tokenizer"),
            lora.BATCH,
        )
        weights = lora.train(model, task, self.state / "lora", device=self.device, workers=self.workers)
        file = self.out / lora.FILE
        file.parent.mkdir(exist_ok=True)
        save_file(weights, file, export.LABEL)

    def run_control(self) -> None:
        """Write the control network that draws along edges beside the exported files."""
        model = S3DiT(self.config.transformer)
        model.load_state_dict(load_file(self.state / "transformer.safetensors"))
        encoder, text_encoder = self.exported_encoders()
        drawings = self.concept_drawings()

        def table(*changes: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            return torch.stack([transformer.latent_table(encoder, drawings, change) for change in changes])

        weights = control.train(
            model,
            table(lambda pixels: pixels, control.mirrored),
            table(control.edges, lambda pixels: control.edges(control.mirrored(pixels))),
            captions.CaptionSet(captions.load_concepts(self.data)),
            text_encoder,
            load_tokenizer(self.state / "tokenizer"),
            self.state / "control",
            device=self.device,
            workers=self.workers,
        )
        save_file(weights, self.out / control.FILE_NAME, export.LABEL)

    def results(self, stage: str) -> Path | None:
        files = {
            "data": self.state / "tokenizer" / "tokenizer.json",
            "autoencoder": self.state / "autoencoder.safetensors",
            "text": self.state / "text.safetensors",
            "vision": self.state / "vision.safetensors",
            "transformer": self.state / "transformer.safetensors",
            "writing": self.state / "writing.safetensors",
            "lora": self.out / lora.FILE,
            "control": self.out / control.FILE_NAME,
        }
        return files.get(stage)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zimage_core.train.nano", description=__doc__)
    parser.add_argument(
        "stage",
        nargs="?",
        choices=STAGES,
        help="one stage, run again if need be; all unfinished ones without",
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="folder for everything that training keeps; resumes from it"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with the unpacked npm packages (default: fetched into STATE/data)"
    )
    parser.add_argument("--out", type=Path, default=Path("models/nano"), help="where export writes")
    parser.add_argument("--workers", type=int, default=1, help="CPU threads that share each batch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    training = Training(
        arguments.state, arguments.data or arguments.state / "data", arguments.out, arguments.workers
    )
    for stage in [arguments.stage] if arguments.stage else STAGES:
        result = training.results(stage)
        if not arguments.stage and result is not None and result.is_file():
            log.info("%s: done before", stage)
            continue
        getattr(training, f"run_{stage}")()


if __name__ == "__main__":
    main()
