"""Which route an edit takes."""

from __future__ import annotations

import itertools

import pytest

from zimage_core.prompt.instruction import Prompts, prompts_of
from zimage_core.sampling.edit_plan import (
    BLACK_MASK,
    HOW_TO_SAY,
    NO_MASK,
    NO_OMNI,
    NO_SOURCE,
    NoSuchRoute,
    plan,
)

STRENGTHS = {"omni": 1, "flowedit": 0.75, "inpaint": 1, "img2img": 0.6}  # as the help page has them
KNOWN, UNKNOWN = "replace the fox with an apple", "an apple"


@pytest.mark.parametrize(("omni", "mask", "known"), itertools.product((True, False), repeat=3))
def test_auto_takes_the_first_that_is_possible(omni: bool, mask: bool, known: bool) -> None:
    instruction = KNOWN if known else UNKNOWN
    made = plan("auto", instruction, prompts_of(instruction), omni=omni, mask=mask)
    expected = "omni" if omni else "inpaint" if mask else "flowedit" if known else "img2img"
    assert made.route == expected
    for reason, skipped in ((NO_OMNI, not omni), (NO_MASK, not omni and not mask)):
        assert (reason in made.why) == skipped
    assert made.strength == STRENGTHS[expected]
    assert made.prompts.target == (instruction if omni else "an apple")


@pytest.mark.parametrize("route", STRENGTHS)
def test_a_chosen_route_is_taken_where_it_is_possible(route: str) -> None:
    made = plan(route, KNOWN, prompts_of(KNOWN), strength=0.3, omni=True, mask=True)
    assert (made.route, made.strength) == (route, 0.3)


@pytest.mark.parametrize(
    ("route", "missing"), [("omni", NO_OMNI), ("inpaint", NO_MASK), ("flowedit", NO_SOURCE), ("edit", "auto")]
)
def test_what_a_chosen_route_lacks_is_said(route: str, missing: str) -> None:
    with pytest.raises(NoSuchRoute) as error:
        plan(route, UNKNOWN, prompts_of(UNKNOWN))
    assert missing in str(error.value)
    assert (HOW_TO_SAY in str(error.value)) == (route == "flowedit")


def test_only_omni_looks_at_more_pictures() -> None:
    more = ("image_2", "vision")
    used = plan("auto", KNOWN, prompts_of(KNOWN), omni=True, references=more).report()
    unused = plan("auto", KNOWN, prompts_of(KNOWN), references=more).report()
    assert not any(name in used for name in more) and all(f"Not used: {name}" in unused for name in more)


def test_the_report_says_what_is_done() -> None:
    prompts = prompts_of(KNOWN)
    report = plan("auto", KNOWN, prompts).report().splitlines()
    assert report[0].startswith("Route: flowedit, because ") and report[0].endswith("shows.")
    assert report[1].startswith(f"From: {prompts.source} (from the instruction")
    assert report[2:] == [f"To: {prompts.target}", "Strength: 0.75"]
    said = plan("flowedit", KNOWN, Prompts("a fox", "an apple", None)).report().splitlines()
    chosen = "Route: flowedit, because it was chosen."
    assert said == [chosen, "From: a fox", "To: an apple", "Strength: 0.75"]
    omni = plan("omni", f" {KNOWN}\n", prompts, omni=True).report().splitlines()
    assert omni == ["Route: omni, because it was chosen.", f"Instruction: {KNOWN}", "Strength: 1"]


def test_equal_prompts_change_nothing_on_their_way_alone() -> None:
    same = Prompts("a fox", "a fox", None)
    assert plan("flowedit", "a fox", same).idle
    assert "given back as it is" in plan("flowedit", "a fox", same).report()
    assert not plan("img2img", "a fox", same).idle and not plan("auto", KNOWN, prompts_of(KNOWN)).idle


def test_a_description_is_only_wondered_at_where_nobody_chose() -> None:
    assert HOW_TO_SAY in plan("auto", UNKNOWN, prompts_of(UNKNOWN)).report()
    assert HOW_TO_SAY not in plan("img2img", UNKNOWN, prompts_of(UNKNOWN)).report()
    assert HOW_TO_SAY not in plan("auto", UNKNOWN, prompts_of(UNKNOWN), mask=True).report()


@pytest.mark.parametrize("instruction", ["", " \n"])
def test_an_empty_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(NoSuchRoute, match="instruction is empty"):
        plan("auto", instruction, prompts_of("an apple"))


def test_a_black_mask_is_told_from_a_missing_one():
    words = prompts_of(KNOWN)
    for route in ("auto", "inpaint"):
        for unpainted in (False, True):
            try:
                said = plan(route, KNOWN, words, unpainted=unpainted).report()
            except NoSuchRoute as error:
                said = str(error)
            assert (BLACK_MASK in said, NO_MASK in said) == (unpainted, not unpainted)
            assert ("MaskEditor" in said) is unpainted
    painted = plan("auto", "an apple", prompts_of("an apple"), mask=True).report()
    assert BLACK_MASK not in painted and NO_MASK not in painted
