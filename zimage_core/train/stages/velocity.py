"""The plain task: the velocity of a noised picture under its caption."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...model.hooks import BlockHook
from ...model.s3dit import Prompt, S3DiT
from ...model.sequence import Captions
from ..batch import Batch, Batches, together
from ..distributed import ALONE, Processes
from ..flow import Noise, noised, velocity_error


@dataclass
class Velocity:
    """Batches of pictures, with some that the model made itself before, so that what it knew stays.

    prior: those; each step has a batch of both. computes: the type of the products, if it is not that of
    the weights. group: of whose batches this process takes its part.
    """

    examples: Batches
    prior: Batches | None = None
    noise: Noise = field(default_factory=Noise)
    hooks: tuple[BlockHook, ...] = ()
    computes: torch.dtype | None = None
    group: Processes = ALONE

    def batches(self, step: int, generator: torch.Generator) -> list[Batch]:
        """What a step is trained on; batches of pictures of one size each."""
        batch = self.examples.draw(step, generator)
        if self.prior is None:
            return [batch]
        return together(batch, self.prior.draw(step, generator))

    def loss(self, model: S3DiT, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity; of several processes the sum of all is that mean."""
        like = model.x_pad_token
        place = {"device": like.device, "dtype": self.computes or like.dtype}
        latents, count = batch.latents.float(), len(batch.latents)
        sigma = self.noise.draw(count, latents[0, 0].numel() // model.config.patch_size**2, generator)
        noisy, wanted = noised(latents, sigma, generator)
        weights = self.noise.weights(sigma)
        own = self.group.rows(count)
        share = (own.stop - own.start) / count
        if not share:  # there are fewer samples than processes: what all do together is done by all
            own = slice(0, 1)
        lengths = batch.captions.lengths[own]
        captions = Captions(batch.captions.features[own, : max(lengths)].to(**place), lengths)
        predicted = model(
            noisy[own].to(**place), sigma[own].to(like.device), condition=Prompt(captions), hooks=self.hooks
        )
        return velocity_error(predicted, wanted[own].to(like.device), weights[own]) * share

    def backward(self, model: S3DiT, step: int, generator: torch.Generator) -> float:
        """Adds a step's gradients to the model's parameters; returns its loss."""
        batches = self.batches(step, generator)
        count = sum(len(batch.latents) for batch in batches)
        total = 0.0
        for batch in batches:
            part = self.loss(model, batch, generator) * (len(batch.latents) / count)
            part.backward()
            total += part.item()
        return total
