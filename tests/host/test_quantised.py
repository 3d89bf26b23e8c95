"""Quantised files as MODEL and CLIP of the host: every type and layout runs, and can be saved and loaded."""

from __future__ import annotations

import pytest

from tests.host import inside

SAME = 1e-6  # relative L2 of what is computed
BF16 = 2.2e-3  # where this ComfyUI cannot run a layer as it is stored, its weights are rounded once
EFFECT = 0.1  # a LoRA that changed less would prove nothing


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return inside.run("quantised_inside.py", tmp_path_factory.mktemp("quantised"))


def in_fp8(layout: str) -> bool:
    """Whether the host runs it as it is: one scale a layer, of a type that it knows."""
    return "fnuz" not in layout and "[" not in layout and "blocks" not in layout and "bf16" not in layout


def test_every_type_and_layout_is_what_its_weights_are(found: dict) -> None:
    """e4m3, e5m2 and the fnuz types, with every marker and none, with scales of every shape."""
    layouts = found["layouts"]
    assert len(layouts) == 3 * 7 + 2
    for layout, row in layouts.items():
        assert row["runs"] <= (SAME if in_fp8(layout) else BF16), (layout, row)
        assert row["bf16"] <= BF16 and row["fp32"] <= SAME, (layout, row)


def test_fp8_stays_fp8_where_the_host_can(found: dict) -> None:
    for layout, row in found["layouts"].items():
        if "without scales" not in layout:  # kept or not by what the device can cast
            assert row["kept"] == row["kept when saved"] == float(in_fp8(layout)), (layout, row)


def test_what_is_saved_is_the_same_when_loaded(found: dict) -> None:
    """Plain, and with a LoRA merged into it."""
    for layout, row in found["layouts"].items():
        assert row["saved"] <= SAME, (layout, row)
        assert row["lora"] > EFFECT and row["saved with lora"] <= SAME, (layout, row)


def test_fp8_by_choice_leaves_what_is_small_as_it_is(found: dict) -> None:
    """Norms, biases and pad tokens stay; a file that is fp8 already stays what it is."""
    for layout, row in found["layouts"].items():
        assert row["fp8_e4m3fn"] <= 0.05, (layout, row)
        if "without scales" not in layout:  # there they are fp8 already
            assert {"x_pad_token", "cap_pad_token"} <= set(row["kept wide"])
        assert {"x_embedder.bias", "layers.0.attention_norm1.weight"} <= set(row["kept wide"])
        assert all(
            "norm" in k or "bias" in k or "pad" in k or "cap_embedder.0" in k for k in row["kept wide"]
        )
    assert found["layouts"]["e4m3fn without scales"]["fp8_e4m3fn"] <= SAME


def test_all_three_parts_in_one_file(found: dict) -> None:
    whole = found["whole"]
    assert whole["text_encoder"] == whole["autoencoder"] == 0
    assert whole["transformer"] <= 2.5e-3  # its fp8 becomes bfloat16


def test_text_encoders(found: dict) -> None:
    for layout, distance in found["text encoders"].items():
        assert distance <= (1.6e-3 if "rows" in layout else SAME), layout
