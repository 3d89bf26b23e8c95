"""`bench speed` at a tiny size: every case has its rows, beside every peer. No time is judged.

Of the autoencoder the host knows the real width alone.
"""

from __future__ import annotations

import pytest
import torch

from bench import speed, speed_in_host
from bench.scale import TINY
from tests.core.recorder import capture
from zimage_core.config import AutoencoderConfig, Qwen3Config

SIZES = speed.Sizes(
    device="cpu",
    network=TINY.config,
    pixels=(64,),
    dtypes=(torch.bfloat16,),
    run_pixels=64,
    encoder=TINY.writer,
    writer=TINY.writer,
    autoencoder=AutoencoderConfig(),
    sampled=TINY.config,
    sampled_pixels=64,
    guided=TINY.config,
    guided_pixels=64,
    writer_in_host=Qwen3Config(vocab_size=400, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
                               num_attention_heads=2, num_key_value_heads=1),
    rounds=5,
    slow_rounds=1,
    capture=capture,
)  # fmt: skip
PEERS = {
    "text_encoder": {"transformers"},
    "forward": {"ours again", "ours, nothing kept", "native", "diffusers", "limit"},
    "eight_steps": {"diffusers"},
    "vae_decode": {"native", "diffusers"},
    "sampler_in_host": {"native"},
    "guided_in_host": {"native"},
    "writing": {"transformers"},
    "writing_in_host": {"native"},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_in_host, "GUIDED_STEPS", 2)


@pytest.mark.parametrize("case", speed.CASES)
@torch.no_grad()
def test_every_case(case: str) -> None:
    found = [row for row in speed.CASES[case](SIZES) if row.get("case")]
    written = {"native"} if case == "writing_in_host" and not found else set()  # older hosts cannot write
    names = {"writing": {"writing", "later_tokens"}, "forward": {"forward", "forward_by_graph"}}
    assert {row["case"]["name"] for row in found} in (names.get(case, {case}), set())
    graphs = {row["peer"] for row in found if row["case"]["name"] == "forward_by_graph"}
    assert graphs == ({"ours", "native", "diffusers", "limit"} if case == "forward" else set())
    assert {row["peer"] for row in found if row["peer"] != "ours"} | written == PEERS[case]
    for row in found:
        assert row["value"] > 0 and row["ours_ms"] > 0 and row["peer_ms"] > 0
        assert row["ours_mib"] > 0 or case == "writing_in_host"
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
        assert (row["low"] is not None) == (row["rounds"] >= 5)


def test_all_of_them() -> None:
    assert speed.CASES.keys() == PEERS.keys()
