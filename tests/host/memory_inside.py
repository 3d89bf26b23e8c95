"""Runs inside a ComfyUI's Python: what the host expects our MODEL to need, and what a forward allocates.

Every width of the 6 B model in bfloat16; layers are alike, so two stand for thirty. Without a GPU nothing is
computed: tensors are fake, and their bytes are counted as they come and go. Writes one JSON line to standard
output.

python tests/host/launch.py tests/host/memory_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

HOST = Path(sys.argv[1]).resolve()

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from bench.peak import Peak  # noqa: E402
from tests.host.inside import enter, module_without_nodes  # noqa: E402
from tests.host.native_network import native_network  # noqa: E402
from zimage_core import S3DiTConfig  # noqa: E402

enter(HOST, "--use-pytorch-cross-attention")
import comfy.clip_vision  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402

# the rule that holds on cards: a flash kernel, which needs no memory of its own to speak of
comfy.model_management.pytorch_attention_flash_attention = lambda: True

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


rows = []
tensors = contextlib.nullcontext() if DEVICE == "cuda" else FakeTensorMode(allow_non_fake_inputs=True)
with tensors, torch.no_grad():
    base = ours(CONFIG)
    for side, batch in SIZES:
        for length in CAPTIONS:
            caption = torch.empty(batch, length, CONFIG.cap_feat_dim)
            conds = {k: [v] for k, v in base.extra_conds_shapes(cross_attn=caption).items()}
            expected = base.memory_required([batch, 16, side // 8, side // 8], cond_shapes=conds)
            found = peak(base.diffusion_model, side, batch, length, kept=kept())
            rows.append(
                {"side": side, "batch": batch, "caption": length, "expected": expected, "peak": found}
            )
    base = ours(OMNI)
    for side, batch, count in WITH_REFERENCES:
        length = CAPTIONS[0]
        written, given = references(count, batch)
        conds = base.extra_conds_shapes(cross_attn=torch.empty(batch, length, CONFIG.cap_feat_dim), **written)
        conds = {k: [[batch, *v[1:]]] for k, v in conds.items()}  # the host's estimate has one of each
        expected = base.memory_required([batch, 16, side // 8, side // 8], cond_shapes=conds)
        found = peak(base.diffusion_model, side, batch, length, kept=kept(), **given)
        sizes = {"side": side, "batch": batch, "caption": length, "references": count}
        rows.append({**sizes, "expected": expected, "peak": found})
    theirs = peak(native_network(CONFIG, dtype=torch.bfloat16, device=DEVICE), 1024, 1, CAPTIONS[0])
answer = {"rows": rows, "native": theirs, "device": DEVICE}
sys.stdout.write(json.dumps(answer) + "\n")
