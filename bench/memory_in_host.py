"""What the host expects our MODEL to need, and what a forward allocates, where its modules can be imported.

Every width of the 6 B model in bfloat16; layers are alike, so two stand for thirty. Without a GPU nothing is
computed: tensors are fake, and their bytes are counted as they come and go. As a script, in a process of the
host's own, it writes one line of JSON.

python tests/host/launch.py bench/memory_in_host.py ComfyUI_FOLDER
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from bench.peak import Peak  # noqa: E402
from tests.host.inside import enter, module_without_nodes  # noqa: E402
from tests.host.native_network import native_network  # noqa: E402
from zimage_core import S3DiTConfig  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = S3DiTConfig(n_layers=2)
OMNI = dataclasses.replace(CONFIG, siglip_feat_dim=1152)
SIZES = [(512, 1), (512, 4), (1024, 1), (1024, 2), (1024, 4), (1536, 1), (2048, 1), (2048, 2)]
CAPTIONS = [64, 512]  # tokens
WITH_REFERENCES = [(512, 1, 1), (1024, 1, 1), (1024, 2, 3)]  # and as many reference images of 1024 x 1024


class FusedNorm(TorchFunctionMode):
    """On cards RMS norm is one kernel; on the CPU it is several, with float32 copies between them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.rms_norm or function is torch.nn.functional.rms_norm:
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))


def forward(network, side: int, batch: int, length: int, **more) -> None:
    x = torch.empty(batch, 16, side // 8, side // 8, dtype=torch.bfloat16, device=DEVICE)
    context = torch.empty(batch, length, CONFIG.cap_feat_dim, dtype=torch.bfloat16, device=DEVICE)
    network(x, torch.ones(batch, device=DEVICE), context, (length,) * batch, **more)


def peak(network, *sizes: int, **more) -> int:
    """Peak bytes over two steps of a run, beside the weights."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward(network, *sizes, **more)
        forward(network, *sizes, **more)
        return torch.cuda.max_memory_allocated() - before
    tracker = Peak()
    with FusedNorm(), tracker:
        forward(network, *sizes, **more)
        forward(network, *sizes, **more)
    return tracker.peak


def ours(sizes: S3DiTConfig):
    import comfy.ops

    model = module_without_nodes("nodes.host.loading.model")
    config = model.Config({"image_model": "lumina2", **dataclasses.asdict(sizes)})
    config.set_inference_dtype(torch.bfloat16, None)
    config.custom_operations = comfy.ops.disable_weight_init
    return config.get_model({}, "", device=DEVICE)


def kept() -> tuple:
    """As a run hands it to each of its forwards."""
    conds = module_without_nodes("nodes.host.running.conds")
    return (conds.Kept(conds.Run(), object()),)


def references(count: int, batch: int) -> tuple[dict, dict]:
    """As a conditioning holds them, and as the network takes them."""
    import comfy.clip_vision

    one = {"dtype": torch.bfloat16, "device": DEVICE}
    seen = comfy.clip_vision.Output()
    seen["last_hidden_state"] = torch.empty(1, 256, OMNI.siglip_feat_dim, **one)
    seen["image_sizes"] = [(3, 256, 256)]
    written = {
        "reference_latents": [torch.empty(1, 16, 128, 128, **one)] * count,
        "reference_latents_text_embeds": [torch.empty(1, 4, OMNI.cap_feat_dim, **one)] * (count + 1),
        "clip_vision_outputs": [seen] * count,
    }
    conds = module_without_nodes("nodes.host.running.references").reference_conds(written)
    return written, {name: cond.process_cond(batch).cond for name, cond in conds.items()}


def plain_rows() -> list[dict]:
    base, rows = ours(CONFIG), []
    for side, batch in SIZES:
        for length in CAPTIONS:
            caption = torch.empty(batch, length, CONFIG.cap_feat_dim)
            conds = {k: [v] for k, v in base.extra_conds_shapes(cross_attn=caption).items()}
            expected = base.memory_required([batch, 16, side // 8, side // 8], cond_shapes=conds)
            needed = peak(base.diffusion_model, side, batch, length, kept=kept())
            sizes = {"side": side, "batch": batch, "caption": length}
            rows.append({**sizes, "expected": expected, "peak": needed})
    return rows


def rows_with_references() -> list[dict]:
    base, rows, length = ours(OMNI), [], CAPTIONS[0]
    for side, batch, count in WITH_REFERENCES:
        written, given = references(count, batch)
        conds = base.extra_conds_shapes(cross_attn=torch.empty(batch, length, CONFIG.cap_feat_dim), **written)
        conds = {k: [[batch, *v[1:]]] for k, v in conds.items()}  # the host's estimate has one of each
        expected = base.memory_required([batch, 16, side // 8, side // 8], cond_shapes=conds)
        needed = peak(base.diffusion_model, side, batch, length, kept=kept(), **given)
        sizes = {"side": side, "batch": batch, "caption": length, "references": count}
        rows.append({**sizes, "expected": expected, "peak": needed})
    return rows


def measure() -> dict:
    """`rows` of expected and needed bytes by size, the `native` network's need at 1024, and the `device`."""
    import comfy.model_management

    # the rule that holds on cards: a flash kernel, which needs no memory of its own to speak of
    flash = {"pytorch_attention_flash_attention": lambda: True}
    tensors = contextlib.nullcontext() if DEVICE == "cuda" else FakeTensorMode(allow_non_fake_inputs=True)
    with mock.patch.multiple(comfy.model_management, **flash), tensors, torch.no_grad():
        rows = plain_rows() + rows_with_references()
        theirs = native_network(CONFIG, dtype=torch.bfloat16, device=DEVICE)
        return {"rows": rows, "native": peak(theirs, 1024, 1, CAPTIONS[0]), "device": DEVICE}


if __name__ == "__main__":
    enter(Path(sys.argv[1]).resolve(), "--use-pytorch-cross-attention")
    sys.stdout.write(json.dumps(measure()) + "\n")
