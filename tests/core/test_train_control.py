"""The control network of the nano model: its edges, its file, and that it learns beside a frozen model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.core.random_models import random_s3dit
from tests.core.test_train import CONCEPTS, PLAN, TINY_DIT, TINY_TEXT, bpe, one_thread  # noqa: F401
from zimage_core import Qwen3TextEncoder
from zimage_core.conditions.control import Control, ControlNet
from zimage_core.config import NanoConfig
from zimage_core.prompt.template import apply_template
from zimage_core.train.nano import control, text
from zimage_core.train.nano.captions import CaptionSet
from zimage_core.train.nano.pictures import colours
from zimage_core.weights import load_control, read_control


def test_edges_are_thin_and_where_brightness_changes() -> None:
    """A white square on black: its outline, one pixel wide, whatever the direction; a grey ramp has none."""
    picture = torch.full((1, 3, 32, 32), -1.0)
    picture[:, :, 8:24, 8:24] = 1.0
    found = control.edges(picture)
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    row, column = (found[0, 0, 16] > 0).nonzero().flatten(), (found[0, 0, :, 16] > 0).nonzero().flatten()
    for line in (row, column):
        assert 2 <= len(line) <= 4 and {7, 8} & set(line.tolist()) and {23, 24} & set(line.tolist())
    assert not (found[:, :, 10:22, 10:22] > 0).any() and not (found[:, :, :5] > 0).any()
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert not (control.edges(ramp)[..., 2:-2] > 0).any()


def test_the_file_fits_nano_in_four_megabytes() -> None:
    base = NanoConfig().transformer
    network = ControlNet(control.small_config(base))
    state = {f"network.{k}": torch.randn_like(v) for k, v in network.state_dict().items()}
    file = control.control_weights({**state, "base.x_pad_token": torch.zeros(1, 1)})
    assert sum(t.nbytes for t in file.values()) <= 4_000_000
    found = read_control(file)
    assert found.config.hint_layers(base) == (0, 2) and not found.config.inpaints
    loaded = load_control(file, dtype=torch.float32)
    theirs = state["network.control_layers.0.attention.qkv.weight"]
    # e4m3 has 3 bits behind the first, and from 2^-6 of its unit down an even grid
    bound = torch.maximum(theirs.abs() / 16, theirs.abs().amax() / 448 / 1024) * 1.001
    assert ((loaded.control_layers[0].attention.qkv.weight - theirs).abs() <= bound).all()


def test_control_learns_beside_frozen_weights_and_resumes(tmp_path, bpe) -> None:  # noqa: F811
    """With the control's file the model's error falls, and a stopped training goes on to the same file.

    The control picture is the picture itself here, as it is or negative, which only the control says.
    """
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(CONCEPTS), 1, 16, 1, 1, generator=generator).expand(
        -1, len(colours()), -1, 4, 4
    )
    both = torch.stack((latents, -latents))
    encoder = Qwen3TextEncoder(TINY_TEXT, language_model=True)
    text.initialise(encoder)
    base = random_s3dit(dataclasses.replace(TINY_DIT, n_layers=2), seed=0)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    plan = dataclasses.replace(PLAN, steps=24, lr=1e-2, ema=0.5)

    def train(state, stop_at=None):
        given = (both, both, CaptionSet(CONCEPTS), encoder, bpe)
        return control.train(base, *given, tmp_path / state, plan, 4, stop_at=stop_at)

    whole = train("whole.pt")
    train("parts.pt", stop_at=10)
    parts = train("parts.pt")
    assert all(torch.equal(whole[k].float(), parts[k].float()) for k in whole)
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())

    network, noise = load_control(whole, dtype=torch.float32), torch.randn(1, 16, 4, 4, generator=generator)
    with torch.no_grad():
        context = encoder(torch.tensor([bpe(apply_template("fox on white"))["input_ids"]]))
        for clean in both[:, 0, :1]:
            noisy, sigma = torch.lerp(clean, noise, 0.7), torch.full((1,), 0.7)
            plain, controlled = (
                torch.nn.functional.mse_loss(base(noisy, sigma, context, hooks=hooks), noise - clean)
                for hooks in ((), (Control(network, clean),))
            )
            assert controlled < 0.9 * plain


@pytest.mark.parametrize("layers", [4, 6])
def test_its_blocks_are_evenly_spaced(layers: int) -> None:
    base = dataclasses.replace(TINY_DIT, n_layers=layers)
    assert control.small_config(base).hint_layers(base) == (0, layers // 2)
