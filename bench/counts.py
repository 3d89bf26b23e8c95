"""What noise cannot touch: operators, bytes, multiplications, and how often a run computes what it keeps."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.rows import row
from tests.core.peers import diffusers_of, diffusers_velocity
from tests.core.random_models import TINY, random_inputs, random_s3dit
from zimage_core import S3DiTConfig
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

VIEWS = set(
    "view t transpose permute expand unsqueeze squeeze slice split split_with_sizes unbind _unsafe_view "
    "select alias detach view_as_complex view_as_real as_strided _reshape_alias lift_fresh".split()
)
MODEL = S3DiTConfig(dim=1152, n_layers=2, n_refiner_layers=1, n_heads=9, cap_feat_dim=320)


class Work(TorchDispatchMode):
    """Counts operators that touch data, and the bytes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            self.operators += 1
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.bytes += tensor.numel() * tensor.element_size()
        return out


def formula(config: S3DiTConfig, image: int, caption: int) -> float:
    """Operations of one forward's block linears and attention, timestep part aside."""
    linear = 4 * config.dim**2 + 3 * config.dim * config.ffn_dim

    def stack(layers: int, tokens: int) -> float:
        return layers * (2 * tokens * linear + 4 * tokens**2 * config.dim)

    refiners = config.n_refiner_layers
    return stack(refiners, image) + stack(refiners, caption) + stack(config.n_layers, image + caption)


def forward_rows() -> list[dict]:
    model = random_s3dit(MODEL, 1).bfloat16()
    peer = diffusers_of(model)
    x, sigma, caption = random_inputs(MODEL, 1, size=(32, 32), length=64)
    x, caption = x.bfloat16(), caption.bfloat16()
    run = {"condition": Prompt(Captions.whole(caption)), "memo": RunMemo()}
    model(x, sigma, **run)
    with Work() as ours:
        model(x, sigma.clone(), **run)
    with Work() as theirs:
        diffusers_velocity(peer, x, sigma, [caption[0]])
    with FlopCounterMode(display=False) as flops:
        model(x, sigma, caption)
    blocks = 2 * MODEL.n_refiner_layers + MODEL.n_layers
    expected = formula(MODEL, 256, 64)
    label = "bf16 forward, 512x512, 2 layers"
    return [
        row(f"{label}: operators", ours.operators / theirs.operators, "x", "<= 0.8", "diffusers"),
        row(f"{label}: operators a block", ours.operators / blocks, ""),
        row(f"{label}: bytes written", ours.bytes / theirs.bytes, "x", "<= 1.05", "diffusers"),
        row(f"{label}: FLOPs", flops.get_total_flops() / expected, "x", "<= 1.02", "the formula"),
    ]


def run_rows() -> list[dict]:
    """Eight guided steps: two captions, sixteen forwards."""
    model = random_s3dit(TINY, 1)
    counts: Counter = Counter()
    parts = {"caption refiner": model.context_refiner[0], "timestep embedder": model.t_embedder}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: counts.update([name]))
    x, _, caption = random_inputs(TINY, 1, length=40)
    memo, conditions = RunMemo(), [Prompt(Captions.whole(c)) for c in (caption, caption[:, :7])]
    for sigma in torch.linspace(1, 0.2, 8):
        timesteps = sigma.repeat(1)
        for condition in conditions:
            model(x, timesteps, condition=condition, memo=memo)
    return [
        row("caption refinements in 8 guided steps", counts["caption refiner"], "", "== 2"),
        row("timestep embeddings in 8 guided steps", counts["timestep embedder"], "", "== 8"),
    ]


@torch.no_grad()
def run() -> list[dict]:
    return [*forward_rows(), *run_rows()]
