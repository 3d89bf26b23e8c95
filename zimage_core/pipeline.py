"""Prompt -> picture without ComfyUI: Turbo in 8 steps, Base with guidance, omni weights with references."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .acceleration.parallel import Parallel
from .acceleration.sharding import shard
from .acceleration.small_card import SmallCard, count_tokens, left_on
from .acceleration.step_cache import StepCache
from .acceleration.tiles import bytes_for
from .conditions.control import Control
from .conditions.packed import in_one_pass, velocities
from .conditions.reference_image import as_image, prepare_reference
from .conditions.references import References
from .conditions.regions import Region, Regions, region
from .config import REFERENCE_MAX_TOKENS, SHIFT, TURBO_STEPS
from .model.arithmetic import compute_dtype
from .model.autoencoder import AutoencoderKL
from .model.hooks import BlockHook
from .model.memo import RunMemo
from .model.s3dit import Condition, Prompt, S3DiT
from .model.sequence import Captions
from .model.text_encoder import Qwen3TextEncoder
from .model.vision import VisionEncoder
from .prompt.template import TEMPLATE, apply_template, load_tokenizer, split_prompt, tokenise_texts
from .sampling.guidance import Guidance
from .sampling.schedule import euler_step, flow_sigmas
from .weights import load_autoencoder, load_text_encoder, load_transformer, load_vision_encoder

log = logging.getLogger(__name__)

Progress = Callable[[int, int, Tensor], None]


@dataclass
class PipelineOutput:
    """What a call gives.

    images: PIL images, or a tensor [B, 3, H, W] in [0, 1] ("pt"), or scaled latents [B, 16, h, w] ("latent").
    """

    images: Any


class ZImagePipeline:
    """The four parts of a Z-Image model, for omni weights five, run as the reference runs them."""

    def __init__(
        self,
        transformer: S3DiT,
        text_encoder: Qwen3TextEncoder,
        autoencoder: AutoencoderKL,
        tokenizer: Any,
        vision: VisionEncoder | None = None,
    ) -> None:
        wide, needed = text_encoder.config.hidden_size, transformer.config.cap_feat_dim
        if wide != needed:
            raise ValueError(
                f"the text encoder is {wide} wide, the transformer takes {needed}: they are of two models"
            )
        self.transformer, self.text_encoder = transformer, text_encoder
        self.autoencoder, self.tokenizer, self.vision = autoencoder, tokenizer, vision
        self.card: SmallCard | None = None
        self.parallel: Parallel | None = None
        self.sharded = False

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, torch_dtype: torch.dtype | None = None
    ) -> ZImagePipeline:
        """A folder in diffusers' layout: transformer/, text_encoder/, vae/, tokenizer/, of omni siglip/."""
        folder = Path(path)
        parts = [folder / name for name in ("transformer", "text_encoder", "vae", "tokenizer")]
        if missing := [part.name for part in parts if not part.is_dir()]:
            raise FileNotFoundError(
                f"{folder} lacks the folders {', '.join(missing)} of diffusers; from_files reads single files"
            )
        vision = folder / "siglip"
        return cls.from_files(*parts, torch_dtype, vision if vision.is_dir() else None)

    @classmethod
    def from_files(
        cls,
        transformer: str | os.PathLike,
        text_encoder: str | os.PathLike,
        autoencoder: str | os.PathLike,
        tokenizer: str | os.PathLike,
        torch_dtype: torch.dtype | None = None,
        vision: str | os.PathLike | None = None,
    ) -> ZImagePipeline:
        """Single files of any dialect (folders work too) and the folder of the tokenizer."""
        return cls(
            load_transformer(transformer, dtype=torch_dtype),
            load_text_encoder(text_encoder, dtype=torch_dtype),
            load_autoencoder(autoencoder, dtype=torch_dtype),
            load_tokenizer(tokenizer),
            None if vision is None else load_vision_encoder(vision, dtype=torch_dtype),
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.card.device if self.card else self.transformer.x_pad_token.device

    def _computes_in(self, part: nn.Module) -> torch.dtype:
        return compute_dtype(next(part.parameters()).dtype, self.device)

    def enable_streaming(self, vram: str | int, device: torch.device | str = "cuda") -> ZImagePipeline:
        """For cards that the model does not fit: pictures are the same to the bit, in at most `vram`.

        vram: bytes, or a text such as "6GB", of what is free on the card. The parts take turns there; blocks
        that do not fit stay in the computer's memory and are copied while the one before them computes.
        Where the two sides of guidance do not fit at once they go one after the other: near, not to the bit.
        What the vision encoder and control networks need comes whole. Where a picture needs it, the
        autoencoder decodes in tiles, which is near to the whole and not equal to it; the log says so.
        Raises ValueError for a size that is none; a call raises it where the picture is too large for it.
        """
        card = SmallCard(vram, torch.device(device))
        if self.card:
            self.card.leave()
        self.card = card
        return self

    def enable_parallel(
        self, group: Any = None, sharded: bool = False, device: torch.device | str | None = None
    ) -> ZImagePipeline:
        """Each picture is drawn by all processes of a torch.distributed group; None: by all there are.

        Every process has the parts of the model and makes the same calls; each gets the whole picture, which
        begins with the first one's noise. With streaming, tiles of the autoencoder are shared out too.
        sharded: each process holds its part of the transformer's weights, on `device`; blocks come together
        as they run. The other parts take turns in what is left there. Nothing may be on a card before.
        Raises ValueError where there is no group, for more processes than heads, and for sharded weights that
        are streamed.
        """
        parallel = Parallel(group)
        parallel.check(self.transformer)
        if sharded and self.card:
            raise ValueError("weights are streamed, or each process holds a part of them: not both")
        if sharded:
            where = torch.device(device or self.device)
            shard(self.transformer, where.type, self._computes_in(self.transformer), group, trains=False)
            self.card, self.sharded = SmallCard(left_on(where), where), True
        self.parallel = parallel
        return self

    def to(self, device: torch.device | str) -> ZImagePipeline:
        """Raises ValueError while weights are streamed."""
        if self.card:
            raise ValueError("streaming is enabled: weights stay where they are, and go to the card in turns")
        for part in (self.transformer, self.text_encoder, self.autoencoder, self.vision):
            if part is not None:
                part.to(device)
        return self

    @torch.no_grad()
    def encode_prompts(
        self,
        prompts: list[str],
        max_tokens: int | None = REFERENCE_MAX_TOKENS,
        references: int = 0,
        system_prompt: str = "",
        template: str = TEMPLATE,
    ) -> Captions:
        """Prompts -> caption features; the log says what is cut off.

        max_tokens: of the templated prompt; None cuts nothing.
        references: how many images stand before the prompt.
        system_prompt: a turn before the prompt; not with references.
        template: another text around {prompt}; not with references.
        """
        if references:
            texts = [split_prompt(prompt, references)[references] for prompt in prompts]
        else:
            texts = [apply_template(prompt, system_prompt, template) for prompt in prompts]
        tokens = tokenise_texts(self.tokenizer, texts, max_tokens)
        for prompt, cut in zip(prompts, tokens.cut, strict=True):
            if cut:
                log.warning("prompt cut at %s tokens, %s left out: %.60s...", max_tokens, cut, prompt)
        ids, mask = tokens.input_ids.to(self.device), tokens.mask.to(self.device)
        with self._text_encoder(ids.numel()):
            return Captions(self.text_encoder(ids, mask), tuple(mask.sum(dim=-1).tolist()))

    def _text_encoder(self, tokens: int) -> AbstractContextManager:
        return self.card.text_encoder(self.text_encoder, tokens) if self.card else nullcontext()

    def _whole(self, part: Any, activations: int = 0) -> AbstractContextManager:
        return self.card.whole(part, activations) if self.card else nullcontext()

    @torch.no_grad()
    def encode_references(
        self, images: list[Any], area: int | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Reference images -> their latents, the other segments' features, and their siglip features.

        area: pixels that those of more than a megapixel get instead of one megapixel.
        """
        if self.transformer.config.siglip_feat_dim is None or self.vision is None:
            lacking = "omni weights (siglip_*)" if self.vision else "omni weights and their vision encoder"
            raise ValueError(f"reference images need {lacking}: this pipeline has none")
        pictures = [prepare_reference(as_image(image), area=area) for image in images]
        largest = max(p.encoded.shape[1] * p.encoded.shape[2] for p in pictures)
        with self._whole(self.autoencoder, bytes_for(self.autoencoder, largest)):
            dtype = self._computes_in(self.autoencoder)
            pixels = [(2 * p.encoded.movedim(-1, 1) - 1).to(self.device, dtype) for p in pictures]
            latents = [self.autoencoder.to_model(self.autoencoder.encode(p).mode()) for p in pixels]
        count = len(images)
        segments = split_prompt("", count)
        segments.pop(count)  # the prompt's
        contexts = []
        for segment in segments:
            ids = tokenise_texts(self.tokenizer, [segment]).input_ids.to(self.device)
            with self._text_encoder(ids.numel()):
                contexts.append(self.text_encoder(ids))
        with self._whole(self.vision):
            siglip = [self.vision.features(p.seen.to(self.device)) for p in pictures]
        return latents, contexts, siglip

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = TURBO_STEPS,
        guidance_scale: float = 0.0,
        cfg_normalization: float | bool = 0.0,
        cfg_truncation: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        shift: float = SHIFT,
        output_type: str = "pil",
        callback: Progress | None = None,
        max_sequence_length: int | None = REFERENCE_MAX_TOKENS,
        image: Any = None,
        regions: Sequence[tuple[str | list[str], Tensor]] = (),
        controls: Sequence[Control] = (),
        system_prompt: str = "",
        template: str = TEMPLATE,
        step_cache: bool = False,
    ) -> PipelineOutput:
        """Pictures of one or more prompts.

        negative_prompt: one or as many as prompts; the empty text by default. Read with guidance only.
        num_inference_steps: 8 for Turbo, 28 to 50 for Base.
        guidance_scale: 0 for Turbo, 3 to 5 for Base; ComfyUI's cfg is one more.
        cfg_normalization: the guided velocity has at most this many times the positive's norm; 0 is off.
        cfg_truncation: guidance ends once 1 - sigma exceeds it.
        height, width: pixels, multiples of 8; 1024, or those of the last reference image.
        num_images_per_prompt: pictures of each prompt, one after the other.
        generator: of the starting noise; a list has one for each picture.
        latents: the starting noise itself, [B, 16, height / 8, width / 8].
        shift: of the sigma grid; 3 is the official value.
        output_type: "pil", "pt" or "latent"; see PipelineOutput.
        callback(step, steps, latents): called after each step.
        max_sequence_length: tokens after which a prompt is cut; None cuts nothing.
        image: reference image or images for omni weights, PIL or [H, W, 3] in [0, 1]; each prompt sees them.
        regions: pairs of a prompt (or one for each prompt) and where it counts, [h, w] in 0 to 1, any size.
        controls: control networks with their pictures' latents; they steer both sides of guidance.
        system_prompt, template: see encode_prompts; for the negative prompt too.
        step_cache: six steps of ten are computed where they are 16 or more; the log says how many were.
        Raises ValueError when counts, sizes or parts do not go together.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        guidance = Guidance(guidance_scale, cfg_truncation, float(cfg_normalization))
        images = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
        references = None
        if images:
            references = self.encode_references(images, height * width if height and width else None)
            own = (self.autoencoder.config.downscale * side for side in references[0][-1].shape[-2:])
            height, width = (asked or side for asked, side in zip((height, width), own, strict=True))
        height, width = height or 1024, width or 1024

        def encoded(texts: list[str]) -> Captions:
            captions = self.encode_prompts(texts, max_sequence_length, len(images), system_prompt, template)
            return captions.repeated(num_images_per_prompt)

        def condition(captions: Captions) -> Condition:
            prompt = Prompt(captions)
            return prompt if references is None else References.of(prompt, *references)

        positive = negative = condition(encoded(prompts))
        if guidance.scale > 0:
            unwanted = negative_prompt or ""
            negatives = [unwanted] * len(prompts) if isinstance(unwanted, str) else list(unwanted)
            if len(negatives) != len(prompts):
                raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
            negative = condition(encoded(negatives))
        if regions:
            if references:
                raise ValueError("prompts for regions and reference images cannot go together")
            placed = []
            for texts, weight in map(region, regions):
                placed.append(
                    Region(encoded([texts] * len(prompts) if isinstance(texts, str) else texts), weight)
                )
            positive = Regions(positive, placed)
        shape = self._latent_shape(len(prompts) * num_images_per_prompt, height, width)
        x = self._noise(shape, generator) if latents is None else latents.float().to(self.device)
        if tuple(x.shape) != shape:
            raise ValueError(f"latents have shape {tuple(x.shape)}, {width}x{height} pixels need {shape}")
        x = self.parallel.of_first(x) if self.parallel else x
        sigmas = flow_sigmas(num_inference_steps, shift).tolist()
        cache = StepCache(sigmas, [guidance.active(s) for s in sigmas[:-1]]) if step_cache else None
        x = self._sample(x, positive, negative, guidance, sigmas, controls, callback, cache)
        return PipelineOutput(self._output(x, output_type))

    def _sample(
        self,
        x: Tensor,
        positive: Condition,
        negative: Condition,
        guidance: Guidance,
        sigmas: list[float],
        controls: Sequence[Control],
        callback: Progress | None,
        cache: StepCache | None,
    ) -> Tensor:
        """Euler steps from noise x down the sigmas."""
        dtype, memo = self._computes_in(self.transformer), RunMemo()
        shared = [self.parallel] if self.parallel else []
        hooks: Sequence[BlockHook] = [*shared, *controls]
        network, sides = self.transformer, [positive, negative] if guidance.scale > 0 else [positive]
        alone, both = (in_one_pass(each, network, memo) for each in ([positive], sides))

        def predicted() -> Tensor:
            guided = guidance.active(sigma)
            given = {"hooks": hooks, "memo": memo}
            found = velocities(both if guided else alone, network, x.to(dtype), timesteps, **given)
            return guidance.combine(*found.chunk(2)) if guided else found

        def tokens() -> int:
            return max(count_tokens(each, network, x) for each in [*alone, *both])

        if cache:
            log.info(cache.report)
        with ExitStack() as turns:
            if self.card and self.sharded:
                self.card.leave()  # the room is what the transformer computes in
            for control in controls if self.card else ():
                turns.enter_context(self.card.whole(control.network))
            if self.card and not self.sharded:
                if not self.card.fits(network, tokens()):  # one after the other, then
                    both = [*alone, *in_one_pass(sides[1:], network, memo)]
                streaming = turns.enter_context(self.card.transformer(network, tokens()))
                hooks = [*shared, *streaming, *controls]
            for step, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
                timesteps = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
                v = cache.velocity(predicted) if cache else predicted()
                x = euler_step(x, v, sigma, sigma_next)
                if callback is not None:
                    callback(step + 1, len(sigmas) - 1, x)
        return x

    def _latent_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        factor = self.autoencoder.config.downscale
        if height % factor or width % factor or min(height, width) < factor:
            raise ValueError(f"{width}x{height} pixels: both sides must be multiples of {factor}")
        return batch, self.transformer.config.in_channels, height // factor, width // factor

    def _noise(
        self, shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> Tensor:
        """Where the generator lives, so a CPU seed gives the same picture on any device."""
        if isinstance(generator, (list, tuple)):
            if len(generator) != shape[0]:
                raise ValueError(f"{len(generator)} generators for {shape[0]} pictures")
            return torch.cat([self._noise((1, *shape[1:]), g) for g in generator])
        device = generator.device if generator is not None else self.device
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(self.device)

    def _output(self, x: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x
        latent = self.autoencoder.from_model(x).to(self._computes_in(self.autoencoder))
        if self.card:
            pixels = self.card.decode(self.autoencoder, latent, self.parallel)
        else:
            pixels = self.autoencoder.decode(latent).float()
        pixels = (pixels / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pixels
        if output_type != "pil":
            raise ValueError(f"output_type {output_type!r} is not one of pil, pt, latent")
        from PIL import Image

        rows = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(row) for row in rows]
