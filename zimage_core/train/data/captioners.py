"""Who writes captions: a vision-language model in a local folder, or a chat server of the owner's."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ...cluster import installed, named
from ...prompt.endpoint import Endpoint, EndpointError, complete
from .captions import CaptionError
from .picture_files import flattened

SIDE = 1024  # pixels of the longer side of what a model is shown
QUALITY = 90
CODE = ("auto_map", "custom_pipelines")  # of a config that wants code of its folder to be run


def local_models(folder: Path) -> list[str]:
    """The sub-folders that hold a model in safetensors files, by name."""
    if not folder.is_dir():
        return []
    models = (place for place in folder.iterdir() if (place / "config.json").is_file())
    return sorted(place.name for place in models if any(place.glob("*.safetensors")))


class LocalCaptioner:
    """A model of the transformers library. Nothing is fetched, unpickled or run from its folder.

    Raises CaptionError where the folder holds no such model. In another process it is loaded again.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device, self.name = folder, device, f"the model in {folder}"
        if not any(folder.glob("*.safetensors")):
            raise CaptionError(f"{folder} holds no .safetensors: expected a vision-language model's folder")
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CaptionError(f"{folder / 'config.json'} cannot be read: {error}") from None
        if not isinstance(config, dict) or any(key in config for key in CODE):
            raise CaptionError(f"{folder} wants its own code to be run, which is not done. Choose another")

    def on(self, device: str) -> LocalCaptioner:
        """With its model loaded on a device of this process. Raises CaptionError."""
        found = LocalCaptioner(self.folder, device)
        _ = found._parts
        return found

    def versions(self) -> dict[str, str]:
        return {**installed("torch", "transformers"), "the captioner's files": named([self.folder])}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder.resolve(), "device": self.device, "name": self.name}

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        safe = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(self.folder, **safe)
            model = AutoModelForImageTextToText.from_pretrained(
                self.folder, use_safetensors=True, dtype="auto", **safe
            )
        except Exception as error:  # the library raises of every kind
            raise CaptionError(f"{self.folder} does not load as a vision-language model: {error}") from error
        return processor, model.to(self.device).eval()

    def answer(self, images: Sequence[Image.Image], question: str, max_tokens: int) -> str:
        """Raises CaptionError where the folder's model does not load."""
        import torch

        processor, model = self._parts
        content = [{"type": "image", "image": _shown(image)} for image in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device, dtype=model.dtype)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


class EndpointCaptioner:
    """A chat server that the owner's settings file allows to see pictures: "pictures": true.

    Raises CaptionError for another one.
    """

    def __init__(self, endpoint: Endpoint, check_cancelled: Callable[[], None] | None = None) -> None:
        if not endpoint.pictures:
            raise CaptionError(
                f"Endpoint {endpoint.name!r} ({endpoint.host}) may not be sent pictures. If it may, write "
                '"pictures": true into its entry'
            )
        self.endpoint, self.check_cancelled = endpoint, check_cancelled
        self.name = f"endpoint {endpoint.name!r} ({endpoint.host})"

    def answer(self, images: Sequence[Image.Image], question: str, max_tokens: int) -> str:
        """Raises CaptionError."""
        content: list[dict] = [{"type": "image_url", "image_url": {"url": _as_url(i)}} for i in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        try:
            return complete(
                self.endpoint, messages, max_tokens=max_tokens, temperature=0.2,
                check_cancelled=self.check_cancelled,
            )  # fmt: skip
        except EndpointError as error:
            raise CaptionError(str(error)) from None


def destination(captioner: LocalCaptioner | EndpointCaptioner | None, count: int, cluster: str = "") -> str:
    """Where how many pictures go: told before the first. cluster: the one that describes them."""
    if captioner is None:
        return f"{count:,} pictures get captions from their names and old captions; none is sent anywhere"
    if isinstance(captioner, EndpointCaptioner):
        return f"{count:,} pictures are sent to {captioner.name}"
    if cluster:
        return f"{count:,} pictures are described by {captioner.name} on {cluster}, whose machines read them"
    return f"{count:,} pictures are described by {captioner.name}; none leaves this machine"


def _shown(image: Image.Image) -> Image.Image:
    image = flattened(image).copy()
    image.info.clear()  # Pillow would write a file's comment again
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _as_url(image: Image.Image) -> str:
    """A new JPEG: the file's own notes, such as the place where it was taken, are not in it."""
    out = io.BytesIO()
    _shown(image).save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
