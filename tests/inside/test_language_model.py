"""The Qwen3 in the host's CLIP writes and chooses as transformers', in every storage type, without a copy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import comfy.model_management
import comfy.sd
import comfy.text_encoders.z_image as z_image
import pytest
import torch
from comfy.supported_models_base import ClipTarget

from bench.peak import Peak
from tests.core.random_models import randomise, seeds
from tests.core.test_text_encoder import peer_of
from tests.host.inside import extension_module
from zimage_core import Qwen3Config, Qwen3TextEncoder

CONFIG = Qwen3Config(
    vocab_size=152_000, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads")  # fmt: skip
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}
COUNT = 16  # tokens
LISTS = (12, 14, 9, 2, 16)  # entries to choose from
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a red fox"}]
NO_THOUGHT = [151667, 271, 151668, 271]  # as Qwen3's own chat template ends without thinking

language_model = extension_module("nodes.host.writing.language_model")
greedy = extension_module("zimage_core.prompt.writing").Sampling(temperature=0)
letter_tokens = extension_module("zimage_core.prompt.faithful").letter_tokens


class Written(NamedTuple):
    """The same weights in a CLIP of the host, and what transformers writes and chooses with them."""

    writer: language_model.LanguageModel
    prompt: list[int]
    tokens: list[int]
    letters: list[int]
    places: list[int]


def clip_of(state: dict[str, torch.Tensor], stored: torch.dtype) -> comfy.sd.CLIP:
    """The host's CLIP of these sizes, its weights kept as `stored`."""
    clip = comfy.sd.CLIP(
        ClipTarget(z_image.ZImageTokenizer, z_image.te(dtype_llama=stored)),
        parameters=1,
        model_options={"qwen3_4b_model_config": {name: getattr(CONFIG, name) for name in SIZES}},
    )
    clip.load_sd(state)
    return clip


def best_letters(peer: torch.nn.Module, prompt: list[int], letters: list[int]) -> list[int]:
    """Which letter of each list transformers' scores are highest for, everything read anew each time."""
    ids, places = list(prompt), []
    for count in LISTS:
        places.append(int(peer(torch.tensor([ids])).logits[0, -1, letters[:count]].argmax()))
        ids.append(letters[places[-1]])
    return places


@pytest.fixture(autouse=True, scope="module")
def inference() -> None:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=zip(STORED, seeds(3), strict=True), ids="{0[0]}-{0[1]}".format)
def written(request: pytest.FixtureRequest) -> Written:
    stored, seed = request.param
    model = randomise(Qwen3TextEncoder(CONFIG, language_model=True), seed)
    state = {k: v.to(STORED[stored]) for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in state.items()})
    peer = peer_of(model)
    clip = clip_of(state, STORED[stored])
    writer = language_model.LanguageModel(clip)
    prompt, letters = writer.encode(MESSAGES, thinking=False), letter_tokens(writer.tokenizer)
    answer = peer.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=COUNT, eos_token_id=None)
    comfy.model_management.load_models_gpu([clip.patcher])
    return Written(
        writer, prompt, answer[0, len(prompt) :].tolist(), letters, best_letters(peer, prompt, letters)
    )


def shell_of(writer: language_model.LanguageModel) -> torch.nn.Module:
    return language_model.HostQwen3(CONFIG, writer.transformer.model)


@pytest.mark.parametrize("path", ["on a card", "on a CPU"])
def test_greedy_tokens_and_choices_are_those_of_transformers(written: Written, path: str) -> None:
    """By the host's own forward where it keeps a cache, as cards do; and by ours over its modules."""
    writer, place = written.writer, (len(written.prompt) + COUNT, torch.device("cpu"), torch.float32)
    steps = writer.steps
    if path == "on a card" and hasattr(writer.transformer, "init_kv_cache"):
        steps = functools.partial(language_model.host_steps, writer.transformer)
    lists = [written.letters[:count] for count in LISTS]
    made = language_model.generate(steps(*place), written.prompt, greedy, (), COUNT)
    assert made.tokens == written.tokens
    places = language_model.choose(steps(*place), written.prompt, lists, temperature=0, seed=0)
    assert places == written.places


def test_choices_asked_by_the_node(written: Written) -> None:
    heard = []
    places, note = written.writer.choose(MESSAGES, LISTS, 0, 0, on_choice=heard.append)
    assert places == written.places and len(heard) == len(LISTS)
    assert note == f"{len(written.prompt)} tokens read, 5 choices made"


def storages(module: torch.nn.Module) -> dict[int, int]:
    """Their bytes."""
    return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}


def test_weights_are_shared_not_copied(written: Written) -> None:
    shell, whole = storages(shell_of(written.writer)), storages(written.writer.transformer.model)
    assert shell == whole and sum(whole.values()) > 0


def test_text_is_heard_token_by_token(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without stops of its own, so that the cap ends it."""
    heard, writer = [], written.writer
    monkeypatch.setattr(writer, "stops", ())
    text, note, ended = writer.write(MESSAGES, greedy, COUNT, on_text=heard.append)
    assert text == writer.tokenizer.decode(written.tokens, skip_special_tokens=True) != ""
    assert len(heard) == COUNT
    assert "16 written, cut off" in note and not ended


def test_thinking_is_off_by_qwens_own_sign(written: Written) -> None:
    """Also where the host's tokenizer does not know it: then it would be read as plain letters."""
    assert written.prompt[-4:] == NO_THOUGHT


def test_a_cpu_converts_no_weight_for_a_token(written: Written) -> None:
    """Those in bf16 and float32 are multiplied as they are; the host's own forward would make copies."""
    writer, cpu = written.writer, torch.device("cpu")
    weights = [p for p in writer.transformer.model.parameters() if p.ndim == 2]
    stored = weights[0].dtype
    dtype = writer.dtype(cpu)
    assert dtype == (torch.float32 if stored == torch.float32 else torch.bfloat16)
    next_logits = writer.steps(len(written.prompt) + 1, cpu, dtype)
    next_logits(torch.tensor([written.prompt]))
    with Peak() as tracker:
        next_logits(torch.tensor([[written.tokens[0]]]))
    smallest = min(p.nelement() for p in weights) * dtype.itemsize
    scores = CONFIG.vocab_size * dtype.itemsize
    assert (tracker.peak < scores + smallest) == (stored in (torch.float32, torch.bfloat16))
