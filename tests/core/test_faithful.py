"""Faithful mode: good answers pass, spoiled ones do not.

faithful_cases.json holds prompts with a good answer each and spoils: [kind, old, new], replaced in it. More
spoils are made here from its lists of objects, findings, numbers, names and texts that no prompt has.
The part "dev" was used to make the word lists; "test" was written after them and never used for them.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from zimage_core.prompt.faithful import compare

FILE = json.loads(Path(__file__).with_name("faithful_cases.json").read_text(encoding="utf-8"))
CASES = FILE["cases"]
GOOD_SHARE = 0.95  # of the good answers of each part and language


def spoils(case: dict) -> list[tuple[str, str]]:
    """The spoiled answers of a case: those written by hand, one of each added kind, and altered digits."""
    random_ = random.Random(case["id"])
    made = [(kind, case["answer"].replace(old, new, 1)) for kind, old, new in case["spoils"]]
    for kind, (things, sentences) in FILE["added"][case["language"]].items():
        thing = random_.choice([t for t in things if t not in case["prompt"]])
        made.append((kind, case["answer"] + random_.choice(sentences).replace("{}", thing)))
    for match in re.finditer(r"(?<![\w.])\d+(?![\w.])", case["answer"]):
        other = str(int(match[0]) + random_.randint(1, 9))
        made.append(
            ("number changed", case["answer"][: match.start()] + other + case["answer"][match.end() :])
        )
    return made


def judge(case: dict, answer: str):
    return compare(case["prompt"], answer, case.get("fixed", ()))


def test_the_corpus_is_what_the_tests_claim():
    kinds = Counter(kind for case in CASES for kind, _ in spoils(case))
    assert len(CASES) >= 200 and sum(kinds.values()) > 1000, kinds
    assert all(len({kind for kind, _ in spoils(case)}) >= 5 for case in CASES)
    assert all(old in case["answer"] and old != new for case in CASES for _, old, new in case["spoils"])
    assert all(sum(c["language"] == language for c in CASES) >= 100 for language in ("en", "zh"))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("part", sorted({case["part"] for case in CASES}))
def test_good_answers_pass(part: str, language: str):
    cases = [case for case in CASES if (case["part"], case["language"]) == (part, language)]
    failed = {case["id"]: judge(case, case["answer"]).explain() for case in cases}
    failed = {name: why for name, why in failed.items() if why}
    assert len(cases) - len(failed) >= GOOD_SHARE * len(cases), failed


@pytest.mark.parametrize("part", sorted({case["part"] for case in CASES}))
def test_no_spoiled_answer_passes(part: str):
    passed = [
        (case["id"], kind, answer)
        for case in CASES
        if case["part"] == part
        for kind, answer in spoils(case)
        if judge(case, answer).ok
    ]
    assert not passed


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_prompt_is_faithful_to_itself(case: dict):
    assert judge(case, case["prompt"]).explain() == ""
