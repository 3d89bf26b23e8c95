"""Runs inside a ComfyUI's Python: our MODEL under the host's TorchCompileModel.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/compile_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import random_s3dit, relative  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from zimage_core import S3DiTConfig  # noqa: E402
from zimage_core.model.sequence import Span  # noqa: E402

enter(HOST, "--use-pytorch-cross-attention")  # what GPUs use; the CPU default breaks graphs itself
import comfy.sample  # noqa: E402
from comfy_extras.nodes_torch_compile import TorchCompileModel  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
CONFIG = S3DiTConfig(dim=256, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=64)
PROMPTS = {"first": 21, "as long when padded": 30, "longer": 70, "longer still": 130}  # caption tokens


def sampled(patcher, length: int, cfg: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED + length)
    caption, other = (
        [[torch.randn(1, n, CONFIG.cap_feat_dim, generator=generator), {}]] for n in (length, 9)
    )
    latent = torch.zeros(1, 16, 8, 12)
    noise = comfy.sample.prepare_noise(latent, SEED)
    inputs = (3, cfg, "euler", "simple", caption, other, latent)
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=SEED)


def block_in_one_graph(block: torch.nn.Module) -> bool:
    """fullgraph raises where the code of a block would break the graph."""
    tokens = torch.randn(1, 64, CONFIG.dim)
    freqs = torch.eye(2).expand(1, 64, 1, 64, 2, 2).contiguous()
    modulation = tuple(torch.ones(1, 1, CONFIG.dim) for _ in range(4))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    with torch.no_grad():
        out = compiled(tokens, Span(freqs, options={"block_index": 0}), modulation)
        return relative(out, block(tokens, Span(freqs), modulation)) < 1e-6


path = SCRATCH / "small.safetensors"
save_file(random_s3dit(CONFIG, SEED).state_dict(), path)
patcher = extension_module("nodes.host.loading.model").load_patcher(path, "fp32")
compiled = TorchCompileModel.execute(patcher, "inductor").result[0]
graphs, distances = {}, {}
for name, length in PROMPTS.items():
    made = sampled(compiled, length)
    graphs[name] = counters["stats"]["unique_graphs"]
    distances[name] = relative(made, sampled(patcher, length))
breaks = {reason: count for reason, count in counters["graph_break"].items()}
answer = {
    "graphs": graphs,
    "distances": distances,
    "breaks": breaks,
    "block": block_in_one_graph(patcher.model.diffusion_model.layers[0]),
}
sys.stdout.write(json.dumps(answer) + "\n")
