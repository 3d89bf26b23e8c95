"""Every node of the host that takes and gives a MODEL does on ours what it does on the host's own Z-Image."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.random_models import relative
from tests.host import matrix, model_nodes
from tests.host.matrix import LONG, Graph, Link
from tests.host.model_nodes import BLOCKS, BY_TYPE, CHANGES, FAILS, NOTHING
from tests.host.server import ComfyServer
from tests.long import size

CLOSE = 1e-4  # relative L2 after whole runs
EFFECT = 5e-3  # a node that changes less would prove nothing
SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
BEHIND = "accelerated behind"  # the node, then Z-Image Accelerate; "accelerated" is the other way round
SIDES = (*matrix.SIDES, BEHIND)


@pytest.fixture(scope="module")
def nodes(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    base = tmp_path_factory.mktemp("nodes")
    matrix.write_files(base / "models", control=False)
    (base / "models" / "hypernetworks").mkdir()
    layer = {"linear.weight": torch.eye(128), "linear.bias": torch.ones(128)}
    torch.save({128: [layer, layer]}, base / "models" / "hypernetworks" / "small.pt")
    packs = (matrix.PACK, model_nodes.PACK)
    with ComfyServer(host_path, base, "--disable-api-nodes", packs=packs) as server:
        yield Nodes(server)


class Nodes:
    """Those of a host that take and give a MODEL, and what a picture becomes with each of them."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        own = {
            name: node
            for name, node in server.object_info().items()
            if not node["python_module"].startswith("custom_nodes")
        }
        self.found = {
            name: node
            for name, node in own.items()
            if "MODEL" in node["output"] and self.models(node) or name == "TrainLoraNode"
        }
        self.merges = {name for name, node in self.found.items() if len(self.models(node)) == 2}
        self.plain = cache(self._plain)

    @staticmethod
    def models(node: dict) -> list[str]:
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        return [name for name, (kind, *_) in inputs.items() if kind == "MODEL"]

    def inputs(self, name: str, g: Graph, model: Link) -> dict:
        node = self.found[name]
        given = {}
        for key, (kind, *options) in node["input"].get("required", {}).items():
            if isinstance(kind, str) and kind in BY_TYPE:
                given[key] = BY_TYPE[kind](g)
            elif isinstance(kind, list):
                given[key] = (kind or [""])[0]
            elif options:
                given[key] = options[0].get("default", (options[0].get("options") or [None])[0])
        if name in self.merges:
            changed = with_lora(g, model)
            given |= dict(zip(self.models(node), (model, changed), strict=True))
            return given | {key: 0.3 for key, value in given.items() if isinstance(value, float)}
        table = (CHANGES | BLOCKS | NOTHING | FAILS)[name]
        given |= {"model": model} | {k: v(g, model) if callable(v) else v for k, v in table.items()}
        known = node["input"].get("required", {}).keys() | node["input"].get("optional", {}).keys()
        return {key: value for key, value in given.items() if key in known}

    def put(self, name: str, g: Graph, model: Link) -> Link:
        """The MODEL that a node gives."""
        outputs = self.found[name]["output"]
        inputs = self.inputs(name, g, model)
        if "MODEL" in outputs:
            return g.add(name, outputs.index("MODEL"), **inputs)
        lora = g.add(name, outputs.index("LORA_MODEL"), **inputs)  # it trains and leaves the MODEL alone
        return g.add("LoraModelLoader", model=model, lora=lora, strength_model=1.0, bypass=False)

    def sampled(self, name: str, g: Graph, model: Link) -> Link:
        given = model_nodes.SAMPLING.get(name, {})
        given = {key: value(g, model) if callable(value) else value for key, value in given.items()}
        return g.ksampler(model, **{"cfg": 2.5, "negative": g.prompt(LONG), "steps": 4, **given})

    def made(self, name: str, g: Graph, side: str) -> Link:
        if side == BEHIND:
            model = g.add("ZImageAccelerate", model=self.put(name, g, g.model("native")))
        else:
            model = self.put(name, g, g.model(side))
        return self.sampled(name, g, model)

    def latents(self, name: str) -> dict[str, Tensor]:
        """Of every side, with a node; all in one run."""
        graph = Graph()
        outputs = {
            side: graph.add("SaveLatent", samples=self.made(name, graph, side), filename_prefix=f"l/{side}")
            for side in SIDES
        }
        result = self.server.run(graph.nodes, timeout=900)
        assert result.ok, [error["message"] for error in result.errors] or self.server.log_tail()
        return {side: matrix.saved(self.server, result, output) for side, output in outputs.items()}

    def errors(self, name: str) -> dict[str, str]:
        """Of every side, with the network's class left out of the words."""
        words = {}
        for side in SIDES:
            graph = Graph()
            graph.add("SaveLatent", samples=self.made(name, graph, side), filename_prefix="l/never")
            result = self.server.run(graph.nodes, timeout=900)
            assert not result.ok, side
            (error,) = result.errors
            text = f"{error['class_type']}: {error['type']}: {error['message'].strip()}"
            words[side] = re.sub(r"'(HostS3DiT|NextDiT)'", "the network", text)
        return words

    def _plain(self, name: str) -> Tensor:
        """What the host's own network makes without the node. name: whose sampling."""
        latents, _ = matrix.run(self.server, lambda g, model: self.sampled(name, g, model), sides=("native",))
        return latents["native"]

    def problem(self, name: str) -> str | None:
        """What is not as the table says."""
        if name in FAILS:
            words = self.errors(name)
            return None if len(set(words.values())) == 1 else f"other errors: {words}"
        latents, plain = self.latents(name), self.plain(name if name in model_nodes.SAMPLING else "")
        native = latents["native"]
        effects = {side: relative(latent, plain) for side, latent in latents.items()}
        distances = matrix.distances(latents)
        if name in BLOCKS and effects["native"] <= CLOSE:
            ours = {side: effect for side, effect in effects.items() if side != "native"}
            return None if min(ours.values()) > EFFECT else f"no effect: {ours}"
        if max(distances.values()) > CLOSE:
            return f"not as on the host's own: {distances}"
        if name in NOTHING:
            return None if effects["native"] <= CLOSE else f"it does something: {effects['native']}"
        return None if relative(native, plain) > EFFECT else "it changes nothing: the row proves nothing"


def with_lora(g: Graph, model: Link) -> Link:
    return g.add("LoraLoaderModelOnly", model=model, **model_nodes.LORA)


def test_every_node_is_in_the_table(nodes: Nodes) -> None:
    known = CHANGES | BLOCKS | NOTHING | FAILS | model_nodes.ELSEWHERE
    assert sorted(nodes.found.keys() - known.keys() - nodes.merges) == []


@pytest.mark.sampled
def test_nodes(nodes: Nodes) -> None:
    """In the short set those that once differed, and a few at random."""
    names = sorted(nodes.found.keys() - model_nodes.ELSEWHERE.keys())
    rest = [name for name in names if name not in model_nodes.ALWAYS]
    chosen = random.Random(SEED).sample(rest, size(5, len(rest)))
    names = [name for name in names if name in (*model_nodes.ALWAYS, *chosen)]
    before = nodes.plain("")
    problems = {}
    for name in names:
        try:
            problems[name] = nodes.problem(name)
        except AssertionError as error:
            problems[name] = str(error)
    problems = {name: problem for name, problem in problems.items() if problem}
    assert not problems, (SEED, problems)
    assert torch.equal(nodes._plain(""), before), "a node left something on the host's own network"


def test_compute_in_bfloat16(nodes: Nodes) -> None:
    """As near to full precision as the host's own network."""
    plain = nodes.plain("")
    latents, _ = matrix.run(
        nodes.server,
        lambda g, model: nodes.sampled("", g, g.add("ModelComputeDtype", model=model, dtype="bf16")),
    )
    errors = {side: relative(latent, plain) for side, latent in latents.items()}
    assert errors["native"] > 1e-3
    assert all(error <= 1.5 * errors["native"] for error in errors.values()), errors
