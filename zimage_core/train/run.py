"""Training on pictures with captions: caches, batches, samples on the way, and what a stopped run keeps."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..acceleration.checkpointing import Checkpointing
from ..acceleration.streaming import Streaming
from ..model.hooks import BlockHook
from ..model.s3dit import S3DiT
from ..weights.lora import fit_lora, read_lora
from . import lora
from .alone import alone
from .batch import MULTIPLE, Batches, Example, bucket_of, resized
from .cache import Cache, digest
from .data.picture_files import PictureError, flattened, open_picture
from .data.records import PictureRecord
from .distributed import ALONE, Processes
from .flow import Noise
from .plan import Plan
from .samples import Sampling, draw
from .stages.velocity import Velocity
from .trainer import Progress, fit, trained

log = logging.getLogger(__name__)

MAY_CHANGE = {"plan.steps", "plan.save_seconds", "plan.save_steps", "sample_prompts", "sample_every"}
HASHED = {  # what differs, where values would say nothing
    "data": "other pictures or captions",
    "base": "another base model, or other LoRAs on it",
}
LONGEST = 512  # tokens of a caption, as the reference cuts them
PRIOR_AT_ONCE = 4  # pictures of the model's own that are made together


@dataclass
class Parts:
    """The model that is trained, as a host or the library has it.

    model: for a LoRA its layers frozen, see `frozen`. encode: pixels [B,3,H,W] in [-1,1] -> scaled latents
    [B,C,h,w].
    features: a text -> what the text encoder makes of it, [L,width]. decode: scaled latents -> pixels
    [B,3,H,W] in [0,1]. names: of autoencoder and text encoder, as the caches shall know them.
    factor: pixels to a cell of the latent. base: a name of the transformer's weights.
    place: called when texts and pictures are encoded: the model comes to the card, which encoders leave.
    """

    model: S3DiT
    encode: Callable[[Tensor], Tensor]
    features: Callable[[str], Tensor]
    decode: Callable[[Tensor], Tensor]
    names: tuple[str, str] = ("autoencoder", "text encoder")
    factor: int = 8
    streaming: Streaming | None = None
    base: str = ""
    place: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Settings:
    """What a run does. resolution: the side of a square picture, in pixels; others have as many.

    batch: pictures of a step. prior: captions of pictures that the model makes of itself before;
    prior_share: of each batch. adapter: a LoRA file that is under the model while it trains, see `put_under`.
    trigger: a word in front of each caption that lacks it.
    """

    plan: Plan
    lora: lora.Settings = field(default_factory=lora.Settings)
    noise: Noise = field(default_factory=Noise)
    sampling: Sampling = field(default_factory=Sampling)
    resolution: int = 1024
    batch: int = 1
    caption_dropout: float = 0.05
    trigger: str = ""
    prior: tuple[str, ...] = ()
    prior_share: float = 0.5
    checkpointing: bool = True
    sample_every: int = 0  # steps; 0: none
    sample_prompts: tuple[str, ...] = ()
    adapter: str = ""

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.caption_dropout < 1 or not 0 <= self.prior_share < 1:
            raise ValueError(
                f"batch {self.batch}, caption dropout {self.caption_dropout} and share of prior pictures "
                f"{self.prior_share}: expected 1 or more, and 0 to below 1 twice"
            )
        if self.resolution < MULTIPLE or self.resolution % MULTIPLE:
            raise ValueError(f"resolution is {self.resolution}, expected a multiple of {MULTIPLE} pixels")

    @property
    def prior_count(self) -> int:
        """How many of each batch the model made itself; at batch 1 there is one beside the other."""
        share = self.prior_share if self.prior else 0
        return max(1, round(self.batch * share)) if share else 0

    @property
    def tokens(self) -> int:
        """Of a step's pictures, and of captions of the greatest length."""
        pictures = max(self.batch, 1 + self.prior_count)
        return pictures * ((self.resolution // MULTIPLE) ** 2 + LONGEST)


class Watch:
    """Who looks on. What `step` raises ends the run, which keeps everything up to that step."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Before the first step: "pictures", "captions" or "prior", how many are done."""

    def step(self, progress: Progress) -> None:
        """After each step."""

    def sample(self, step: int, prompt: str, pixels: Tensor) -> None:
        """A picture [3,H,W] in [0,1] on the way."""


class PictureRun:
    """One run in its folder: `state`, `samples`, `cache` and its settings."""

    computes: torch.dtype | None = None  # as in `Velocity`

    def __init__(
        self,
        parts: Parts,
        pictures: Sequence[PictureRecord],
        settings: Settings,
        folder: Path,
        data: str = "",
        base: str = "",
        *,
        group: Processes = ALONE,
    ) -> None:
        """data, base: hashes of the data set and of the model, for the settings.

        Raises ValueError for other settings than the run in that folder was begun with.
        """
        if not pictures:
            raise ValueError("no pictures to train on")
        self.parts, self.pictures, self.settings, self.folder = parts, pictures, settings, folder
        self.cache, self.group, self.base = Cache(folder / "cache"), group, base or parts.base
        if group.first:
            self._same_settings({**dataclasses.asdict(settings), "data": data, "base": self.base})
        self.given: list[lora.Given] = []

    def _same_settings(self, facts: dict[str, Any]) -> None:
        path, now = self.folder / "settings.json", _flat(json.loads(json.dumps(facts)))
        if path.is_file() and any((self.folder / "state").glob("step-*")):
            before = _read(path)
            for name in sorted({*before, *now} - MAY_CHANGE):
                if before.get(name) != now.get(name):
                    what = HASHED.get(name) or (
                        f"{name} {_short(before.get(name))}, now it is {_short(now.get(name))}"
                    )
                    raise ValueError(
                        f"the run {self.folder.name} was begun with {what}: set it back to go on, give this "
                        f"run another name, or delete the folder {self.folder} to begin again"
                    )
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")  # a full disk or a kill leaves what is there
        partial.write_text(json.dumps(now, indent=1, ensure_ascii=False), "utf-8")
        partial.replace(path)

    def begin(self) -> None:
        """From here on the model has what trains, with gradients."""
        raise NotImplementedError

    def fit(self, watch: Watch | None, stop_at: int | None) -> None:
        """Train, and leave the averages in the model. A stopped run goes on."""
        with alone(self.folder) if self.group.first else nullcontext():
            self._fit(watch or Watch(), stop_at)

    def _fit(self, watch: Watch, stop_at: int | None) -> None:
        settings, model, group = self.settings, self.parts.model, self.group
        self._share_caches(watch)
        prompts = [(prompt, self.features(prompt)) for prompt in settings.sample_prompts]
        *of_prior, _ = [self.features(text) for text in (*settings.prior, "")]  # "": for guidance, dropout
        examples = self.examples(watch)
        self.parts.place()
        prior = self.prior(of_prior, watch, self._hooks())
        self.begin()
        hooks = self._hooks()
        task = Velocity(examples, prior, settings.noise, hooks, self.computes, group)

        def after(progress: Progress) -> None:
            watch.step(progress)
            if settings.sample_every and progress.step % settings.sample_every == 0:
                for number, (prompt, features) in enumerate(prompts):
                    watch.sample(progress.step, prompt, self.picture(features, number, hooks))

        averaged = fit(
            trained(model),
            lambda step, generator: task.backward(model, step, generator),
            settings.plan,
            self.folder / "state",
            after,
            stop_at,
            group=group,
        )
        with torch.no_grad():
            for name, p in trained(model).items():
                p.copy_(averaged[name])

    def _share_caches(self, watch: Watch) -> None:
        """Each process encodes its part of the pictures; then all read them."""
        if self.group.size == 1:
            return
        self._encoded(self.pictures[self.group.rows(len(self.pictures))], watch)
        self.group.wait()

    def _encoded(
        self, pictures: Sequence[PictureRecord], watch: Watch
    ) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Latent and caption features of each; all captions first, so that encoders do not change places."""
        captions, latents = [], []
        for done, picture in enumerate(pictures):
            watch.stage("captions", done, len(pictures))
            captions.append(tuple(self.features(text) for text in self.captions(picture)))
        watch.stage("captions", len(pictures), len(pictures))
        for done, picture in enumerate(pictures):
            watch.stage("pictures", done, len(pictures))
            latents.append(self.latent(picture.path))
        watch.stage("pictures", len(pictures), len(pictures))
        return list(zip(latents, captions, strict=True))

    def _hooks(self) -> tuple[BlockHook, ...]:
        if not (self.settings.checkpointing or self.parts.streaming):
            return ()
        return (Checkpointing(self.parts.model, self.parts.streaming),)

    def picture(self, features: Tensor, seed: int, hooks: Sequence[BlockHook] = ()) -> Tensor:
        """A sample [3,H,W] in [0,1] of the model with its changes as they are."""
        side = self.settings.resolution // self.parts.factor
        empty = self.features("") if self.settings.sampling.guidance else None
        model, sampling = self.parts.model, self.settings.sampling
        with self.without(self.given):
            latent = draw(model, [features], (side, side), sampling, [seed], empty, hooks, self.computes)
        return self.parts.decode(latent)[0].float().cpu()

    @contextmanager
    def without(self, layers: Iterable[lora.Change | lora.Given]) -> Iterator[None]:
        """As the model is used, without the adapter; or as it was before it trained."""
        for layer in layers:
            layer.on = False
        try:
            yield
        finally:
            for layer in layers:
                layer.on = True

    def features(self, text: str) -> Tensor:
        """Of a text [L,width], kept on the disk; what is behind the last token that counts is left out."""
        found = self.cache.of(digest("text", self.parts.names[1], text), lambda: self.parts.features(text))
        if (cut := len(found) - LONGEST) > 0:  # a token knows those before it alone: this is the shorter text
            log.warning("caption cut at %d tokens, %d left out: %.60s...", LONGEST, cut, text)
        return found[:LONGEST]

    def captions(self, picture: PictureRecord) -> tuple[str, ...]:
        """With the trigger, where they lack it as a word of its own; an empty one where there is none."""
        trigger, texts = self.settings.trigger.strip(), picture.captions or ("",)
        if not trigger:
            return texts
        word = re.compile(rf"(?<!\w){re.escape(trigger.casefold())}(?!\w)", re.ASCII)
        return tuple(
            text if word.search(text.casefold()) else ", ".join(filter(None, (trigger, text)))
            for text in texts
        )

    def examples(self, watch: Watch) -> Batches:
        settings = self.settings
        encoded = self._encoded(self.pictures, watch)
        found = [
            Example(*both, picture.repeats * picture.weight)
            for picture, both in zip(self.pictures, encoded, strict=True)
        ]
        empty = self.features("") if settings.caption_dropout else None
        count = max(1, settings.batch - self.settings.prior_count)
        return Batches(found, count, settings.plan.seed, settings.caption_dropout, empty)

    def latent(self, path: Path) -> Tensor:
        """Of a picture [C,h,w], in the size of its bucket, kept on the disk."""
        content, pixels = path.read_bytes(), self.settings.resolution**2

        def make() -> Tensor:
            try:
                picture = flattened(open_picture(path))
            except PictureError as error:
                raise PictureError(f"{path} cannot be trained on: {error}. Remove or replace it") from None
            size = bucket_of(picture.width, picture.height, pixels)
            return self.parts.encode(resized(picture, size)[None])[0].float()

        return self.cache.of(digest("picture", self.parts.names[0], str(pixels), content), make)

    def prior(self, features: Sequence[Tensor], watch: Watch, hooks: Sequence[BlockHook]) -> Batches | None:
        """Pictures that the model makes of itself before it trains; kept on the disk.

        features: of the settings' captions for them.
        """
        settings = self.settings
        if not settings.prior or not settings.prior_share:
            return None
        side, total = settings.resolution // self.parts.factor, len(settings.prior)
        facts = json.dumps(
            [dataclasses.asdict(settings.sampling), side, *self.parts.names, self.model_name()]
        )
        names = [digest("prior", facts, str(at), text) for at, text in enumerate(settings.prior)]
        empty = self.features("") if settings.sampling.guidance else None
        found: list[Example] = []
        for start in range(0, total, PRIOR_AT_ONCE):
            watch.stage("prior", start, total)
            group = range(start, min(start + PRIOR_AT_ONCE, total))
            rows = [features[at] for at in group]

            @cache
            def made(group: range = group, rows: list[Tensor] = rows) -> Tensor:
                model, size = self.parts.model, (side, side)
                return draw(model, rows, size, settings.sampling, group, empty, hooks, self.computes)

            for at, row in zip(group, rows, strict=True):
                latent = self.cache.of(names[at], lambda at=at, made=made: made()[at % PRIOR_AT_ONCE])
                found.append(Example(latent, (row,)))
        watch.stage("prior", total, total)
        return Batches(found, self.settings.prior_count, settings.plan.seed + 1)

    def model_name(self) -> str:
        """Of the transformer; where nobody said which it is, by some of its values."""
        return self.base or digest(self.parts.model.x_pad_token.float().cpu().numpy().tobytes())


class LoraRun(PictureRun):
    """Of a LoRA or LoKr."""

    changes: Mapping[str, lora.Change] = MappingProxyType({})

    def train(self, watch: Watch | None = None, stop_at: int | None = None) -> dict[str, lora.Change]:
        """Train, and leave the averaged changes in the model; they are returned. A stopped run goes on."""
        self.fit(watch, stop_at)
        return self.changes

    def begin(self) -> None:
        settings, model = self.settings, self.parts.model
        if settings.adapter:
            weights = S3DiT(model.config, device="meta").state_dict()
            shapes = {name: value.shape for name, value in weights.items()}
            fitted = fit_lora(read_lora(settings.adapter), shapes)
            if not fitted.targets:
                raise ValueError(
                    f"the training adapter {settings.adapter} changes nothing of this model: choose one that "
                    "was made for it"
                )
            self.given = lora.put_under(model, fitted)
        with torch.random.fork_rng([]):
            torch.manual_seed(settings.plan.seed)
            self.changes = lora.inject(model, settings.lora)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} is damaged, so it is not known with which settings this run was begun: delete that file "
            "to go on with these, or give this run another name"
        )
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in facts.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out
