"""Our MODEL and the host's own, its VAE and its writing, in a process into which its modules are imported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.networks import CAPTION, normal_weights
from bench.timing import Call
from tests.host import inside
from tests.host.native_network import native_config
from zimage_core import AutoencoderKL, Qwen3Config, S3DiTConfig
from zimage_core.config import TURBO_STEPS

GUIDED_STEPS, CFG = 28, 4.0
NEGATIVE = CAPTION // 3  # tokens
READ, WRITTEN = 32, 8  # tokens
WRITER_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip


def enter_host(folder: str, device: str) -> None:
    inside.enter(Path(folder), cpu=device != "cuda")


def vae(autoencoder: AutoencoderKL) -> Any:
    import comfy.sd

    return comfy.sd.VAE(sd=dict(autoencoder.state_dict()))


def prompts(width: int) -> tuple[list, list]:
    positive, negative = ([[torch.randn(1, length, width), {}]] for length in (CAPTION, NEGATIVE))
    return positive, negative


def sampling(model: Any, config: S3DiTConfig, pixels: int, steps: int, cfg: float) -> Call:
    """A run of the host's sampler, as KSampler starts it."""
    import comfy.sample

    (positive, negative), latent = prompts(config.cap_feat_dim), torch.zeros(1, 16, pixels // 8, pixels // 8)
    noise = comfy.sample.prepare_noise(latent, 1)
    given = (steps, cfg, "euler", "simple", positive, negative, latent)
    return lambda: comfy.sample.sample(model, noise, *given, disable_pbar=True, seed=1)


def models(config: S3DiTConfig, folder: Path) -> dict[str, Any]:
    """Ours and the host's own from one file in bf16; the host's loader takes the real width for granted."""
    import comfy.sd

    path = folder / "model.safetensors"
    where = "cuda" if torch.cuda.is_available() else "cpu"  # where random numbers are quick
    made = normal_weights(config, where, torch.bfloat16).state_dict()
    state = {name: value.cpu() for name, value in made.items()}
    save_file(state, path)
    ours = inside.extension_module("nodes.host.loading.model").load_patcher(path)
    whole = S3DiTConfig()
    if (config.dim, config.n_refiner_layers) == (whole.dim, whole.n_refiner_layers):
        return {"ours": ours, "native": comfy.sd.load_diffusion_model(str(path))}
    return {"ours": ours, "native": small_native(config, state, ours.model)}


def small_native(config: S3DiTConfig, state: dict[str, Tensor], like: Any) -> Any:
    """The host's own at sizes that its loader does not know, in the types that it chose for another MODEL."""
    import comfy.model_management as management
    import comfy.model_patcher

    settings = native_config(config)
    settings.set_inference_dtype(like.get_dtype(), like.manual_cast_dtype)
    model = settings.get_model(state, "")
    model.load_model_weights(dict(state), "")
    device = management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, management.unet_offload_device())


def eight_steps(config: S3DiTConfig, pixels: int) -> dict[str, Call]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = models(config, Path(folder))
        return {name: sampling(model, config, pixels, TURBO_STEPS, 1.0) for name, model in made.items()}


def guided(config: S3DiTConfig, pixels: int) -> dict[str, Call]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = models(config, Path(folder))
        return {name: sampling(model, config, pixels, GUIDED_STEPS, CFG) for name, model in made.items()}


def writing(config: Qwen3Config) -> dict[str, Call]:
    """Greedy text from one CLIP in bf16: by our writer, and by the host's own where it can write."""
    import comfy.model_management as management
    import comfy.sd
    import comfy.text_encoders.z_image as z_image
    from comfy.supported_models_base import ClipTarget

    language_model = inside.extension_module("nodes.host.writing.language_model")
    sizes = {name: getattr(config, name) for name in WRITER_SIZES}
    clip = comfy.sd.CLIP(
        ClipTarget(z_image.ZImageTokenizer, z_image.te(dtype_llama=torch.bfloat16)),
        parameters=1,
        model_options={"qwen3_4b_model_config": sizes},
    )
    writer, prompt = language_model.LanguageModel(clip), list(range(READ))
    network, greedy = writer.transformer, language_model.Sampling(temperature=0)
    for parameter in network.parameters():
        parameter.data.normal_(std=parameter.shape[-1] ** -0.5)
    management.load_models_gpu([clip.patcher])

    def ours() -> list[int]:
        with writer.loaded(READ + WRITTEN) as (next_logits, device):
            return language_model.generate(next_logits, prompt, greedy, (), WRITTEN, device=device).tokens

    def theirs() -> list[int]:
        ids = torch.tensor([prompt], device=clip.patcher.load_device)
        embeds = network.model.embed_tokens(ids, out_dtype=torch.float32)
        return network.generate(embeds, do_sample=False, max_length=WRITTEN, stop_tokens=[])

    return {"ours": ours} | ({"native": theirs} if hasattr(network, "generate") else {})
