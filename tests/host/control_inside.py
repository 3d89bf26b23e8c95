"""Runs inside a ComfyUI's Python: control networks on our MODEL, against the library on the same files.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/control_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import random_s3dit, randomise, relative  # noqa: E402
from tests.host import matrix  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from tests.host.weight_files import fp8  # noqa: E402
from zimage_core.conditions.control import Control, ControlNet, control_latent  # noqa: E402
from zimage_core.config import ControlConfig  # noqa: E402
from zimage_core.weights import load_control  # noqa: E402

enter(HOST, "--use-pytorch-cross-attention")  # what GPUs use; the CPU default breaks graphs itself
import comfy.latent_formats  # noqa: E402
import comfy.model_management as management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
from comfy_extras.nodes_torch_compile import TorchCompileModel  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent))
import small_native  # noqa: E402

SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
CONFIG = matrix.SMALL_CONFIG  # which the host's own network has too
VERSIONS = {"1.0": (2, 16, "tokens"), "2.0": (2, 33, "layers"), "2.1": (1, 33, "refiner")}
FLUX = comfy.latent_formats.Flux()
SIDES = (8, 12)  # latent cells
generator = torch.Generator().manual_seed(SEED)
PICTURES = torch.rand(2, SIDES[0] * 8, SIDES[1] * 8, 3, generator=generator)
SCENE, MASK = torch.rand(1, 64, 96, 3, generator=generator), torch.zeros(1, 64, 96)
MASK[:, :, 40:] = 1.0
POSITIVE, NEGATIVE = ([[torch.randn(1, n, matrix.CAPTION, generator=generator), {}]] for n in (21, 9))

host = extension_module("nodes.host.running.control")
load_patcher = extension_module("nodes.host.loading.model").load_patcher
accelerated = extension_module("nodes.host.running.accelerate").accelerated
network = random_s3dit(CONFIG, SEED)
save_file(network.state_dict(), SCRATCH / "model.safetensors")


def random_control(version: str) -> ControlNet:
    count, channels, routing = VERSIONS[version]
    blocks = dataclasses.replace(CONFIG, n_layers=count)
    return randomise(ControlNet(ControlConfig(blocks, channels, routing)), SEED + 1)


def published(version: str) -> dict:
    """As a file of that version lies on the disk."""
    state = random_control(version).state_dict()
    if version == "2.0":
        refiner = random_control("2.1").state_dict()
        refiner = {k: v for k, v in refiner.items() if k.startswith("control_noise_refiner.")}
        state |= {k: v * (".after_proj." not in k) for k, v in refiner.items()}
    return state


class PooledVAE:
    """Sixteen channels of means, and a record of who was loaded at each use."""

    def __init__(self):
        self.uses = []

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels):
        self.uses.append((tuple(pixels.shape), [type(m.model).__name__ for m in management.loaded_models()]))
        return F.avg_pool2d(pixels.movedim(-1, 1), 8).repeat(1, 6, 1, 1)[:, :16]


def library_encode(pixels: torch.Tensor) -> torch.Tensor:
    return FLUX.process_in(PooledVAE().encode(pixels.movedim(1, -1)))


def model():
    return load_patcher(SCRATCH / "model.safetensors", "fp32")


def steered(
    patcher, file: str, vae=None, strength=0.8, start=0.0, end=1.0, image=PICTURES[:1], inpaint=False
):
    pictures = (image, *((MASK, SCENE) if inpaint else (None, None)))
    control = extension_module("nodes.host.loading.control").load_control(SCRATCH / f"{file}.safetensors")
    patch = host.ControlPatch(control, vae or PooledVAE(), strength, start, end, *pictures)
    return host.controlled(patcher, patch)


def sampled(patcher, steps=2, cfg=1.0, batch=1, seed=SEED, positive=POSITIVE):
    latent = torch.zeros(batch, 16, *SIDES)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    inputs = (steps, cfg, "euler", "simple", positive, NEGATIVE, latent)
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=seed)


def host_velocity(patcher) -> torch.Tensor:
    """Of one step from pure noise straight to the picture."""
    latent = torch.zeros(1, 16, *SIDES)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(SEED))
    euler = comfy.samplers.sampler_object("euler")
    sigmas = torch.tensor([1.0, 0.0])
    out = comfy.sample.sample_custom(
        patcher, noise, 1.0, euler, sigmas, POSITIVE, NEGATIVE, latent, disable_pbar=True
    )
    return noise - FLUX.process_in(out)


def library_velocity(file: str, inpaint: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    noise = torch.randn(1, 16, *SIDES, generator=torch.Generator().manual_seed(SEED))
    control = load_control(SCRATCH / f"{file}.safetensors", dtype=dtype)
    given = (SCENE.movedim(-1, 1), MASK[:, None]) if inpaint else (None, None)
    latent = control_latent(library_encode, control.config.channels, PICTURES[:1].movedim(-1, 1), *given)
    return network(noise, torch.ones(1), POSITIVE[0][0], hooks=[Control(control, latent, 0.8)])


def as_in_the_library() -> dict:
    distances = {}
    for version in VERSIONS:
        for inpaint in (False, True)[: 1 if version == "1.0" else 2]:
            made = host_velocity(steered(model(), version, inpaint=inpaint))
            name = f"{version}{', inpaint' * inpaint}"
            distances[name] = relative(made, library_velocity(version, inpaint))
    return distances


def quantised_files() -> dict:
    state = published("2.1")
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    files = {
        "bf16": {k: v.bfloat16() for k, v in state.items()},
        "scaled fp8": fp8(state, "scale_weight", {})
        | {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)},
        "comfy_quant": fp8(state, "weight_scale", {"comfy_quant": mark}),
        "fp8 without scales": {
            k: v.to(torch.float8_e4m3fn if v.ndim == 2 else torch.bfloat16) for k, v in state.items()
        },
    }
    distances = {}
    for name, tensors in files.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, SCRATCH / f"{name}.safetensors")
        distances[name] = relative(host_velocity(steered(model(), name)), library_velocity(name, False))
    return distances


def each_sample_has_its_picture() -> float:
    """Two guided pictures at once, prompts of different lengths, against one at a time."""
    together = sampled(steered(model(), "2.1", image=PICTURES), cfg=3.0, batch=2)
    noise = torch.randn(together.shape, generator=torch.Generator().manual_seed(SEED))
    alone = []
    for i in range(2):
        inputs = (2, 3.0, "euler", "simple", POSITIVE, NEGATIVE, torch.zeros(1, 16, *SIDES))
        patcher = steered(model(), "2.1", image=PICTURES[i : i + 1])
        alone.append(comfy.sample.sample(patcher, noise[i : i + 1], *inputs, disable_pbar=True, seed=SEED))
    return relative(together, torch.cat(alone))


def control_of(patcher) -> ControlNet:
    return patcher.model_options["transformer_options"]["patches"][host.CONTROLS][0].network


def work_of_a_run() -> dict:
    """Encodings, embeddings and blocks of two runs of eight steps with two prompts."""
    vae = PooledVAE()
    patcher = steered(model(), "2.1", vae)
    control = control_of(patcher)
    embedded, loaded = [], []
    control.control_all_x_embedder["2-1"].register_forward_hook(lambda *_: embedded.append(1))
    control.control_layers[0].register_forward_hook(
        lambda *_: loaded.append(any(m.model is control for m in management.loaded_models()))
    )
    management.unload_all_models()
    sampled(patcher, steps=8, cfg=3.0)
    first = len(vae.uses)
    sampled(patcher, steps=8, cfg=3.0, seed=SEED + 1)
    return {
        "encoded": [first, len(vae.uses) - first],
        "loaded while encoding": vae.uses[0][1],
        "embedded": len(embedded),
        "weights loaded": all(loaded),
    }


def ranges() -> dict:
    """Of eight steps, how many a control takes part in, and what it changes."""
    plain = sampled(model(), steps=8)
    found = {}
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.0, 0.0), (1.0, 1.0)):
        patcher, calls = steered(model(), "2.1", start=start, end=end), []
        control_of(patcher).control_layers[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        difference = relative(sampled(patcher, steps=8), plain)
        found[f"{start} to {end}"] = [len(calls), difference]
    off = sampled(steered(model(), "2.1", strength=0.0), steps=8)
    return {"steps": found, "no strength is the model itself": torch.equal(off, plain)}


def part_of_the_picture() -> list:
    """The host samples an area by itself: the control picture is resized to it."""
    vae = PooledVAE()
    half = [[POSITIVE[0][0], {"area": (8, 6, 0, 0), "strength": 1.0}], *POSITIVE]
    made = sampled(steered(model(), "2.1", vae), positive=half)
    return [bool(torch.isfinite(made).all()), sorted({use[0][1:3] for use in vae.uses})]


def refusal(patcher, file: str = "2.1") -> str:
    try:
        steered(patcher, file)
    except ValueError as error:
        return str(error)
    return ""


def on_the_hosts_own() -> dict:
    native = small_native.patcher(dict(network.state_dict()))
    ours, _ = accelerated(native)
    made = host_velocity(steered(ours, "2.1"))
    return {
        "refusal": refusal(native),
        "accelerated": relative(made, library_velocity("2.1", False)),
    }


def several() -> float:
    """The same control twice is one of both strengths."""
    twice = steered(steered(model(), "2.1", strength=0.3), "2.1", strength=0.5)
    return relative(host_velocity(twice), host_velocity(steered(model(), "2.1", strength=0.8)))


def compiled() -> float:
    patcher = TorchCompileModel.execute(steered(model(), "2.1", end=0.8), "eager").result[0]
    return relative(sampled(patcher, steps=4, cfg=3.0), sampled(steered(model(), "2.1", end=0.8), 4, 3.0))


def streamed() -> list:
    """With nearly no memory for weights: the distance, and how many models were loaded in part."""
    plain = host_velocity(steered(model(), "2.1"))
    management.unload_all_models()
    os.environ["STREAM_ON_CPU"] = "--novram"
    import stream_on_cpu  # noqa: F401

    said = logging.Handler()
    messages: list[str] = []
    said.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(said)
    logging.getLogger().setLevel(logging.INFO)
    distance = relative(host_velocity(steered(model(), "2.1")), plain)
    return [distance, sum("loaded partially" in message for message in messages)]


for version in VERSIONS:
    save_file({k: v.contiguous() for k, v in published(version).items()}, SCRATCH / f"{version}.safetensors")
wide = dataclasses.replace(CONFIG, dim=512, n_heads=4, ffn_dim=None, t_dim=None, n_layers=1)
save_file(ControlNet(ControlConfig(wide, 16, "tokens")).state_dict(), SCRATCH / "wide.safetensors")
with torch.no_grad():
    answer = {
        "library": as_in_the_library(),
        "quantised": quantised_files(),
        "batch": each_sample_has_its_picture(),
        "work": work_of_a_run(),
        "ranges": ranges(),
        "area": part_of_the_picture(),
        "too wide": refusal(model(), "wide"),
        "native": on_the_hosts_own(),
        "several": several(),
        "compiled": compiled(),
        "streamed": streamed(),
    }
sys.stdout.write(json.dumps(answer) + "\n")
