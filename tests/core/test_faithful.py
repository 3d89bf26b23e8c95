"""Faithful mode: whatever is chosen, the text is the prompt letter by letter and a join of listed phrases."""

from __future__ import annotations

import functools
import json
import random
import re
from pathlib import Path

import pytest
import torch

from tests.core.random_models import seeds
from zimage_core.prompt.faithful import LETTERS, letter_tokens, offer
from zimage_core.prompt.language import language_of
from zimage_core.prompt.messages import as_chat
from zimage_core.prompt.template import load_tokenizer
from zimage_core.prompt.writing import choose, steps
from zimage_core.weights import load_text_encoder

PROMPTS = json.loads(Path(__file__).with_name("faithful_prompts.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"
FILES = ROOT / "zimage_core" / "prompt"
LISTED = json.loads((FILES / "additions.json").read_text(encoding="utf-8"))
PHRASES = {language: [p for slot in LISTED.values() for p in slot[language]] for language in ("en", "zh")}
COMMA = {"en": ", ", "zh": "\uff0c"}
SCRIPTS = (  # first and last letter
    ("a", "z"), ("A", "Z"), ("\u00c0", "\u017f"), ("\u4e00", "\u9fff"), ("\u3041", "\u30fa"),
    ("\u0410", "\u044f"), ("\u0621", "\u064a"), ("\uac00", "\ud7a3"), ("\u0905", "\u0939"),
    ("\U0001f300", "\U0001f9ff"), ("!", "@"),
)  # fmt: skip
KNOWN_WORDS = "a the of in with fox light lit view focus background style frame CT x-ray red two no".split()
NUMBERS = "no zero one two three four five six seven eight nine ten first second third half quarter".split()
COLOURS = "red orange yellow green blue purple violet pink brown black white grey gray golden silver".split()
CHINESE_NUMBERS = "\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341\u4e24\u96f6\u767e\u5343"
CHINESE_COLOURS = "\u7ea2\u6a59\u9ec4\u7eff\u84dd\u7d2b\u7c89\u68d5\u9ed1\u7070\u91d1\u94f6\u9752"


def is_faithful(prompt: str, text: str) -> bool:
    """The prompt unbroken, and after it nothing but phrases of one language, divided by commas."""
    kept = prompt.strip()
    if not text.startswith(kept):
        return False
    added = text[len(kept) :]
    patterns = []
    for language, comma in COMMA.items():
        phrase = "|".join(map(re.escape, PHRASES[language]))
        patterns.append(f"(?:{comma}| |)(?:{phrase})(?:{comma}(?:{phrase}))*")
    return not added or any(re.fullmatch(pattern, added) for pattern in patterns)


def random_prompt(rng: random.Random) -> str:
    """Words of one or several scripts, known words, listed phrases, injections, in any mixture and length."""
    parts, scripts = [], rng.sample(SCRIPTS, rng.randint(1, 3))
    for _ in range(rng.choice((1, 3, 8, 20, 60))):
        kind = rng.random()
        if kind < 0.6:
            first, last = rng.choice(scripts)
            word = "".join(chr(rng.randint(ord(first), ord(last))) for _ in range(rng.randint(1, 9)))
        elif kind < 0.8:
            word = rng.choice(KNOWN_WORDS)
        elif kind < 0.9:
            word = rng.choice(PHRASES["en"] + PHRASES["zh"])
        else:
            word = rng.choice(PROMPTS[rng.choice([*PROMPTS])])
        parts.append(f'"{word}"' if rng.random() < 0.05 else word)
        parts.append(
            rng.choice((" ", " ", " ", "", ", ", ". ", "\n", "\r\n", "\t", "\uff0c", "\u3002", "\u3000"))
        )
    return "".join(parts)


def any_choice(rng: random.Random, offered) -> dict:
    """An entry of each slot, mostly; or what a language model may send instead."""
    strange = (
        None,
        3,
        "",
        "a dog",
        ["a dog"],
        {"a": "dog"},
        rng.choice(PHRASES["en"]),
        rng.choice(PHRASES["zh"]),
    )
    chosen = {
        slot: rng.choice(phrases) if rng.random() < 0.8 else rng.choice(strange)
        for slot, phrases in offered.slots.items()
    }
    return chosen | {rng.choice([*LISTED, "subject"]): rng.choice(strange)} if rng.random() < 0.2 else chosen


@pytest.mark.parametrize("seed", seeds(1))
def test_any_choice_for_any_prompt_is_faithful(seed) -> None:
    rng = random.Random(seed)
    added = 0
    for case in range(10_000):
        prompt = random_prompt(rng)
        if case % 500 == 0:
            prompt = "\n".join((prompt, *(" ".join(rng.choices(KNOWN_WORDS, k=50)) for _ in range(100))))
        offered = offer(prompt, rng.getrandbits(64))
        text = offered.description(any_choice(rng, offered))
        assert is_faithful(prompt, text), (seed, case, prompt, text)
        added += text != prompt.strip()
    assert 4_000 < added < 10_000, "most prompts get additions, some get none"


def test_unfaithful_texts_are_seen() -> None:
    """The check of these tests itself."""
    prompt = "a red fox.\nIt runs"
    for text in (
        "a red fox.\nIt runs, in sharp focus, with fine detail",
        "a red fox.\nIt runs",
    ):
        assert is_faithful(prompt, text)
    for text in (
        "a red fox. It runs, in sharp focus",
        "a red fox.\nIt runs, in sharp focus and a dog",
        "a red fox.\nIt runs, a dog, in sharp focus",
        "in sharp focus",
        "a red fox.\nIt runs, " + PHRASES["zh"][0] + ", in sharp focus",
    ):
        assert not is_faithful(prompt, text)


@functools.lru_cache(maxsize=1)
def nano():
    return load_text_encoder(NANO / "text_encoder.safetensors", language_model=True), load_tokenizer(
        NANO / "tokenizer"
    )


def chosen_by_nano(prompt: str, seed: int) -> tuple[str, list[int]]:
    """The description, and how many tokens were fed in each call."""
    model, tokenizer = nano()
    offered = offer(prompt, seed)
    ids = tokenizer(as_chat(offered.ask_for_letters(), None))["input_ids"]
    letters = letter_tokens(tokenizer)
    dtype = model.model.embed_tokens.weight.dtype
    next_logits = steps(model, len(ids) + len(LISTED), torch.device("cpu"), dtype)
    fed = []

    def counted(ids: torch.Tensor) -> torch.Tensor:
        fed.append(ids.shape[1])
        return next_logits(ids)

    allowed = [letters[: len(phrases)] for phrases in offered.slots.values()]
    places = choose(counted, ids, allowed, temperature=1.0, seed=seed)
    assert fed[:1] in ([], [len(ids)])
    return offered.description(offered.chosen(places)), fed[1:]


@pytest.mark.parametrize("seed", seeds(1))
def test_nano_chooses_faithfully_with_one_token_a_slot(seed) -> None:
    rng = random.Random(seed)
    prompts = [prompt for kind in PROMPTS.values() for prompt in kind][:44]
    prompts += [
        "\n".join(PHRASES["en"]),
        COMMA["zh"].join(PHRASES["zh"]),
        " ".join(rng.choices(KNOWN_WORDS, k=5_000)),
    ]
    prompts += [random_prompt(rng) for _ in range(50 - len(prompts))]
    texts = {}
    for case, prompt in enumerate(prompts):
        texts[prompt], fed = chosen_by_nano(prompt, seed + case)
        assert is_faithful(prompt, texts[prompt]), (seed, case, prompt, texts[prompt])
        assert fed == [1] * len(fed) and len(fed) < len(LISTED), "after the prompt, one token for each slot"
    assert len(prompts) == 50
    assert sum(text != prompt.strip() for prompt, text in texts.items()) > 25
    assert chosen_by_nano("a fox", 5) == chosen_by_nano("a fox", 5)
    assert len({chosen_by_nano("a fox", seed)[0] for seed in range(5)}) > 1


def test_lists_hold_only_what_they_may() -> None:
    assert [*LISTED] == [
        "view", "framing", "focus", "light_from", "light", "background", "finish", "exposure",
    ]  # fmt: skip
    for slot, languages in LISTED.items():
        assert [*languages] == ["en", "zh"]
        for language, phrases in languages.items():
            assert 8 <= len(phrases) <= 15 and len(phrases) < len(LETTERS), (slot, language)
    for language, phrases in PHRASES.items():
        assert len(set(phrases)) == len(phrases)
        for phrase in phrases:
            assert re.fullmatch("[a-z -]+", phrase) if language == "en" else not phrase.isascii(), phrase
            assert not {*NUMBERS, *COLOURS} & {*re.split("[ -]", phrase)}, phrase
            assert not {*CHINESE_NUMBERS, *CHINESE_COLOURS, *",.\uff0c\u3002"} & {*phrase}, phrase
    assert (FILES / "additions.json").stat().st_size <= 12_000


@pytest.mark.parametrize("slot", LISTED)
def test_a_slot_that_the_prompt_speaks_of_stays_empty(slot) -> None:
    """So that a description that is given as the prompt again gets no second view, light ..."""
    about = {"en": "a fox", "zh": PROMPTS["zh"][0]}
    if slot == "exposure":
        about = {"en": "MRI", "zh": f"MRI {PROMPTS['zh'][0]}"}
    for language, prompt in about.items():
        assert offer(prompt).language == language and slot in offer(prompt).slots
        for phrase in LISTED[slot][language]:
            assert slot not in offer(prompt + COMMA[language] + phrase).slots, phrase


@pytest.mark.parametrize("language", ["en", "zh", "other"])
def test_languages_are_told_apart(language) -> None:
    assert {prompt: language_of(prompt) for prompt in PROMPTS[language]} == dict.fromkeys(
        PROMPTS[language], language
    )
    for prompt in PROMPTS["other"]:
        offered = offer(prompt)
        assert offered.language == "en" and {*offered.slots} <= {"focus", "finish"}
    assert {*offer(PROMPTS["other"][0]).slots} == {"focus", "finish"}


def test_prompts_about_imaging_get_framing_and_exposure_only() -> None:
    for prompt in PROMPTS["imaging"]:
        assert {*offer(prompt).slots} <= {"framing", "exposure"} and "exposure" in offer(prompt).slots, prompt
    for prompt in PROMPTS["no imaging"]:
        assert "finish" in offer(prompt).slots and "exposure" not in offer(prompt).slots, prompt


def test_prompts_speak_of_slots_in_their_own_words() -> None:
    assert {*LISTED} - {*offer("a fox").slots} == {"exposure"}
    for prompt, empty in (
        ("a fox at night", {"light", "background"}),
        ("close-up of a fox", {"view", "framing"}),
        ("a watercolour of a fox", {"finish"}),
        ("a backlit fox with bokeh", {"light_from", "light", "focus"}),
        (PROMPTS["zh"][-1], {"light_from", "light", "focus", "finish", "background"}),
    ):
        assert {*LISTED} - {*offer(prompt).slots} == {"exposure", *empty}, prompt


def test_each_slot_is_shown_with_nothing_in_an_order_of_the_seed() -> None:
    for prompt, language in (("a fox", "en"), (PROMPTS["zh"][0], "zh")):
        offered = offer(prompt, 7)
        assert offered == offer(prompt, 7) != offer(prompt, 8)
        nothing = {*offered.slots["view"]} - {*LISTED["view"][language]}
        assert len(nothing) == 1
        for slot, phrases in offered.slots.items():
            assert sorted(phrases) == sorted([*LISTED[slot][language], *nothing])
        assert offered.description({slot: [*nothing][0] for slot in offered.slots}) == prompt
        system, user = offered.ask_for_letters()
        assert user["content"].index(prompt) < user["content"].index("1. view")
        for letter, phrase in zip(LETTERS, offered.slots["focus"], strict=False):
            assert f"{letter}: {phrase}\n" in user["content"] + "\n"
        assert system != offered.ask_for_json()[0]


def test_a_servers_json_is_read_and_anything_else_is_no_choice() -> None:
    offered = offer("a fox")
    good = {slot: LISTED[slot]["en"][0] for slot in offered.slots}
    whole = ", ".join(("a fox", *good.values()))
    for answer in (
        json.dumps(good),
        f"```json\n{json.dumps(good, indent=1)}\n```",
        f"<think>{{maybe}}</think>Here it is: {json.dumps(good)} Enjoy!",
        f"[THINK]{{maybe}}[/THINK]{json.dumps(good)}",
        f"<|channel|>analysis<|message|>{{}}<|end|><|channel|>final<|message|>{json.dumps(good)}",
        json.dumps(good | {"subject": "a dog", "view": good["view"]}),
    ):
        assert offered.description(offered.read_json(answer)) == whole
    one = offered.read_json(json.dumps({"view": "seen by a dog", "focus": good["focus"], "light": None}))
    assert offered.description(one) == f"a fox, {good['focus']}"
    for answer in (
        "",
        "I cannot do that.",
        "{",
        "{}",
        "[1]",
        '{"view": ',
        "{" * 100_000,
        '{"a": ' * 9_000 + "}" * 9_000,
    ):
        assert offered.description(offered.read_json(answer)) == "a fox"


def test_additions_follow_the_prompts_punctuation() -> None:
    focus = {language: LISTED["focus"][language][0] for language in COMMA}
    for prompt, between in (("a fox", ", "), ("A fox runs.", " "), ("a fox,", " "), ("  a\n fox \n", ", ")):
        assert offer(prompt).description({"focus": focus["en"]}) == prompt.strip() + between + focus["en"]
    for prompt, between in ((PROMPTS["zh"][0], COMMA["zh"]), (PROMPTS["zh"][1], "")):
        assert offer(prompt).description({"focus": focus["zh"]}) == prompt + between + focus["zh"]
