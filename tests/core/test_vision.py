"""The vision encoder against the transformers library's own model and preprocessing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from tests.core.random_models import randomise, relative
from zimage_core.config import VisionConfig
from zimage_core.model.vision import VisionEncoder, patch_grid
from zimage_core.weights import WeightsError, describe, load_vision_encoder

SMALL = VisionConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, max_num_patches=64
)


@pytest.fixture(scope="module")
def oracle() -> Siglip2VisionModel:
    config = Siglip2VisionConfig(
        hidden_size=SMALL.hidden_size,
        intermediate_size=SMALL.intermediate_size,
        num_hidden_layers=SMALL.num_hidden_layers,
        num_attention_heads=SMALL.num_attention_heads,
        num_patches=SMALL.max_num_patches,
    )
    return randomise(Siglip2VisionModel(config), seed=0)


def file_of(oracle: Siglip2VisionModel) -> dict[str, Tensor]:
    """As in the published file, whose text half we leave out: the pooling head is there."""
    return {f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in oracle.state_dict().items()}


def test_the_default_is_the_published_one() -> None:
    """SigLIP 2 so400m, patch 16, naflex: what its config.json says."""
    published = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "patch_size": 16, "max_num_patches": 256,
    }  # fmt: skip
    assert dataclasses.asdict(VisionConfig()) == published


@pytest.mark.parametrize("size", [(128, 128), (96, 200), (17, 90), (300, 211)])
@torch.no_grad()
def test_features_equal_the_library_s(oracle: Siglip2VisionModel, size: tuple[int, int]) -> None:
    """Its processor scales whole levels of 8 bits with a rounding of its own, so a few are off by one."""
    image = torch.randint(0, 256, (1, *size, 3), generator=torch.Generator().manual_seed(1)).float() / 255
    image[:, : size[0] // 2] = 0.25  # and something calm
    processor = Siglip2ImageProcessor(max_num_patches=SMALL.max_num_patches)
    inputs = processor(images=[(image[0] * 255).round().to(torch.uint8).movedim(-1, 0)], return_tensors="pt")
    rows, columns = inputs.spatial_shapes[0].tolist()
    wanted = oracle(**inputs).last_hidden_state[0, : rows * columns].view(rows, columns, -1)
    found = load_vision_encoder(file_of(oracle)).features(image)
    assert found.shape == (1, rows, columns, SMALL.hidden_size)
    assert relative(found[0], wanted) <= 5e-3


@torch.no_grad()
def test_without_scaling_they_are_the_same(oracle: Siglip2VisionModel) -> None:
    """128 x 128 pixels are 8 x 8 patches already."""
    image = torch.randint(0, 256, (2, 128, 128, 3), generator=torch.Generator().manual_seed(1)).float() / 255
    processor = Siglip2ImageProcessor(max_num_patches=SMALL.max_num_patches)
    frames = list((image * 255).round().to(torch.uint8).movedim(-1, 1))
    wanted = oracle(**processor(images=frames, return_tensors="pt")).last_hidden_state
    found = load_vision_encoder(file_of(oracle)).features(image)
    assert relative(found.flatten(1, 2), wanted) <= 1e-5


@pytest.mark.parametrize("most", [64, 256])
def test_the_grid_is_the_library_s(most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in torch.randint(16, 2000, (100, 2), generator=generator).tolist():
        wanted = get_image_size_for_max_num_patches(height, width, 16, most)
        rows, columns = patch_grid(height, width, most)
        assert (rows * 16, columns * 16) == wanted, (height, width)


def test_it_learns_from_random_weights() -> None:
    model = VisionEncoder(SMALL)
    image = torch.rand(4, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    model.features(image).var(dim=0).mean().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "k_proj.bias" not in n)


def test_sizes_are_read_from_the_file(oracle: Siglip2VisionModel) -> None:
    state = file_of(oracle)
    assert describe(state)["vision"]["config"] == SMALL
    big = VisionConfig()
    meta = VisionEncoder(big, device="meta").state_dict()
    assert describe(meta)["vision"]["config"] == big
    clip = state | {"vision_model.embeddings.patch_embedding.weight": torch.zeros(128, 3, 16, 16)}
    with pytest.raises(WeightsError, match="for one picture size.*siglip2-so400m-patch16-naflex"):
        load_vision_encoder(clip)
