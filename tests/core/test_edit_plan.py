"""Which route an edit takes."""

from __future__ import annotations

import itertools

import pytest

from zimage_core.prompt.instruction import prompts_of
from zimage_core.sampling.edit_plan import NO_MASK, NO_OMNI, NO_SOURCE, STRENGTHS, NoSuchRoute, plan

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


def test_only_omni_looks_at_more_pictures() -> None:
    more = ("image_2", "vision")
    used = plan("auto", KNOWN, prompts_of(KNOWN), omni=True, references=more).report()
    unused = plan("auto", KNOWN, prompts_of(KNOWN), references=more).report()
    assert not any(name in used for name in more) and all(f"Not used: {name}" in unused for name in more)
