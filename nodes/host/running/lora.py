"""LoRAs on a MODEL and a CLIP, as patches of the host's, and what is to be said of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import comfy.lora
import torch
from torch import nn

from ....zimage_core.weights import LoraFile, LoraFit, WeightsError, fit_lora
from ....zimage_core.weights.errors import some
from .dora import Dora
from .packed import packed_layers

ROOT = "diffusion_model."  # of the network's names in a MODEL
OURS = (f"{ROOT}noise_refiner.0.attention.qkv.weight", f"{ROOT}cap_pad_token")  # Lumina 2 has no pad tokens
MOST_REASONS = 4


class LoraUse(NamedTuple):
    """A file by its listed name, and its strengths; 0 changes nothing."""

    name: str
    file: LoraFile
    model: float
    clip: float


def with_loras(model: Any, clip: Any | None, uses: Iterable[LoraUse]) -> tuple[Any, Any | None, list[str]]:
    """MODEL and CLIP with them, in order, and a paragraph about each.

    Raises WeightsError for a MODEL of another family.
    """
    shapes = {f"{ROOT}{key}": shape for key, shape in _shapes(model.model.diffusion_model).items()}
    if not shapes.keys() >= set(OURS):
        raise WeightsError(
            f"this MODEL is {type(model.model).__name__}, not Z-Image. Connect a Z-Image MODEL, or use "
            "ComfyUI's own LoRA loader for this one."
        )
    if clip is not None:
        shapes |= _shapes(clip.cond_stage_model)
    said = []
    for use in uses:
        fit = fit_lora(use.file, shapes, clip is not None)
        said.append(_said(use, fit, clip is not None))
        of_model = {name for name in fit.targets if name.startswith(ROOT)}
        model = _patched(model, fit, of_model, use.model)
        if clip is not None:
            clip = _patched(clip, fit, fit.targets.keys() - of_model, use.clip)
    return model, clip, said


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Of the parameters as they are used; a state dict has packed ones as they are stored."""
    packed = {f"{name}.weight": layer.matrix_shape for name, layer in packed_layers(network).items()}
    return {key: parameter.shape for key, parameter in network.named_parameters()} | packed


def _patched(patched: Any, fit: LoraFit, names: Iterable[str], strength: float) -> Any:
    """patched: a MODEL or a CLIP; itself where there is nothing to change."""
    targets = {name: fit.targets[name] for name in names}
    if not targets or strength == 0:
        return patched
    dora = {
        name: lengths for name in targets if (lengths := fit.tensors.get(f"{name}.dora_scale")) is not None
    }
    plain = {key: value for key, value in fit.tensors.items() if not key.endswith(".dora_scale")}
    patches = comfy.lora.load_lora(plain, targets, log_missing=False)
    for name, lengths in dora.items():
        adapter = patches[targets[name]]
        patches[targets[name]] = Dora(adapter.loaded_keys, (adapter, lengths))
    clone = patched.clone()
    clone.add_patches(patches, strength)
    return clone


def _said(use: LoraUse, fit: LoraFit, has_clip: bool) -> str:
    strengths = f"{use.model:g}"
    if has_clip and use.clip != use.model:
        strengths += f", on clip {use.clip:g}"
    effect = "" if fit.used else ", it has no effect. Use one that was made for Z-Image"
    lines = [f"{use.name} at {strengths}: {len(fit.used)} of {len(use.file.tensors)} keys{effect}"]
    by_reason: dict[str, list[str]] = {}
    for key, why in fit.unused.items():
        by_reason.setdefault(why, []).append(key)
    for why, keys in list(by_reason.items())[:MOST_REASONS]:
        lines.append(f"- {len(keys)} not used, {why}: {some(keys, 2)}")
    if len(by_reason) > MOST_REASONS:
        others = [key for keys in list(by_reason.values())[MOST_REASONS:] for key in keys]
        lines.append(f"- {len(others)} more not used: {some(others, 2)}")
    if words := use.file.trigger_words:
        lines.append(f"Trigger words: {', '.join(words)}")
    return "\n".join(lines)
