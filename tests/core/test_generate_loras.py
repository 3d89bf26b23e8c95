"""LoRAs of every kind beside a model's layers: what changed weights draw, and out again without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.core.damage import TRANSFORMER
from tests.core.lora_files import DIALECTS, KINDS, applied, write
from tests.core.random_models import random_inputs, random_s3dit, relative, seeds
from zimage_core import S3DiT
from zimage_core.generate.loras import Loras
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.weights import LoraFit, fit_lora, read_lora

SEED = seeds(1)[0]
NEAR = 2e-5  # of float32
CASES = [
    *((kind, None) for kind in KINDS),
    ("lora", "rows"),
    ("lokr", "columns"),
]


def velocity(model: S3DiT) -> Tensor:
    x, sigma, caption = random_inputs(TRANSFORMER, SEED)
    with torch.no_grad():
        return model(x, sigma, condition=Prompt(Captions.whole(caption)))


def fitted(tensors: dict[str, Tensor], loras: Loras) -> LoraFit:
    fit = fit_lora(read_lora(tensors), {name: value.shape for name, value in loras.own().items()})
    assert fit.unused == {}
    return fit


@pytest.mark.parametrize(("kind", "dora"), CASES)
def test_it_draws_what_the_changed_weights_draw(kind: str, dora: str | None) -> None:
    """Two files, one upon the other, with strengths of their own."""
    model = random_s3dit(TRANSFORMER, SEED)
    before, right = model.state_dict(), model.state_dict()
    plain, loras = velocity(model), Loras(model)
    for number, strength in enumerate((0.8, -0.3)):
        written = write(right, DIALECTS["LyCORIS"], SEED + number, kind, dora, size=0.2)
        loras.put(fitted(written.tensors, loras), strength)
        right = written.merged(right, strength)
    merged = random_s3dit(TRANSFORMER, SEED)
    merged.load_state_dict({key: value.float() for key, value in right.items()})
    found = velocity(model)
    assert relative(found, velocity(merged)) <= NEAR
    assert relative(found, plain) > 100 * NEAR
    loras.clear()
    assert torch.equal(velocity(model), plain)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_biases_norms_and_q_k_v_of_different_kinds() -> None:
    model = random_s3dit(TRANSFORMER, SEED)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kohya, fused = DIALECTS["musubi"], "layers.0.attention.qkv"
    pair, other = (write(before, kohya, SEED, kind, size=0.2).tensors for kind in ("lora", "lokr"))
    tensors = {key: value for key, value in pair.items() if "to_k" in key or "adaLN" in key}
    tensors |= {key: value for key, value in other.items() if "to_v" in key and "layers_0" in key}
    bias, norm = "layers.1.adaLN_modulation.0", "layers.0.attention_norm1"
    tensors[f"{bias}.diff_b"] = torch.ones_like(before[f"{bias}.bias"])
    tensors[f"{norm}.w_norm"] = torch.ones_like(before[f"{norm}.weight"])
    loras = Loras(model)
    fit = fitted(tensors, loras)
    assert {f"{fused.removesuffix('qkv')}to_{row}" for row in "kv"} <= fit.targets.keys()
    loras.put(fit, 1.0)
    merged = random_s3dit(TRANSFORMER, SEED)
    merged.load_state_dict({key: value.float() for key, value in applied(fit, before).items()})
    assert relative(velocity(model), velocity(merged)) <= NEAR
    loras.clear()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
