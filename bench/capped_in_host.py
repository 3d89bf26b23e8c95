"""Forwards of our MODEL and of the host's own Z-Image with only so much of a card's memory left.

A script for a process of the host's own; it writes a line of JSON for each row as soon as it has it. The host
decides what stays on the card and streams the rest. What is left is what a large tensor leaves.

python tests/host/launch.py bench/capped_in_host.py ComfyUI_FOLDER SCALE
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOST, SCALE = Path(sys.argv[1]).resolve(), sys.argv[2]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench import scale as scales  # noqa: E402
from bench.networks import inputs, normal_weights  # noqa: E402
from bench.peak import Peak  # noqa: E402
from bench.rows import row  # noqa: E402
from bench.timing import Call, clock  # noqa: E402
from tests.host.inside import enter, module_without_nodes  # noqa: E402
from tests.host.native_network import native_config  # noqa: E402

scale: scales.Scale = getattr(scales, SCALE)
ON_CARD = scale.device == "cuda"
enter(HOST, cpu=not ON_CARD)
import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402

GIGABYTE = 1e9
WARM_UPS, TIMES = 1, 3
STREAMED = "weights stay on the card as far as the host finds room"


def weights() -> dict[str, Tensor]:
    """In the computer's memory; made on the card, which is quick."""
    made = normal_weights(scale.config, scale.device, scale.dtype).state_dict()
    return {name: tensor.cpu() for name, tensor in made.items()}


def our_model() -> nn.Module:
    config = module_without_nodes("nodes.host.loading.model").Config
    return on_meta(config({"image_model": "lumina2", **dataclasses.asdict(scale.config)}))


def native_model() -> nn.Module:
    return on_meta(native_config(scale.config))


def on_meta(config: Any) -> nn.Module:
    config.set_inference_dtype(scale.dtype, None)
    config.custom_operations = comfy.ops.disable_weight_init
    return config.get_model({}, device="meta")


def filled(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network = model.diffusion_model
    missing, unexpected = network.load_state_dict(state, strict=False, assign=True)
    assert missing in ([], ["norm_final.weight"]) and not unexpected, (missing, unexpected)
    if missing:
        del network.norm_final  # a leftover that its forward does not use
    return model


def loaded(model: nn.Module) -> tuple[Any, Call]:
    """The model's patcher, loaded as the host's sampler would load it, and a step of such a sampler."""
    x, caption = inputs(scale.config, scale.large, scale.device, scale.dtype)
    conds = model.extra_conds(cross_attn=caption, noise=x, device=scale.device, attention_mask=None)
    given = {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds.items()}
    shapes = {name: [shape] for name, shape in model.extra_conds_shapes(cross_attn=caption).items()}
    needed = model.memory_required(list(x.shape), cond_shapes=shapes)
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device(scale.device), offload_device=torch.device("cpu")
    )
    management.load_models_gpu([patcher], memory_required=needed)
    sigma = torch.full((1,), 0.7, device=scale.device)
    return patcher, lambda: model.apply_model(x, sigma.clone(), **given)


def peak_of(call: Call, ballast: int) -> float:
    """Gigabytes that tensors take at most, what is kept on the card included."""
    if ON_CARD:
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - ballast) / GIGABYTE
    tracker = Peak()
    with tracker:
        call()
    return tracker.peak / GIGABYTE


def rows_of(name: str, make: Callable[[], nn.Module], state: dict[str, Tensor], cap: float) -> Iterator[dict]:
    card = torch.cuda.get_device_name() if ON_CARD else "CPU"
    label = f"{card}, {scale.large}x{scale.large} with {cap:g} GB left: {name}"
    ballast = None
    if ON_CARD:
        free = torch.cuda.mem_get_info()[0] - int(cap * GIGABYTE)
        ballast = torch.empty(max(free, 0), dtype=torch.uint8, device=scale.device)
    taken = 0 if ballast is None else ballast.nbytes
    try:
        patcher, call = loaded(filled(make(), state))
        for _ in range(WARM_UPS):
            call()
        yield row(f"{label}, peak", peak_of(call, taken), "GB", f"<= {cap:g}", STREAMED)
        seconds = min(clock(scale.device, call) for _ in range(TIMES))
        against = f"{patcher.loaded_size() / GIGABYTE:.2f} GB of weights stay there"
        yield row(f"{label}, a forward", 1000 * seconds, "ms, best", None, against)
    except torch.OutOfMemoryError as error:
        yield {**row(f"{label}, peak", None, "GB", f"<= {cap:g}", str(error)), "holds": False}
    finally:
        management.unload_all_models()
        del ballast
        gc.collect()
        management.soft_empty_cache()


@torch.no_grad()
def main() -> None:
    state = weights()
    for cap in scale.caps:
        for name, make in (("ours in the host", our_model), ("the host's own", native_model)):
            for fact in rows_of(name, make, state, cap):
                sys.stdout.write(json.dumps(fact) + "\n")
                sys.stdout.flush()


main()
