"""Control files of every version and dialect give the same network; what is none says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import TINY, random_s3dit, randomise
from tests.core.test_control import BASE, SEED, VERSIONS, config, network
from tests.core.test_weights import prefixed, quantised, same
from zimage_core.conditions.control import ControlNet
from zimage_core.weights import WeightsError, describe, load_control, load_transformer, read_control
from zimage_core.weights.keys import transformer_to_diffusers


def as_published(version: str) -> dict[str, Tensor]:
    """The names of the published files. 2.0's has a refiner whose last projections never left zero."""
    state = network(version).state_dict()
    if version == "2.0":
        refiner = randomise(ControlNet(config("2.1")), SEED + 1).state_dict()
        state |= {k: v for k, v in refiner.items() if k.startswith("control_noise_refiner.")}
        state |= {k: torch.zeros_like(v) for k, v in state.items() if "refiner" in k and ".after_proj." in k}
    return {k: v.contiguous() for k, v in transformer_to_diffusers(state).items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_known_by_its_tensors(version: str, tmp_path: Path) -> None:
    file = tmp_path / "control.safetensors"
    save_file(as_published(version), file)
    for values in (True, False):  # by all of the file, and by its header and small tensors
        found = read_control(file, values).config
        assert (found.routing, found.channels) == (config(version).routing, config(version).channels)
        assert found.hint_layers(BASE) == config(version).hint_layers(BASE)
    loaded = load_control(file)
    assert same(loaded.state_dict(), network(version).state_dict())


DIALECTS = {
    "published": lambda s: s,
    "fused": lambda s: network("2.1").state_dict(),
    "with prefix": lambda s: prefixed(s, "model.diffusion_model."),
    "beside its transformer": lambda s: s | transformer_to_diffusers(random_s3dit(TINY, 1).state_dict()),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_loads_the_same_network(dialect: str) -> None:
    state = DIALECTS[dialect](as_published("2.1"))
    assert same(load_control(state).state_dict(), network("2.1").state_dict())


def test_fp8_of_both_layouts_stands_for_its_weights(tmp_path: Path) -> None:
    for scale, mark in (("scale_weight", "scaled_fp8"), ("weight_scale", "metadata")):
        state, truth = quantised(network("2.1").state_dict(), scale)
        if mark == "scaled_fp8":
            state, metadata = state | {mark: torch.empty(0, dtype=torch.float8_e4m3fn)}, None
        else:
            layers = {
                k.removesuffix(f".{scale}"): {"format": "float8_e4m3fn"} for k in state if k.endswith(scale)
            }
            metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
        file = tmp_path / f"{mark}.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, file, metadata)
        loaded = load_control(file, dtype=torch.float32).state_dict()
        key = "control_layers.0.feed_forward.w1.weight"
        assert torch.allclose(loaded[key].double(), truth[key], rtol=1e-6)
        assert describe(file)["control"]["quantised_layers"] > 0


def test_what_is_no_control_says_what_it_is() -> None:
    transformer = random_s3dit(TINY, 1).state_dict()
    with pytest.raises(WeightsError, match="holds no Z-Image ControlNet: it is a Z-Image transformer"):
        load_control(transformer)
    with pytest.raises(WeightsError, match="holds no Z-Image transformer: it is a Z-Image ControlNet"):
        load_transformer(as_published("2.1"))


def test_missing_and_unknown_tensors_are_named() -> None:
    state = as_published("2.1")
    lacking = {k: v for k, v in state.items() if k != "control_layers.1.after_proj.bias"}
    with pytest.raises(WeightsError, match=r"lacks 1 of \d+ tensors .*control_layers\.1\.after_proj\.bias"):
        load_control(lacking)
    with pytest.raises(WeightsError, match=r"1 tensors that no Z-Image ControlNet has: control_gate"):
        load_control({**state, "control_gate.weight": torch.zeros(3)})


def test_a_summary_has_the_version() -> None:
    assert read_control(as_published("2.1")).summary.endswith("float32, version 2.1, 5 blocks, can inpaint")
    assert "can inpaint" not in read_control(as_published("1.0")).summary
