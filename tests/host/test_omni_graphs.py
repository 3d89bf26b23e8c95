"""Graphs with reference pictures on a real server: ComfyUI's nodes around our loaders and our MODEL."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.core.random_models import random_s3dit, randomise, relative
from tests.host import matrix
from tests.host.matrix import SHORT, Graph, Link
from tests.host.server import ComfyServer
from zimage_core.config import NanoConfig
from zimage_core.model.vision import VisionEncoder

FILE, VISION_FILE = "omni.safetensors", "siglip2_small.safetensors"
VISION = NanoConfig().vision
CONFIG = dataclasses.replace(matrix.SMALL_CONFIG, siglip_feat_dim=VISION.hidden_size)
CLOSE = 1e-4  # relative L2 after whole runs; the host's query and key norms have another epsilon


@pytest.fixture(scope="module")
def small(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("omni")
    for name in ("models/diffusion_models", "models/clip_vision"):
        (base / name).mkdir(parents=True)
    save_file(random_s3dit(CONFIG, seed=7).state_dict(), base / "models/diffusion_models" / FILE)
    encoder = randomise(VisionEncoder(VISION), 8)
    save_file(encoder.state_dict(), base / "models/clip_vision" / VISION_FILE)
    with ComfyServer(host_path, base, "--disable-api-nodes", packs=(matrix.PACK,)) as server:
        yield server


def picture(g: Graph) -> Link:
    return g.add("EmptyImage", width=64, height=96, batch_size=1, color=0x20C030)


def vision(g: Graph) -> Link:
    return g.add("ZImageVisionLoader", vision=VISION_FILE)


def omni_node(g: Graph, model: Link) -> Link:
    """ComfyUI's node for omni weights; the negative has none of the pictures."""
    inputs = {"clip": g.clip, "image_encoder": vision(g), "prompt": SHORT, "vae": g.vae}
    positive = g.add("TextEncodeZImageOmni", auto_resize_images=False, image1=picture(g), **inputs)
    return g.ksampler(model, positive=positive, cfg=2.0)


def stock_nodes(g: Graph, model: Link) -> Link:
    """The same by nodes that every host has: ReferenceLatent and unCLIPConditioning."""
    seen = g.add("CLIPVisionEncode", clip_vision=vision(g), image=picture(g), crop="none")
    latent = g.add("VAEEncode", pixels=picture(g), vae=g.vae)
    positive = g.add("ReferenceLatent", conditioning=g.prompt(SHORT), latent=latent)
    settings = {"strength": 1.0, "noise_augmentation": 0.0}
    positive = g.add("unCLIPConditioning", conditioning=positive, clip_vision_output=seen, **settings)
    return g.ksampler(model, positive=positive)


def test_our_model_by_any_node_is_the_host_s(small: ComfyServer) -> None:
    """Its own model, ours, and its own under Accelerate; older hosts have no omni model to compare with."""
    has_omni = "TextEncodeZImageOmni" in small.object_info()
    for make in (omni_node, stock_nodes) if has_omni else (stock_nodes,):
        sides = matrix.SIDES if has_omni else ("ours",)
        found, _ = matrix.run(small, make, sides=sides, file=FILE)
        alone, _ = matrix.run(small, Graph.ksampler, sides=("ours",), file=FILE)
        assert relative(found["ours"], alone["ours"]) > 1e-2, "the references change nothing"
        if has_omni:
            assert all(distance <= CLOSE for distance in matrix.distances(found).values()), make.__name__
