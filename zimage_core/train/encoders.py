"""Text encoder and autoencoder of a run: they come to the card before the transformer, and then leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..acceleration.small_card import SmallCard
from ..acceleration.tiles import bytes_for
from ..model.arithmetic import compute_dtype
from ..model.autoencoder import AutoencoderKL
from ..model.text_encoder import Qwen3TextEncoder
from ..prompt.template import load_tokenizer, tokenise
from ..weights import load_autoencoder, load_text_encoder

Turn = Callable[[SmallCard], AbstractContextManager]


class EncoderFiles(Protocol):
    """Where they are."""

    text_encoder: Path
    autoencoder: Path
    tokenizer: Path


class Encoders:
    """Each is read when a picture or text needs it.

    card: what may be used of the device; the layers of the text encoder are then streamed. Without one the
    encoders stay on the device until `leave`, and are there only while they work after it.
    """

    def __init__(self, files: EncoderFiles, device: torch.device, card: SmallCard | None = None) -> None:
        self.files, self.device, self.card = files, device, card
        self.left = False
        self.networks: dict[str, nn.Module] = {}
        self.tokenizer: Any = None

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> scaled latents [B,C,h,w]."""
        network = self.autoencoder()
        with self._on_device(network, self._whole(network, pixels.shape[-2] * pixels.shape[-1])):
            given = pixels.to(self.device, self._computes(network))
            return network.to_model(network.encode(given).mode())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pixels in [0,1]. Nothing is tiled: a step of that size takes more."""
        network = self.autoencoder()
        area = latents.shape[-2] * latents.shape[-1] * network.config.downscale**2
        with self._on_device(network, self._whole(network, area)):
            given = network.from_model(latents.to(self.device)).to(self._computes(network))
            return (network.decode(given).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def features(self, text: str) -> Tensor:
        """Of a text, [L,width]."""
        network = self.language()
        ids = tokenise(self.tokenizer, [text], None).input_ids
        with self._on_device(network, lambda card: card.text_encoder(network, ids.numel())):
            return network(ids.to(self.device))[0]

    def leave(self) -> None:
        """The device is the transformer's from here on, and so is the memory."""
        if self.card:
            self.card.leave()
        self.networks.clear()
        self.left = True

    def autoencoder(self) -> AutoencoderKL:
        return self._read("autoencoder", lambda: load_autoencoder(self.files.autoencoder))

    def language(self) -> Qwen3TextEncoder:
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.files.tokenizer)
        return self._read("text encoder", lambda: load_text_encoder(self.files.text_encoder))

    def _read(self, name: str, load: Callable[[], nn.Module]) -> Any:
        if name not in self.networks:
            self.networks[name] = load()
        return self.networks[name]

    def _whole(self, network: AutoencoderKL, area: int) -> Turn:
        return lambda card: card.whole(network, bytes_for(network, area))

    @contextmanager
    def _on_device(self, network: nn.Module, turn: Turn) -> Iterator[None]:
        """turn: how the card takes it, if there is one."""
        if self.card and not self.left:
            with turn(self.card):
                yield
            return
        network.to(self.device)
        try:
            yield
        finally:
            if self.left:
                network.to("cpu")

    def _computes(self, network: nn.Module) -> torch.dtype:
        return compute_dtype(next(network.parameters()).dtype, self.device)
