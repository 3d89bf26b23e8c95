"""Qwen3TextEncoder against transformers' Qwen3 on the same random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tests.core.peers import qwen3_config
from tests.core.random_models import randomise, relative, seeds
from zimage_core import Qwen3Config, Qwen3TextEncoder

SMALL = Qwen3Config(
    vocab_size=300, hidden_size=192, intermediate_size=320, num_hidden_layers=4, num_attention_heads=6,
    num_key_value_heads=2, head_dim=64,
)  # fmt: skip
REAL_WIDTH = Qwen3Config(vocab_size=500, num_hidden_layers=2)


def pair(config: Qwen3Config, seed: int) -> tuple[Qwen3TextEncoder, Qwen3ForCausalLM]:
    model = randomise(Qwen3TextEncoder(config, language_model=True), seed)
    return model, peer_of(model)


def peer_of(model: Qwen3TextEncoder) -> Qwen3ForCausalLM:
    """transformers' model with the same weights."""
    peer = Qwen3ForCausalLM(qwen3_config(model.config)).eval()
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    peer.tie_weights()
    return peer


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("config", [SMALL, REAL_WIDTH], ids=["small", "width 2560"])
def test_features_and_logits_equal_transformers(config: Qwen3Config, seed: int) -> None:
    model, peer = pair(config, seed)
    ids = torch.randint(0, config.vocab_size, (2, 19), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(19) < torch.tensor([19, 8])[:, None]
    with torch.no_grad():
        theirs = peer(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        ours = model(ids, mask)
        assert relative(ours[mask], theirs.hidden_states[-2][mask]) <= 1e-5
        assert relative(model.logits(ids)[0], theirs.logits[0]) <= 1e-5


def test_the_last_layer_is_not_needed() -> None:
    model, _ = pair(SMALL, 7)
    short = Qwen3TextEncoder(SMALL)
    short.load_state_dict({k: v for k, v in model.state_dict().items() if k in short.state_dict()})
    assert len(short.model.layers) == SMALL.num_hidden_layers - 1
    ids = torch.arange(11)[None]
    assert torch.equal(short(ids), model(ids))
    with pytest.raises(ValueError, match="language_model=True"):
        short.logits(ids)
