"""What is said of sizes and LoRAs before a run, by whichever sampler, and where it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from safetensors.torch import load_file
from torch import Tensor

from tests.core.random_models import random_s3dit
from tests.host import matrix
from tests.host.inside import ROOT, extension_module
from tests.host.packs import small_native
from tests.host.weight_files import TRANSFORMER, loras
from tests.inside.sampling import SEED, count_calls, from_file, noise_of, prompts, sampled
from zimage_core.config import NanoConfig, S3DiTConfig

NANO = ROOT / "models" / "nano"
STATE = random_s3dit(TRANSFORMER, SEED).state_dict()
RANK = 4
run_notes = extension_module("nodes.host.page.run_notes")
lora_notes = extension_module("nodes.host.running.lora_fit").lora_notes
sampling = extension_module("nodes.sampling")
load_patcher = extension_module("nodes.host.loading.model").load_patcher


@pytest.fixture
def small(tmp_path: Path):
    """A MODEL of no known size."""
    return from_file(tmp_path / "small.safetensors", STATE)


@pytest.fixture(scope="module")
def nano():
    return load_patcher(NANO / "transformer.safetensors")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str | None]]:
    """{node: the text under it}, as a page has it."""
    texts: dict[str, str | None] = {}
    monkeypatch.setattr(run_notes, "show_text", texts.__setitem__)
    monkeypatch.setattr(run_notes, "take_text_away", lambda node: texts.pop(node, None))
    yield texts


def said(patcher, size: tuple[int, int] = (16, 16), **settings) -> list[str]:
    """What one step of the host's sampler on a latent of so many cells has to say."""
    (caption,) = prompts(patcher.get_model_object("diffusion_model").config.cap_feat_dim, 20)
    with run_notes.collected() as found:
        sampled(patcher, caption, caption, **{"steps": 1, "noise": noise_of(size), **settings})
    return found.notes


def lora(keys: list[str], rank: int = RANK, width: int | None = None) -> dict[str, Tensor]:
    """A LoRA file for layers of STATE; width: one that these do not have."""
    made = {}
    for key in keys:
        out, into = STATE[f"{key}.weight"].shape
        made[f"diffusion_model.{key}.lora_A.weight"] = torch.randn(rank, width or into)
        made[f"diffusion_model.{key}.lora_B.weight"] = torch.randn(out, rank)
    return made


def with_lora(patcher, file: dict[str, Tensor]):
    return comfy.sd.load_lora_for_models(patcher, None, file, 1.0, 0.0)[0]


FOREIGN = {
    f"lora_unet_input_blocks_{i}_1_proj_in.lora_{part}.weight": torch.ones(RANK, RANK)
    for i in range(3)
    for part in ("up", "down")
}
OUT, W2 = "layers.1.attention.out", "layers.0.feed_forward.w2"


def test_nano_at_a_size_of_which_nothing_comes_is_refused_before_it_runs(nano) -> None:
    calls = count_calls(nano.clone())
    with pytest.raises(ValueError, match="nano draws 128x128 pixels only, the latent is 1024x1024: choose"):
        said(nano, (128, 128))
    with pytest.raises(ValueError, match=r"choose 128x128 \(nano\) as size in Z-Image Latent"):
        said(nano, (40, 16))
    assert not calls


def test_nano_at_another_size_says_so_and_runs(nano) -> None:
    (note,) = said(nano, (16, 12))
    assert "the latent is 96x128" in note and "Z-Image Latent" in note
    assert said(nano) == []


def test_a_large_picture_that_is_only_changed_is_no_error(nano) -> None:
    """Half of the noise: nano changes what is there, at any size."""
    settings = {"sigmas": torch.tensor([0.5, 0.0]), "noise": noise_of((34, 8))}
    (caption,) = prompts(nano.model.diffusion_model.config.cap_feat_dim, 20)
    with run_notes.collected() as found:
        latent = {"samples": torch.zeros(1, 16, 34, 8)}
        sampling.sample_euler(nano, caption, latent, SEED, settings["sigmas"])
    assert len(found.notes) == 1 and "64x272" in found.text


@pytest.mark.parametrize("size, words", [((48, 48), "384x384: for a better picture"), ((64, 64), None)])
def test_full_size_weights(small, size: tuple[int, int], words: str | None) -> None:
    """A small network that says it is a large one: only its configuration is looked at."""
    network = small.model.diffusion_model
    full_size = extension_module("zimage_core.config").S3DiTConfig(cap_feat_dim=TRANSFORMER.cap_feat_dim)
    network.config, own = full_size, network.config
    try:
        assert [words in note for note in said(small, size)] == ([True] if words else [])
        with pytest.raises(ValueError, match="latent is 128x128: choose 1024x1024 or another official size"):
            said(small, (16, 16))
    finally:
        network.config = own


def test_of_other_sizes_of_the_network_nothing_is_said(small) -> None:
    assert said(small) == []
    assert TRANSFORMER.dim not in (NanoConfig().transformer.dim, S3DiTConfig.dim)


def test_a_lora_for_another_model_is_said_to_fit_with_none_of_its_keys(small) -> None:
    assert said(with_lora(small, lora([OUT, W2]))) == []
    assert said(with_lora(small, loras()[0])) == []
    one = with_lora(small, FOREIGN)
    assert said(one) == [
        "A LoRA has no effect: 0 of its keys fit this model. Use one that was made for Z-Image."
    ]
    (note,) = said(with_lora(with_lora(one, lora([OUT])), FOREIGN))
    assert note.startswith("2 LoRAs have no effect: 0 of its keys")


def test_a_lora_of_other_shapes_is_counted(small) -> None:
    assert said(with_lora(small, lora([OUT, W2], width=96)))[0].startswith("LoRA: 0 of 2 of its parts fit")
    both = with_lora(with_lora(small, lora([W2])), lora([OUT], width=96))
    assert said(both)[0].startswith("LoRA: 1 of 2 of its parts fit this model, the others are left out")
    difference = {"diffusion_model.layers.0.attention.out.diff": torch.zeros(3, 3)}
    assert said(with_lora(small, difference))[0].startswith("LoRA: 0 of 1")


@pytest.mark.parametrize("down, up", [((), ()), ((0, 5), (5, 0)), ((2, 7), (0, 2)), ((3,), (3,))])
def test_a_lora_of_odd_shapes_is_counted(small, down: tuple, up: tuple) -> None:
    odd = {f"diffusion_model.{OUT}.lora_A.weight": torch.ones(down)}
    odd |= {f"diffusion_model.{OUT}.lora_B.weight": torch.ones(up)}
    assert lora_notes(with_lora(small, odd))[0].startswith("LoRA: 0 of 1 of its parts fit")


def test_of_what_is_no_lora_nothing_is_said(small) -> None:
    """All of these give the MODEL a new id of what is patched, as a LoRA does."""
    changed = small.clone()
    changed.set_model_compute_dtype(torch.float32)
    assert said(changed) == []
    assert said(with_lora(changed, FOREIGN))[0].startswith("A LoRA has no effect")
    merged = small.clone()
    merged.add_patches(small.get_key_patches("diffusion_model."), 0.5, 0.5)
    assert said(merged) == []


def test_shipped_lora_fits_the_built_in_model(nano) -> None:
    (file,) = NANO.rglob("*lora.safetensors")
    assert said(with_lora(nano, load_file(file))) == []


def test_under_accelerate_too() -> None:
    state = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
    accelerated = extension_module("nodes.host.running.accelerate").accelerated
    patcher, _ = accelerated(small_native.patcher(state))
    assert said(patcher) == []
    assert said(with_lora(patcher, FOREIGN))[0].startswith("A LoRA has no effect")
    behind, _ = accelerated(with_lora(small_native.patcher(state), FOREIGN))
    assert said(behind)[0].startswith("A LoRA has no effect")


def test_notes_stand_under_the_node_that_runs_until_it_has_nothing_to_say(nano, shown) -> None:
    (caption,) = prompts(nano.model.diffusion_model.config.cap_feat_dim, 20)
    with CurrentNodeContext("prompt", "7"):
        sampled(nano, caption, caption, steps=1, noise=noise_of((16, 12)))
        assert shown.keys() == {"7"} and "96x128" in shown["7"]
        sampled(nano, caption, caption, steps=1, noise=noise_of((16, 16)))
    assert shown == {}


def test_what_two_parts_of_a_run_say_stands_together(nano, shown) -> None:
    """The look before it and the step cache; what a run before said is not there any more."""
    (caption,) = prompts(nano.model.diffusion_model.config.cap_feat_dim, 20)
    cached = extension_module("nodes.host.running.step_cache").with_step_cache(nano)
    with CurrentNodeContext("prompt", "7"):
        for _ in range(2):
            sampled(cached, caption, caption, steps=1, noise=noise_of((16, 12)))
            size, cache = shown["7"].split("\n")
            assert "96x128" in size and cache.startswith("Step cache: all 1 steps computed")
        sampled(nano, caption, caption, steps=1, noise=noise_of((16, 16)))
    assert shown == {}


def test_the_turbo_sampler_says_what_its_run_said(nano, shown) -> None:
    (caption,) = prompts(nano.model.diffusion_model.config.cap_feat_dim, 20)

    def made(size: tuple[int, int], denoise: float = 1.0):
        with CurrentNodeContext("prompt", "3"):
            latent = {"samples": torch.zeros(1, 16, *size)}
            return sampling.ZImageTurboSampler.execute(nano, caption, latent, 1, 1, 3.0, denoise)

    out = made((16, 12))
    assert out.ui.as_dict()["text"] == (shown["3"],) and "96x128" in shown["3"]
    assert made((16, 16)).ui is None and shown == {}
    kept = made((16, 16), denoise=0.0)
    assert kept.ui.as_dict()["text"] == (shown["3"],)
    assert shown["3"].startswith("denoise is 0: nothing is sampled")
    assert not kept.args[0]["samples"].any()


def test_sigmas_without_steps_say_so(shown) -> None:
    with CurrentNodeContext("prompt", "5"):
        out = sampling.ZImageSigmas.execute(8, 3.0, 0.0)
        assert len(out.args[0]) == 0 and shown["5"].startswith("denoise is 0")
        assert sampling.ZImageSigmas.execute(8, 3.0, 0.5).ui is None
    assert shown == {}
