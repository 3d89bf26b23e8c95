"""The host's TorchCompileModel on our MODEL: one graph, whatever the prompt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch._dynamo.utils import counters

from tests.core.random_models import random_s3dit, relative
from tests.inside.sampling import SEED, from_file, prompts, sampled
from zimage_core import S3DiTConfig
from zimage_core.model.sequence import Span

CONFIG = S3DiTConfig(dim=256, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=64)
PROMPTS = {"first": 21, "as long when padded": 30, "longer": 70, "longer still": 130}  # caption tokens


@pytest.fixture(autouse=True, scope="module")
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(scratch):
    return from_file(scratch / "small.safetensors", random_s3dit(CONFIG, SEED).state_dict())


@pytest.fixture(scope="module")
def runs(model) -> dict[str, tuple[int, float]]:
    """By prompt, one after another: how many graphs there are by then, and how far the latents are off.

    That is from those of the model that is not compiled.
    """
    compiled = TorchCompileModel.execute(model, "inductor").result[0]
    found = {}
    for name, length in PROMPTS.items():
        captions = prompts(CONFIG.cap_feat_dim, length, 9)
        made = sampled(compiled, *captions, steps=3)
        graphs = counters["stats"]["unique_graphs"]
        found[name] = graphs, relative(made, sampled(model, *captions, steps=3))
    return found


def test_a_whole_forward_breaks_only_where_it_looks_into_the_runs_memo(runs) -> None:
    assert all("S3DiT.prepare" in reason for reason in counters["graph_break"]), counters["graph_break"]


def test_no_new_graph_for_another_prompt(runs) -> None:
    """Prompts of 21, 30, 70 and 130 tokens run on what was compiled for the first."""
    assert len(runs) == 4
    counts = {graphs for graphs, _ in runs.values()}
    assert len(counts) == 1 and counts.pop() > 0, runs


def test_the_same_latents(runs) -> None:
    assert all(distance <= 1e-5 for _, distance in runs.values()), runs


def test_a_block_is_one_graph(model) -> None:
    """fullgraph raises where the code of a block would break the graph."""
    block = model.model.diffusion_model.layers[0]
    tokens = torch.randn(1, 64, CONFIG.dim)
    freqs = torch.eye(2).expand(1, 64, 1, 64, 2, 2).contiguous()
    modulation = tuple(torch.ones(1, 1, CONFIG.dim) for _ in range(4))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    out = compiled(tokens, Span(freqs, options={"block_index": 0}), modulation)
    assert relative(out, block(tokens, Span(freqs), modulation)) < 1e-6
