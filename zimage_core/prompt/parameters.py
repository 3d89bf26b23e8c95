"""What made a picture, as the text that sharing sites read in pictures.

The form is that of Stable Diffusion web UI: the prompt, a line "Negative prompt: ...", and a line of fields.
LoRAs stand behind the prompt as <lora:name:strength>.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

_SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}
_SAMPLERS = {  # ComfyUI's names -> those that sites know; others stay
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "lcm": "LCM",
    "ddim": "DDIM",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "uni_pc": "UniPC",
}
_SCHEDULERS = {
    "simple": "Simple",
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "beta": "Beta",
}


def parameters(
    *,
    size: tuple[int, int],
    prompt: str | None = None,
    negative: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
    cfg: float | None = None,
    seed: int | None = None,
    denoise: float | None = None,
    model: str | None = None,
    loras: Iterable[tuple[str, float]] = (),
    hashes: Mapping[str, str] | None = None,
) -> str:
    """The text. What is None is left out.

    size: width, height in pixels; model, loras: files as a graph names them; hashes: {file: SHA-256 in hex}.
    """
    hashes = hashes or {}
    loras = list(loras)
    known = {_name(file): hashes[file][:10] for file, _ in loras if file in hashes}
    fields = {
        "Steps": steps,
        "Sampler": _SAMPLERS.get(sampler, sampler),
        "Schedule type": _SCHEDULERS.get(scheduler, scheduler),
        "CFG scale": cfg,
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": hashes[model][:10] if model in hashes else None,
        "Model": _name(model) if model else None,
        "Denoising strength": denoise if denoise != 1 else None,
        "Lora hashes": ", ".join(f"{name}: {value}" for name, value in known.items()) or None,
        "Version": "ComfyUI",
    }
    words = [] if prompt is None else [prompt.strip()]
    words += [f"<lora:{_name(file)}:{strength:g}>" for file, strength in loras]
    lines = [" ".join(word for word in words if word)]
    if negative and negative.strip():
        lines.append(f"Negative prompt: {negative.strip()}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items() if value is not None))
    return "\n".join(lines)


def _name(file: str) -> str:
    """Without folders, which are nobody's business, and without the suffix."""
    path = PurePosixPath(file.replace("\\", "/"))
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def _quoted(value: object) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
