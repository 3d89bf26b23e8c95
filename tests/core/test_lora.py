"""LoRA files of every trainer: each is the change that its trainer meant, and what is not used is named."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.core.damage import TRANSFORMER
from tests.core.lora_files import DIALECTS, KINDS, Dialect, Written, applied, write
from tests.core.random_models import random_s3dit, relative, seeds
from tests.long import size
from zimage_core.weights import WeightsError
from zimage_core.weights.lora import AGAIN, HALF, LoraFit, fit_lora, read_lora

SEED = seeds(1)[0]
STATE = random_s3dit(TRANSFORMER, SEED).state_dict()
SHAPES = {key: value.shape for key, value in STATE.items()}
MATRICES = {key for key, value in STATE.items() if value.ndim == 2 and key.endswith(".weight")}
EXACT = 1e-15  # of float64; alphas that differ are multiplied into float32 matrices
FOLDED = 5e-8
QKV = "layers.0.attention.qkv"
OUT = "layers.1.attention.out"
KOHYA = DIALECTS["musubi"]


def fitted(written: Written, **settings) -> LoraFit:
    return fit_lora(read_lora(written.tensors, written.metadata), SHAPES, **settings)


def error(fit: LoraFit, written: Written) -> float:
    """The largest relative error of any weight."""
    found, right = applied(fit, STATE), written.merged(STATE)
    return max(relative(found[key], right[key]) for key in STATE if right[key].any())


def pair(path: str, rank: int = 2, rows: int = 32, columns: int = 32) -> dict[str, Tensor]:
    shapes = {"A": (rank, columns), "B": (rows, rank)}
    return {f"{path}.lora_{part}.weight": torch.ones(shape) for part, shape in shapes.items()}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name: str) -> None:
    """Every matrix of the model, with ranks and alphas that differ: all keys are used, by the fused names."""
    written = write(STATE, DIALECTS[name], SEED)
    fit = fitted(written)
    assert fit.unused == {} and sorted(fit.used) == sorted(written.tensors)
    assert error(fit, written) <= (FOLDED if DIALECTS[name].alpha and not DIALECTS[name].fused else EXACT)
    assert {f"{layer}.weight" for layer in fit.targets} == MATRICES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["musubi", "musubi for ComfyUI", "LyCORIS", "ai-toolkit"])
def test_kinds(kind: str, name: str) -> None:
    written = write(STATE, DIALECTS[name], SEED, kind)
    fit = fitted(written)
    assert fit.unused == {} and sorted(fit.used) == sorted(written.tensors)
    assert error(fit, written) <= FOLDED


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("dora", ["rows", "columns", "vector"])
@pytest.mark.parametrize("name", ["diffusers", "LyCORIS", "fused"])
def test_dora(kind: str, dora: str, name: str) -> None:
    written = write(STATE, DIALECTS[name], SEED, kind, dora)
    fit = fitted(written)
    assert fit.unused == {}
    assert error(fit, written) <= 1e-12  # eps of a norm of nothing


def test_equal_strengths_keep_the_file_s_own_numbers() -> None:
    """Not rounded, in their own type, and with an alpha as strong as before."""
    written = write(STATE, KOHYA, SEED, dtype=torch.bfloat16, scales=(0.3,))
    fit = fitted(written)
    assert {value.dtype for key, value in fit.tensors.items() if "lora_" in key} == {torch.bfloat16}
    assert error(fit, written) <= 1e-7  # of alphas in float32


def test_fp8_and_types_that_differ() -> None:
    written = write(STATE, DIALECTS["diffusers"], SEED, dtype=torch.float8_e4m3fn)
    assert error(fitted(written), written) <= EXACT
    mixed = write(STATE, DIALECTS["diffusers"], SEED, dtype=torch.bfloat16)
    key = "transformer.layers.0.attention.to_k.lora_A.weight"
    mixed.tensors[key] = mixed.tensors[key].float()
    assert error(fitted(mixed), mixed) <= EXACT


def test_only_some_of_q_k_v() -> None:
    written = write(STATE, DIALECTS["ai-toolkit"], SEED)
    kept = [change for change in written.changes if not change.path.endswith("to_k")]
    tensors = {key: value for key, value in written.tensors.items() if "to_k" not in key}
    part = Written(tensors, kept)
    assert error(fitted(part), part) <= EXACT


def test_q_k_v_of_different_kinds() -> None:
    whole, mixed = write(STATE, KOHYA, SEED), write(STATE, KOHYA, SEED + 1, "lokr")
    of_k = [change.path.endswith("to_k") for change in whole.changes]
    tensors = {k: v for k, v in whole.tensors.items() if "to_k" not in k}
    tensors |= {k: v for k, v in mixed.tensors.items() if "to_k" in k}
    changes = [b if k else a for a, b, k in zip(whole.changes, mixed.changes, of_k, strict=True)]
    both = Written(tensors, changes)
    assert fitted(both).unused == {} and error(fitted(both), both) <= FOLDED


@pytest.mark.parametrize("out", ["to_out", "to_out.0", "out"])
def test_names_of_the_output_projection(out: str) -> None:
    fit = fitted(Written(pair(f"transformer.layers.1.attention.{out}"), []))
    assert list(fit.targets) == [OUT]


@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "qwen3_4b.transformer.model."])
def test_targets_have_the_names_that_they_are_given(prefix: str) -> None:
    """Of a host's network, and of ours."""
    path = "layers.0.self_attn.q_proj" if "qwen" in prefix else OUT
    shapes = {f"{prefix}{path}.weight": torch.Size((32, 32))}
    fit = fit_lora(read_lora(pair(path)), shapes)
    assert fit.targets == {f"{prefix}{path}": f"{prefix}{path}.weight"}


TEXT = "layers.1.self_attn.v_proj"


@pytest.mark.parametrize("key", [
    f"text_encoder.model.{TEXT}", f"text_encoder.{TEXT}", f"text_encoders.qwen3_4b.transformer.model.{TEXT}",
    f"base_model.model.model.{TEXT}", "lora_te_layers_1_self_attn_v_proj",
    "lora_te1_model_layers_1_self_attn_v_proj", "lora_te_model_layers_1_self_attn_v_proj",
])  # fmt: skip
def test_the_text_encoder(key: str) -> None:
    layer = f"qwen3_4b.transformer.model.{TEXT}"
    both = {f"diffusion_model.{key}": value for key, value in SHAPES.items()} | {f"{layer}.weight": (32, 32)}
    file = read_lora(pair(key) | pair(f"transformer.{OUT}"))
    assert set(fit_lora(file, both, has_text_encoder=True).targets) == {layer, f"diffusion_model.{OUT}"}
    alone = fit_lora(file, SHAPES)
    assert list(alone.targets) == [OUT]
    assert set(alone.unused.values()) == {"for the text encoder, and no clip is linked"}


def test_alpha_of_peft_s_settings_as_diffusers_writes_them() -> None:
    """One for all, others by layer, and the square root of rank where it says so."""
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.rank_pattern": {}}
    settings["transformer.alpha_pattern"] = {"layers.0.attention.to_q": 2, "feed_forward.w1": 6}
    written = write(STATE, DIALECTS["diffusers"], SEED)
    for rank_stabilised in (False, True):
        settings["transformer.use_rslora"] = rank_stabilised
        written.metadata = {"lora_adapter_metadata": json.dumps(settings)}
        for change in written.changes:
            up, down = change.parts["up"].double(), change.parts["down"].double()
            alpha = 2 if change.path == "layers.0.attention.to_q" else 6 if "w1" in change.path else 8
            by = math.sqrt(len(down)) if rank_stabilised else len(down)
            change.added = up @ down * (alpha / by)
        assert error(fitted(written), written) <= FOLDED


def test_alpha_of_kohya_s_settings_counts_where_no_tensor_says_it() -> None:
    written = write(STATE, KOHYA, SEED)
    one = "lora_unet_layers_0_attention_to_q.alpha"
    del written.tensors[one]
    written.metadata = {"ss_network_alpha": "3.0"}
    for change in written.changes:
        if change.path == "layers.0.attention.to_q":
            up, down = change.parts["up"].double(), change.parts["down"].double()
            change.added = up @ down * (3 / len(down))
    assert error(fitted(written), written) <= FOLDED


def test_converters_that_leave_kohya_s_alpha_in_the_metadata_have_it_in_the_matrices() -> None:
    written = write(STATE, DIALECTS["ai-toolkit"], SEED)
    written.metadata = {"ss_network_alpha": "3.0", "ss_network_dim": "4"}
    assert error(fitted(written), written) <= EXACT


@pytest.mark.parametrize("key, text", [
    ("lora_adapter_metadata", "{"), ("lora_adapter_metadata", "[]"), ("ss_network_alpha", "strong"),
    ("lora_adapter_metadata", '{"transformer.lora_alpha": "x"}'), ("ss_network_alpha", "nan"),
    ("lora_adapter_metadata", '{"transformer.alpha_pattern": 3}'),
])  # fmt: skip
def test_alphas_that_cannot_be_read_are_refused(key: str, text: str) -> None:
    with pytest.raises(WeightsError, match=f"the given dict has metadata that cannot be read in {key}"):
        kohya = {"lora_down": torch.ones(2, 32), "lora_up": torch.ones(32, 2)}
        tensors = {f"{OUT}.{part}.weight": value for part, value in kohya.items()}
        fitted(Written(tensors, [], {key: text}))


@pytest.mark.parametrize("first, second", [
    ("diffusers", "ai-toolkit"), ("fused", "ai-toolkit"), ("ai-toolkit", "fused"), ("OneTrainer", "musubi"),
    ("OneTrainer, fused", "OneTrainer, dotted parts"),
])  # fmt: skip
def test_a_change_under_two_names_counts_once(first: str, second: str) -> None:
    """Of split and fused names the fused ones count, else the first."""
    attention = {key: value for key, value in STATE.items() if key.endswith("qkv.weight")}
    a, b = (write(attention, DIALECTS[name], SEED) for name in (first, second))
    fit = fitted(Written(a.tensors | b.tensors, []))
    counted = b if DIALECTS[second].fused > DIALECTS[first].fused else a
    assert error(fit, counted) <= FOLDED
    doubles = (a if counted is b else b).tensors.keys() - counted.tensors.keys()
    assert fit.unused == dict.fromkeys(doubles, AGAIN)


def test_two_spellings_of_one_layer() -> None:
    twice = {f"{OUT}.lora_down.weight": torch.zeros(2, 32), f"{OUT}.lora_up.weight": torch.zeros(32, 2)}
    fit = fitted(Written(pair(OUT) | twice, []))
    assert fit.unused == dict.fromkeys(twice, AGAIN) and fit.tensors[f"{OUT}.lora_up.weight"].all()


def test_biases_and_norms() -> None:
    """Differences of them, as LyCORIS names them too, and peft's bias of the second matrix."""
    norm, bias = "layers.0.attention_norm1", "layers.0.adaLN_modulation.0"
    rows, columns = STATE[f"{bias}.weight"].shape
    tensors = pair(bias, 2, rows, columns) | {
        f"{bias}.lora_B.bias": torch.full((rows,), 2.0),
        f"{bias}.alpha": torch.tensor(1.0),
        f"{norm}.w_norm": torch.ones(32),
        "x_embedder.diff_b": torch.ones(32),
        f"{OUT}.diff_b": torch.ones(32),
        f"{OUT}.diff": torch.ones(32, 32),
    }
    fit = fitted(Written(tensors, []))
    assert fit.unused == {f"{OUT}.diff_b": "the layer has no bias to change"}
    after = applied(fit, STATE)
    moved = {key: float((after[key] - STATE[key]).mean()) for key in STATE}
    changed = (f"{norm}.weight", "x_embedder.bias", f"{OUT}.weight", f"{bias}.bias", f"{bias}.weight")
    assert moved == pytest.approx(dict.fromkeys(STATE, 0) | dict.fromkeys(changed, 1))


FOREIGN = [
    ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "of Flux"),
    ("transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight", "of Flux"),
    ("lora_unet_input_blocks_1_1_proj_in.lora_up.weight", "of SD or SDXL"),
    ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "of SD or SDXL"),
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "of CLIP"),
    ("transformer.transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight", "of Qwen-Image"),
    ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "of Wan"),
    ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", "of SD3"),
    ("transformer.layers.3.attn.to_q.lora_A.weight", "of Lumina 2"),
    ("transformer.layers.2.attention.to_q.lora_A.weight", "layer 2 of layers, and this model has 0 to 1"),
    ("lora_unet_noise_refiner_12_feed_forward_w1.lora_up.weight", "layer 12 of noise_refiner"),
    ("layers.99999999999999999999.attention.qkv.lora_up.weight", "layer 99999999 of layers"),
    ("diffusion_model.siglip_refiner.0.attention.qkv.lora_A.weight", "of Z-Image's omni models"),
    ("diffusion_model.layers.0.attention.comfy_attention.config", "a setting of attention"),
    ("diffusion_model.layers.0.attention.qkv.oft_blocks", "OFT is not read here"),
    ("diffusion_model.layers.0.attention.qkv.lora_mid.weight", "for a convolution"),
    ("control_layers.0.after_proj.weight", "of a ControlNet"),
    ("something.lora_A.weight", "no layer of this model has such a name"),
    ("something", "no part of a LoRA"),
]


@pytest.mark.parametrize("key, why", FOREIGN)
def test_what_is_not_used_is_named_with_a_guess(key: str, why: str) -> None:
    fit = fitted(Written({key: torch.ones(2, 2)} | pair(OUT), []))
    assert fit.unused.keys() == {key} and fit.unused[key].startswith(why), fit.unused
    assert sorted(fit.used) == sorted(pair(OUT))


@pytest.mark.parametrize("tensors, why", [
    (pair(OUT, columns=48), "it is 32 x 48 and the layer is 32 x 32: of another model"),
    (pair(OUT, rows=3840, columns=3840), "it is 3840 x 3840 and the layer is 32 x 32: of Z-Image"),
    (pair(QKV, rows=2304, columns=2304), "it is 2304 x 2304 and the layer is 96 x 32: of Lumina 2"),
    (dict([list(pair(OUT).items())[0]]), HALF),
    ({f"{OUT}.alpha": torch.tensor(1.0)}, HALF),
    (pair(OUT) | {f"{OUT}.diff": torch.ones(32, 32)}, "two kinds"),
    (pair(OUT) | {f"{OUT}.alpha": torch.ones(3)}, "its alpha is no single number"),
    (pair(OUT) | {f"{OUT}.dora_scale": torch.ones(7)}, "its DoRA scale is 7 and the layer is 32 x 32"),
    ({key: value.to(torch.int8) for key, value in pair(OUT).items()}, "in whole numbers (int8)"),
    (pair(OUT, rank=0), "its parts do not fit"),
    (pair(OUT) | {f"{OUT}.lora_B.weight": torch.ones(32, 3)}, "its parts do not"),
    ({f"{OUT}.lora_A.weight": torch.ones(()), f"{OUT}.lora_B.weight": torch.ones(3)}, "its parts do not"),
    ({f"{OUT}.lokr_w1": torch.ones(3), f"{OUT}.lokr_w2": torch.ones(3, 3)}, "its parts do not fit"),
    ({f"{OUT}.lokr_w1": torch.ones(2, 2)}, HALF),
])  # fmt: skip
def test_what_does_not_fit_is_left_out(tensors: dict[str, Tensor], why: str) -> None:
    fit = fitted(Written(tensors, []))
    assert fit.tensors == {} and fit.used == [] and fit.unused.keys() == tensors.keys()
    assert all(found.startswith(why) for found in fit.unused.values()), fit.unused


@pytest.mark.parametrize("metadata, words", [
    ({"modelspec.trigger_phrase": "ohwx  man, Ohwx man, in ink"}, ["ohwx man", "in ink"]),
    ({"trained_words": '["a b", "c"]'}, ["a b", "c"]),
    ({"ss_tag_frequency": '{"5_x": {"rare": 1, "sks": 9}, "y": {"sks ": 2, "b": 5}}'}, ["sks", "b", "rare"]),
    ({"ss_tag_frequency": '{"x": {"sks": 9}}', "trigger_word": "p3r5on"}, ["p3r5on"]),
    ({"ss_tag_frequency": "{"}, []), ({"ss_tag_frequency": '{"x": [1], "y": {"z": "w"}}'}, []), ({}, []),
    ({"modelspec.trigger_phrase": "[photo] of x"}, ["[photo] of x"]),
])  # fmt: skip
def test_trigger_words(metadata: dict[str, str], words: list[str]) -> None:
    assert read_lora(pair(OUT), metadata).trigger_words == words


def test_files_that_are_none(tmp_path: Path) -> None:
    def refused(name: str, *words: str) -> None:
        with pytest.raises(WeightsError) as caught:
            read_lora(tmp_path / name)
        assert all(word in str(caught.value) for word in (name, *words)), caught.value

    save_file(STATE, tmp_path / "transformer.safetensors")
    refused("transformer.safetensors", "holds no LoRA", "it is a Z-Image transformer", "Choose a LoRA")
    torch.save(pair(OUT), tmp_path / "pickle.pt")
    refused("pickle.pt", "Pickles", "never opened")
    save_file(pair(OUT), tmp_path / "good.safetensors")
    content = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[:-40])
    refused("short.safetensors", "truncated", "Download it again")
    broken = pair(OUT)
    broken[f"{OUT}.lora_B.weight"][3, 1] = math.inf
    save_file(broken, tmp_path / "inf.safetensors")
    refused("inf.safetensors", "NaN or infinity", "lora_B")


def test_a_file_may_be_written_again_while_it_is_used(tmp_path: Path) -> None:
    save_file(pair(OUT), tmp_path / "lora.safetensors")
    file = read_lora(tmp_path / "lora.safetensors")
    (tmp_path / "lora.safetensors").write_bytes(b"")
    assert all(value.all() for value in file.tensors.values())


def _damaged(written: Written, dice: random.Random) -> tuple[dict[str, Tensor], dict[str, str]]:
    """One to four tensors renamed, reshaped, retyped, dropped, doubled or spoilt."""
    tensors, metadata = dict(written.tensors), {}
    for _ in range(1 + dice.randrange(4)):
        key = dice.choice(list(tensors))
        value = tensors.pop(key)
        match dice.randrange(9):
            case 0:
                at = dice.randrange(len(key))
                tensors[key[:at] + dice.choice("._-0x/") + key[at + 1 :]] = value
            case 1:
                tensors[key] = value.flatten()[: dice.randrange(value.numel() + 1)]
            case 2:
                tensors[key] = value[None].expand(dice.randrange(3), *value.shape)
            case 3:
                tensors[key] = value.to(dice.choice([torch.int8, torch.uint8, torch.bool, torch.float8_e5m2]))
            case 4:
                tensors[key] = torch.full_like(value, dice.choice([math.nan, math.inf, 0.0, 1e38]))
            case 5:
                other = dice.choice(list(tensors))
                tensors[key], tensors[other] = tensors[other], value
            case 6:
                tensors[key[: dice.randrange(len(key) + 1)]] = value
            case 7:
                tensors[key], tensors[f"transformer.{key}"] = value, value.T if value.ndim == 2 else value
            case 8:
                text = dice.choice(["{", "null", '{"lora_alpha": []}', "1e999", "\u0000", "[" * 2000])
                metadata = {dice.choice(["lora_adapter_metadata", "ss_network_alpha"]): text}
    return tensors, metadata


@pytest.mark.parametrize("first", range(4))
def test_damaged_files_are_refused_or_their_keys_are_named(first: int, tmp_path: Path) -> None:
    """Whatever comes out can be applied, and every key is either used or named."""
    outcomes = Counter()
    names, kinds = list(DIALECTS), list(KINDS)
    for seed in range(SEED + 10_000 * first, SEED + 10_000 * first + size(short=40, long=1250)):
        dice = random.Random(seed)
        dialect = DIALECTS[dice.choice(names)]
        written = write(STATE, dialect, seed, dice.choice(kinds), dice.choice([None, "rows", "columns"]))
        tensors, metadata = _damaged(written, dice)
        path = tmp_path / "file.safetensors"
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path, metadata)
        if dice.random() < 0.2:
            content = bytearray(path.read_bytes())
            content[dice.randrange(len(content))] = dice.randrange(256)
            path.write_bytes(content[: dice.randrange(len(content))] if dice.random() < 0.5 else content)
        try:
            file = read_lora(path)
            fit = fit_lora(file, SHAPES)
        except WeightsError as refusal:
            assert "file.safetensors" in str(refusal), seed
            outcomes["refused"] += 1
            continue
        assert sorted([*fit.used, *fit.unused]) == sorted(file.tensors), seed
        assert file.trigger_words == [] and all(map(str, fit.unused.values()))
        applied(fit, STATE)
        outcomes["some left out" if fit.unused else "all used"] += 1
    assert outcomes["refused"] and outcomes["some left out"], outcomes


def test_an_undamaged_file_is_whole(tmp_path: Path) -> None:
    written = write(STATE, Dialect("diffusion_model."), SEED)
    save_file(written.tensors, tmp_path / "file.safetensors")
    fit = fit_lora(read_lora(tmp_path / "file.safetensors"), SHAPES)
    assert fit.unused == {} and error(fit, written) <= EXACT
