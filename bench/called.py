"""Which operators a forward calls on the meta device: ours, the host's own network's, diffusers'.

Ours is called in the library and as the host runs it. A script for a process of the host's own; it writes
one line of JSON.

python tests/host/launch.py bench/called.py ComfyUI_FOLDER [--plain]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

# Packages that fast paths may need.
OPTIONAL = ("triton", "flash_attn", "flash_attn_interface", "sageattention")


def hide(packages: Iterable[str]) -> None:
    """From here on, code that looks for them finds none."""
    sys.modules.update(dict.fromkeys(packages))


if __name__ == "__main__":
    HOST = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if "--plain" in sys.argv:
        hide(OPTIONAL)

import torch  # noqa: E402

from bench.networks import Run, diffusers_run, inputs, native_run, our_run  # noqa: E402
from bench.operators import Operator, called_by  # noqa: E402
from tests.core.peers import diffusers_of  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from tests.host.native_network import native_network  # noqa: E402
from zimage_core import S3DiT, S3DiTConfig  # noqa: E402
from zimage_core.model import backends  # noqa: E402
from zimage_core.model.memo import RunMemo  # noqa: E402

SIZES = (512, 1024, 2048)  # pixels
DTYPE = torch.bfloat16
# The steps of a run after its first: with a sigma not seen before, and with the last one again.
NEW, AGAIN = "new sigma", "same sigma"
OURS, IN_HOST, NATIVE, DIFFUSERS = "ours", "ours in the host", "the host's own", "diffusers"
Calls = Counter[Operator]


def later_steps(run: Run) -> dict[str, Calls]:
    sigmas = [torch.empty(1, device="meta") for _ in range(2)]
    called_by(lambda: run(sigmas[0]))
    again = called_by(lambda: run(sigmas[0]))
    return {NEW: Counter(called_by(lambda: run(sigmas[1]))), AGAIN: Counter(again)}


def as_on_hopper(*modules: Any) -> None:
    """The attention that these modules `backends` choose on an H200, for tensors without a device."""
    for module in modules:
        module.capability, module.cudnn_version = lambda device: 9, lambda: backends.CUDNN


def of_ours(config: S3DiTConfig, pixels: int) -> dict[str, Calls]:
    network = S3DiT(config, device="meta", dtype=DTYPE)
    return later_steps(our_run(network, *inputs(config, pixels, "meta", DTYPE), RunMemo()))


def of_diffusers(config: S3DiTConfig, pixels: int) -> dict[str, Calls]:
    peer = diffusers_of(S3DiT(config, device="meta", dtype=DTYPE))
    return later_steps(diffusers_run(peer, *inputs(config, pixels, "meta", DTYPE)))


def of_native(config: S3DiTConfig, pixels: int) -> dict[str, Calls]:
    network = native_network(config, dtype=DTYPE, device="meta")
    return later_steps(native_run(network, *inputs(config, pixels, "meta", DTYPE)))


def of_ours_in_host(config: S3DiTConfig, pixels: int) -> dict[str, Calls]:
    """The host's model around our network; its conditioning has the memo of the run."""
    import comfy.ops

    settings = {"image_model": "lumina2", **dataclasses.asdict(config)}
    model_config = extension_module("nodes.host.loading.model").Config(settings)
    model_config.set_inference_dtype(DTYPE, None)
    model_config.custom_operations = comfy.ops.disable_weight_init
    model = model_config.get_model({}, device="meta")
    x, caption = inputs(config, pixels, "meta", DTYPE)
    conds = model.extra_conds(cross_attn=caption, noise=x, device="meta")
    given = {name: cond.process_cond(batch_size=1).cond for name, cond in conds.items()}
    context = given.pop("c_crossattn")
    return later_steps(lambda sigma: model.diffusion_model(x, sigma, context=context, **given))


def enter_as_on_cards(host: Path) -> str:
    """The host with the attention that it takes on a card; its version."""
    enter(host, "--use-pytorch-cross-attention")
    import comfy.model_management  # noqa: F401  (looks for a card itself, and shall not find one)

    with mock.patch("torch.cuda.is_available", return_value=True):
        import comfy.ops  # noqa: F401  (where hosts decide in which order attention kernels are tried)
    import comfyui_version

    return comfyui_version.__version__


def main() -> None:
    version, config = enter_as_on_cards(HOST), S3DiTConfig()
    as_on_hopper(backends, extension_module("zimage_core.model.backends"))
    networks = {OURS: of_ours, IN_HOST: of_ours_in_host, NATIVE: of_native, DIFFUSERS: of_diffusers}
    found = [
        {"network": name, "size": size, "step": step, "calls": [[*call, n] for call, n in calls.items()]}
        for size in SIZES
        for name, of in networks.items()
        for step, calls in of(config, size).items()
    ]
    sys.stdout.write(json.dumps({"version": version, "found": found}) + "\n")


if __name__ == "__main__":
    main()
