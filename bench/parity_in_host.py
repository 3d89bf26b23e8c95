"""Our MODEL and the host's own Z-Image on the same weights, where ComfyUI's modules can be imported.

As a script, in a process of the host's own, it writes one line of JSON.

python tests/host/launch.py bench/parity_in_host.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import random_inputs, random_s3dit, relative, seeds  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from tests.host.native_network import native_network  # noqa: E402
from zimage_core import S3DiTConfig  # noqa: E402

(SEED,) = seeds(1)


def native(config: S3DiTConfig, state: dict) -> torch.nn.Module:
    """The host's network; its q and k norms get the published eps, which it leaves at the machine's."""
    model = native_network(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["norm_final.weight"]) and not unexpected, (missing, unexpected)
    for name, module in model.named_modules():
        if name.endswith(("q_norm", "k_norm")):
            module.eps = config.norm_eps
    return model.eval()


def networks() -> dict[str, float]:
    """One forward at dim 1152 with 9 heads: full and grouped-query attention, even and odd sizes."""
    found = {}
    for kv_heads in (9, 3):
        config = S3DiTConfig(
            dim=1152, n_layers=2, n_refiner_layers=1, n_heads=9, n_kv_heads=kv_heads, cap_feat_dim=320
        )
        model = random_s3dit(config, SEED)
        peer = native(config, model.state_dict())
        for size in ((8, 12), (7, 9)):
            x, sigma, caption = random_inputs(config, SEED, batch=2, size=size, length=40)
            with torch.no_grad():
                theirs = peer(x, sigma, caption, caption.shape[1])
            found[f"{kv_heads} kv heads, {size[0]}x{size[1]}"] = relative(model(x, sigma, caption), theirs)
    return found


def runs(scratch: Path) -> tuple[dict[str, float], dict[str, int], float]:
    """Whole runs of the host's sampler at dim 3840, its own MODEL against ours, one bf16 file in fp32.

    Returns the distance of each run, how often parts of ours were called, and how far ZImageDiversity takes
    the host's own.
    """
    import comfy.sample
    import comfy.sd

    config = S3DiTConfig(n_layers=1)
    path = scratch / "wide.safetensors"
    save_file({k: v.bfloat16() for k, v in random_s3dit(config, SEED).state_dict().items()}, path)
    generator = torch.Generator().manual_seed(SEED)
    positive, negative = ([[torch.randn(1, n, 2560, generator=generator), {}]] for n in (21, 40))
    latent = torch.zeros(1, 16, 9, 14)
    noise = comfy.sample.prepare_noise(latent, SEED)
    makers = {
        "ours": lambda: extension_module("nodes.host.loading.model").load_patcher(path, "fp32"),
        "native": lambda: comfy.sd.load_diffusion_model(str(path), {"dtype": torch.float32}),
    }
    made, counts = {}, Counter()
    for name, make in makers.items():
        model = make()
        if name == "ours":
            network = model.model.diffusion_model
            for part in (network.context_refiner[0], network.t_embedder):
                part.register_forward_hook(lambda module, *_: counts.update([type(module).__name__]))
        options = {"disable_pbar": True, "seed": SEED}
        made[name] = [
            comfy.sample.sample(
                model, noise, n, cfg, "euler", "simple", positive, negative, latent, **options
            )
            for n, cfg in ((8, 1.0), (2, 3.0))
        ]
        varied = extension_module("nodes.host.running.diversity").diversified(model, 1.0, 0.3)
        made[name].append(
            comfy.sample.sample(
                varied, noise, 2, 3.0, "euler", "simple", positive, negative, latent, **options
            )
        )
        del model, varied
    pairs = zip(("8 steps", "2 steps, cfg 3", "with diversity"), made["ours"], made["native"], strict=True)
    found = {label: relative(ours, theirs) for label, ours, theirs in pairs}
    return found, dict(counts), relative(*made["native"][:0:-1])


def measure(scratch: Path) -> dict:
    """Relative L2 distances by name in `networks` and `runs`, one more as `variety`; calls as `counts`."""
    distances, counts, variety = runs(scratch)
    return {"networks": networks(), "runs": distances, "counts": counts, "variety": variety}


if __name__ == "__main__":
    enter(Path(sys.argv[1]).resolve())
    sys.stdout.write(json.dumps(measure(Path(sys.argv[2]))) + "\n")
