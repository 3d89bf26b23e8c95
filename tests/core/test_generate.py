"""Text generation against transformers on the same random weights: tokens, choices, filters. Text streams."""

from __future__ import annotations

import functools
import json
import random
import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.core import test_text_encoder
from tests.core.random_models import relative, seeds
from tests.core.test_text_encoder import SMALL
from zimage_core import Qwen3Config
from zimage_core.model.text_encoder import KeyValueCache
from zimage_core.prompt.template import load_tokenizer
from zimage_core.prompt.writing import Sampling, TextStream, candidates, choose, generate, penalised, steps

NANO_SHAPE = Qwen3Config(
    vocab_size=400, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip
WIDE = Qwen3Config(vocab_size=600, intermediate_size=512, num_hidden_layers=1)
TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "nano" / "tokenizer"
PROMPTS = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
GREEDY = Sampling(temperature=0)
pair = functools.lru_cache(maxsize=1)(test_text_encoder.pair)  # wide ones take their time


def prompt_of(config: Qwen3Config, length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()


def ours(model, prompt, sampling=GREEDY, stop=(), count=24, on_token=None):
    cpu = torch.device("cpu")
    next_logits = steps(model, len(prompt) + count, cpu, torch.float32)
    return generate(next_logits, prompt, sampling, stop, count, on_token)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("length", [1, 33])
@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("config", [SMALL, NANO_SHAPE, WIDE], ids=["small", "nano", "width 2560"])
def test_greedy_tokens_are_those_of_transformers(config, seed, length, penalty) -> None:
    model, peer = pair(config, seed)
    prompt = prompt_of(config, length, seed)
    # Theirs counts the prompt's tokens as written, ours does not.
    processors = LogitsProcessorList()
    if penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=length))
    theirs = peer.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=None,
        logits_processor=processors,
    )[0, length:].tolist()
    assert ours(model, prompt, Sampling(temperature=0, repetition_penalty=penalty)).tokens == theirs


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("config", [SMALL, NANO_SHAPE, WIDE], ids=["small", "nano", "width 2560"])
def test_greedy_choices_are_transformers_best_of_each_list(config, seed) -> None:
    """Theirs reads everything anew for each choice; ours only the token that was chosen before."""
    model, peer = pair(config, seed)
    prompt = prompt_of(config, 33, seed)
    generator = torch.Generator().manual_seed(seed)
    lists = [
        torch.randperm(config.vocab_size, generator=generator)[:count].tolist() for count in (9, 14, 2, 1, 16)
    ]
    expected, ids = [], list(prompt)
    for tokens in lists:
        with torch.no_grad():
            scores = peer(torch.tensor([ids])).logits[0, -1, tokens]
        expected.append(int(scores.argmax()))
        ids.append(tokens[expected[-1]])
    next_logits = steps(model, len(prompt) + len(lists), torch.device("cpu"), torch.float32)
    fed, heard = [], []

    def counted(ids):
        fed.append(ids.shape[1])
        return next_logits(ids)

    places = choose(counted, prompt, lists, 0, 5, lambda places: heard.append([*places]))
    assert places == expected
    assert fed == [len(prompt), 1, 1, 1, 1]
    assert heard == [expected[: i + 1] for i in range(len(lists))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_choices_follow_the_scores_of_their_list_alone(temperature) -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0, -1.0, 0.0, 1.5]])
    lists = [[4, 2, 0, 5]] * 20_000
    places = choose(lambda ids: logits, [0], lists, temperature, 3)
    assert places == choose(lambda ids: logits, [0], lists, temperature, 3)
    assert places != choose(lambda ids: logits, [0], lists, temperature, 4)
    share = torch.bincount(torch.tensor(places), minlength=4) / len(places)
    assert (share - (logits[0, [4, 2, 0, 5]] / temperature).softmax(dim=0)).abs().max() < 0.015


@pytest.mark.parametrize("config", [SMALL, NANO_SHAPE], ids=["small", "nano"])
def test_step_by_step_is_all_at_once(config) -> None:
    """Every step's scores equal those of a forward over everything, in a cache that is just large enough."""
    model, _ = pair(config, seeds(1)[0])
    ids = torch.tensor([prompt_of(config, 20, 5)])
    cache = KeyValueCache(config, 20, torch.device("cpu"), torch.float32)
    found = [model.next_logits(ids[:, :9], cache)]
    found += [model.next_logits(ids[:, i : i + 1], cache) for i in range(9, 20)]
    assert relative(torch.stack(found, dim=1), model.logits(ids)[:, 8:]) <= 1e-5
    assert cache.data.nbytes == KeyValueCache.bytes_needed(config, 20, torch.float32)
    with pytest.raises(ValueError, match="one at a time"):
        model.next_logits(ids[:, :2], cache)


FILTERS = {
    "temperature": Sampling(temperature=0.6, top_k=0, top_p=1.0),
    "top-k": Sampling(temperature=1.0, top_k=7, top_p=1.0),
    "top-p": Sampling(temperature=1.0, top_k=0, top_p=0.6),
    "top-p of nothing": Sampling(temperature=1.0, top_k=0, top_p=0.0),
    "min-p": Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.2),
    "penalty": Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.7),
    "all": Sampling(temperature=1.4, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
}


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("name", FILTERS)
def test_what_may_come_next_is_what_transformers_lets_come(name, seed) -> None:
    sampling = FILTERS[name]
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(500, generator=generator)
    seen = torch.randint(0, 500, (60,), generator=generator)
    theirs = [
        RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        TemperatureLogitsWarper(sampling.temperature),
        TopKLogitsWarper(sampling.top_k or 500),
        TopPLogitsWarper(sampling.top_p),
        MinPLogitsWarper(sampling.min_p),
    ]
    expected = LogitsProcessorList(theirs)(seen[None], logits[None].clone())[0].softmax(dim=0)
    written = torch.zeros(500, dtype=torch.bool)
    written[seen] = True
    ids, likely = candidates(penalised(logits, sampling.repetition_penalty, written), sampling)
    found = torch.zeros(500).scatter(0, ids, likely)
    assert torch.equal(found > 0, expected > 0)
    assert (found - expected).abs().max() <= 1e-6


def test_a_share_that_ends_between_two_tokens_keeps_no_third() -> None:
    """Probabilities of a half, a quarter and two eighths: their sums are exact, as are transformers'."""
    logits = torch.tensor([1.0, 4, 1, 2]).log()
    for top_p in (0.5, 0.75, 0.875):
        theirs = TopPLogitsWarper(top_p)(None, logits[None].clone())[0]
        ids, likely = candidates(logits, Sampling(temperature=1.0, top_k=0, top_p=top_p))
        assert set(ids[likely > 0].tolist()) == set(theirs.isfinite().nonzero().flatten().tolist()), top_p


def test_draws_follow_the_probabilities() -> None:
    """A chain of tokens whose scores do not depend on what came before."""
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0]])
    free = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=3)
    tokens = generate(lambda ids: logits, [0], free, (), 20_000).tokens
    share = torch.bincount(torch.tensor(tokens), minlength=5) / len(tokens)
    assert (share - logits[0].softmax(dim=0)).abs().max() < 0.01


def test_a_seed_gives_one_text_and_leaves_the_global_generator_alone() -> None:
    model, _ = pair(SMALL, 3)
    prompt = prompt_of(SMALL, 12, 3)
    torch.manual_seed(1)
    made = {
        seed: ours(model, prompt, Sampling(temperature=1.0, seed=seed)).tokens for seed in (5, 6, 2**64 - 1)
    }
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert {seed: ours(model, prompt, Sampling(temperature=1.0, seed=seed)).tokens for seed in made} == made
    assert len({tuple(tokens) for tokens in made.values()}) == len(made)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_ends_at_a_stop_token_at_the_cap_and_at_an_exception() -> None:
    model, _ = pair(SMALL, 4)
    prompt = prompt_of(SMALL, 12, 4)
    whole = ours(model, prompt)
    assert not whole.ended and len(whole.tokens) == 24
    stop = next(token for token in whole.tokens if token != whole.tokens[0])
    stopped = ours(model, prompt, stop=(stop,))
    assert stopped.ended and stopped.tokens == whole.tokens[: whole.tokens.index(stop)]

    heard = []

    def listen(token: int) -> None:
        heard.append(token)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours(model, prompt, on_token=listen)
    assert heard == whole.tokens[:3]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@pytest.mark.parametrize("text", [*PROMPTS.values()] if isinstance(PROMPTS, dict) else PROMPTS)
def test_streamed_text_grows_by_whole_characters(tokenizer, text) -> None:
    stream, seen = TextStream(tokenizer, {}), []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        seen.append(stream.add(token))
    assert stream.finish() == text
    assert all(text.startswith(part) for part in seen), "never a broken character, never taken back"


class Bytes:
    """A tokenizer whose tokens are the pieces of a text's bytes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("seed", seeds(20))
def test_a_character_in_several_tokens_waits_for_the_last(seed) -> None:
    """Also where tokens hold the end of one and the beginning of the next."""
    chance = random.Random(seed)
    text = "".join(chance.choice("a\u00e9\u4e00\U0001f98a") for _ in range(30))
    left, pieces = text.encode(), []
    while left:
        count = chance.randint(1, 6)
        pieces.append(left[:count])
        left = left[count:]
    stream, so_far = TextStream(Bytes(pieces), {}), b""
    for token, piece in enumerate(pieces):
        shown, so_far = stream.add(token), so_far + piece
        assert text.startswith(shown)
        if text.startswith(so_far.decode("utf-8", "replace")):
            assert shown.encode() == so_far, "nothing is held back without need"
    assert stream.finish() == text


def test_what_never_becomes_a_character_is_shown_in_the_end() -> None:
    stream = TextStream(Bytes([b"\xff"] * 16), {})
    shown = [stream.add(token) for token in range(16)]
    assert shown[:-1] == [""] * 15 and shown[-1] == "\N{REPLACEMENT CHARACTER}" * 16


def test_a_tokenizer_is_never_asked_for_elsewhere(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **_: asked.append(name) or [])
    (tmp_path / "vocab.json").touch()
    for name in (tmp_path, tmp_path / "gone", "nobody/no-such-tokenizer"):
        with pytest.raises(FileNotFoundError, match=f"{name} has no tokenizer"):
            load_tokenizer(name)
    assert asked == []


def test_a_tokenizer_of_two_files_is_the_same(tokenizer, tmp_path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, tmp_path)
    texts = ["a red fox", "\u4e00\u53ea\u72d0\u72f8"]
    assert load_tokenizer(tmp_path)(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_named_tokens_are_text_and_other_special_ones_are_not(tokenizer) -> None:
    opened, end = (tokenizer.convert_tokens_to_ids(name) for name in ("<think>", "<|im_end|>"))
    words = tokenizer("a cat", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, {opened: "<think>"})
    for token in (opened, *words, end):
        stream.add(token)
    assert stream.finish() == "<think>a cat"
