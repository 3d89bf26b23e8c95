"""Masks and pixels around an edit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zimage_core.sampling.inpaint import composite, feathered, fitted_mask, grown, latent_mask, padded


def square(size: int = 40, low: int = 15, high: int = 25) -> Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, low:high, low:high] = 1
    return mask


def distance_from_square(size: int = 40, low: int = 15, high: int = 25) -> Tensor:
    """[H, W]: the larger of the distances along the two axes, 0 inside."""
    along = torch.arange(size)
    away = torch.maximum((low - along).clamp(min=0), (along - high + 1).clamp(min=0))
    return torch.maximum(away[:, None], away[None])


@pytest.mark.parametrize("pixels", [1, 4, 30])
def test_growing_reaches_exactly_so_far(pixels: int) -> None:
    assert torch.equal(grown(square(), pixels)[0], (distance_from_square() <= pixels).float())


def test_shrinking_undoes_growing_and_nought_is_nothing() -> None:
    assert torch.equal(grown(grown(square(), 3), -3), square())
    assert torch.equal(grown(square(), 0), square())
    assert grown(square(), -5).sum() == 0


def test_growing_keeps_grey_levels() -> None:
    assert set(grown(0.25 * square() + 0.5 * square(40, 19, 20), 2).unique().tolist()) == {0.0, 0.25, 0.75}


@pytest.mark.parametrize("pixels", [2, 7, 8])
def test_an_edge_falls_from_one_to_exactly_nought(pixels: int) -> None:
    soft, away = feathered(square(), pixels)[0], distance_from_square()
    assert torch.equal(soft[away == 0], torch.ones(100))
    assert soft[away > pixels].abs().max() == 0
    row = soft[20, 25 : 25 + pixels]
    assert (row.diff() <= 1e-6).all() and row[0] < 1
    assert ((soft > 0) & (soft < 1)).any()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("pixels", "radius"), [(2, 1), (3, 1), (7, 3), (8, 4)])
def test_an_edge_falls_in_even_steps(pixels: int, radius: int, turned: bool) -> None:
    """Beside a straight edge, up to the picture's own border: 1 - d / (2 r + 1) at d pixels from it."""
    mask = torch.zeros(1, 9, 40)
    mask[..., :20] = 1
    away = torch.arange(-19, 21).clamp(min=0)
    wanted = (1 - away / (2 * radius + 1)).clamp(min=0).expand(9, 40)
    soft = feathered(mask.mT, pixels).mT[0] if turned else feathered(mask, pixels)[0]
    torch.testing.assert_close(soft, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pixels", [0, 1])
def test_no_feather_is_the_mask_itself(pixels: int) -> None:
    assert torch.equal(feathered(square(), pixels), square())


def test_a_soft_edge_takes_nothing_from_a_grey_mask() -> None:
    grey = 0.25 * square() + 0.5 * square(40, 19, 20)
    soft = feathered(grey, 4)
    assert (soft >= grey).all() and soft.max() == 0.75


def test_a_mask_of_the_whole_picture_stays_whole() -> None:
    assert torch.equal(feathered(torch.ones(1, 20, 30), 8), torch.ones(1, 20, 30))


@pytest.mark.parametrize("shape", [(30, 20), (1, 30, 20), (3, 30, 20), (1, 1, 30, 20)])
def test_masks_of_any_shape_fit_the_pictures(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    fitted = fitted_mask(mask, (30, 20), 3)
    assert torch.equal(fitted, mask.reshape(-1, 30, 20).expand(3, -1, -1))
    scaled = fitted_mask((mask > 0.5).float(), (61, 45), 2)
    assert scaled.shape == (2, 61, 45) and 0 <= scaled.min() and scaled.max() <= 1


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (33, 48), (32, 47), (1, 5), (250, 131)])
def test_padding_repeats_the_last_pixels(size: tuple[int, int]) -> None:
    image = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(2))
    larger = padded(image, 16)
    assert all(
        side % 16 == 0 and 0 <= side - was < 16 for side, was in zip(larger.shape[1:3], size, strict=True)
    )
    assert torch.equal(larger[:, : size[0], : size[1]], image)
    assert (larger[:, size[0] :] == larger[:, size[0] - 1 : size[0]]).all()
    assert (larger[:, :, size[1] :] == larger[:, :, size[1] - 1 : size[1]]).all()
    assert padded(image[..., 0], 16).shape == larger.shape[:3]


def test_one_painted_pixel_opens_its_latent_cell() -> None:
    mask = torch.zeros(1, 32, 48)
    mask[0, 17, 9] = 0.4
    cells = latent_mask(mask, 8)
    assert cells.shape == (1, 1, 4, 6)
    assert cells.nonzero().tolist() == [[0, 0, 2, 1]] and cells.max() == mask.max()


def test_outside_of_the_mask_the_picture_is_the_same_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    image, edited = torch.rand(2, 2, 40, 40, 3, generator=generator)
    mask = feathered(square(), 6).expand(2, -1, -1)
    result = composite(image, edited, mask)
    assert torch.equal(result[mask == 0], image[mask == 0])
    assert torch.equal(result[mask == 1], edited[mask == 1])
    between = (mask > 0) & (mask < 1)
    low, high = torch.minimum(image, edited)[between], torch.maximum(image, edited)[between]
    assert (result[between] >= low - 1e-6).all() and (result[between] <= high + 1e-6).all()
