"""The Flux-style autoencoder against diffusers' AutoencoderKL, and its own contract."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL as PeerAutoencoder

from tests.core.random_models import randomise, relative
from zimage_core import AutoencoderKL
from zimage_core.config import AutoencoderConfig
from zimage_core.model.autoencoder import Posterior
from zimage_core.weights import WeightsError, load_autoencoder

NARROW = AutoencoderConfig(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=2)


@pytest.fixture(scope="module")
def oracle():
    widths = [NARROW.ch * m for m in NARROW.ch_mult]
    return randomise(
        PeerAutoencoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths,
            layers_per_block=NARROW.num_res_blocks,
            latent_channels=16,
            norm_num_groups=32,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        seed=0,
    )


@pytest.fixture(scope="module")
def ours(oracle):
    return load_autoencoder(oracle.state_dict()).eval()


@pytest.mark.parametrize("size", [(64, 64), (72, 40), (8, 136)])
@torch.no_grad()
def test_agrees_with_diffusers(oracle, ours, size):
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = oracle.encode(pixels).latent_dist
    found = ours.encode(pixels)
    assert relative(found.mode(), wanted.mode()) <= 1e-5
    assert relative(found.logvar, wanted.logvar) <= 1e-5
    latent = torch.randn(2, 16, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(2))
    assert relative(ours.decode(latent), oracle.decode(latent).sample) <= 1e-5


def test_has_the_single_file_names(ours):
    names = set(ours.state_dict())
    for name in (
        "encoder.conv_in.weight",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.2.downsample.conv.bias",
        "encoder.mid.attn_1.proj_out.weight",
        "encoder.norm_out.weight",
        "decoder.up.3.upsample.conv.weight",
        "decoder.up.0.block.2.conv2.bias",
        "decoder.conv_out.weight",
    ):
        assert name in names
    assert not any("quant" in name for name in names)
    assert ours.state_dict()["encoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)


def test_the_default_is_the_real_one():
    model = AutoencoderKL(device="meta")
    assert sum(p.numel() for p in model.parameters()) == 83_819_683
    assert model.config.downscale == 8


def test_model_scaling_round_trips(ours):
    latent = torch.randn(1, 16, 4, 4)
    assert torch.allclose(ours.to_model(latent), (latent - 0.1159) * 0.3611)
    assert torch.allclose(ours.from_model(ours.to_model(latent)), latent, atol=1e-6)


def test_sampling_follows_the_generator():
    posterior = Posterior(torch.zeros(1, 16, 4, 4), torch.full((1, 16, 4, 4), -2.0))
    first, second = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert abs(float(first.std()) - torch.exp(torch.tensor(-1.0)).item()) < 0.1
    assert torch.equal(posterior.mode(), posterior.mean)


def test_errors_name_the_numbers(ours):
    with pytest.raises(ValueError, match="60x64.*multiples of 8"):
        ours.encode(torch.zeros(1, 3, 64, 60))
    with pytest.raises(ValueError, match=r"\[B,3,H,W\].*\[1, 4, 64, 64\]"):
        ours.encode(torch.zeros(1, 4, 64, 64))
    with pytest.raises(ValueError, match=r"\[B,16,h,w\].*\[1, 4, 8, 8\]"):
        ours.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="48 channels.*32"):
        AutoencoderKL(AutoencoderConfig(ch=48))


def identity(channels: int) -> torch.Tensor:
    return torch.eye(channels)[:, :, None, None]


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_around_the_latents_that_change_nothing_are_left_out(ours, bias):
    state = ours.state_dict()
    more = {"quant_conv.weight": identity(32), "post_quant_conv.weight": identity(16)}
    if bias:
        more |= {"quant_conv.bias": torch.zeros(32), "post_quant_conv.bias": torch.zeros(16)}
    loaded = load_autoencoder(state | more).state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[k], v) for k, v in state.items())


CHANGING = {
    "weights": {"weight": identity(32) * 1.01},
    "a bias": {"weight": identity(32), "bias": torch.linspace(0, 1, 32)},
    "another count": {"weight": identity(32)[:16]},
    "a wide kernel": {"weight": torch.zeros(32, 32, 3, 3)},
    "three dimensions": {"weight": identity(32)[..., 0]},
    "two dimensions": {"weight": torch.eye(32)},
}


@pytest.mark.parametrize("layer", ["quant_conv", "post_quant_conv"])
@pytest.mark.parametrize("change", CHANGING)
def test_convolutions_that_change_latents_are_refused(ours, change, layer):
    more = {f"{layer}.{part}": value for part, value in CHANGING[change].items()}
    with pytest.raises(WeightsError, match=f"a {layer} that changes latents"):
        load_autoencoder(ours.state_dict() | more)
