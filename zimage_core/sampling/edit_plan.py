"""Which way an edit takes through a model, why, and what it cannot use."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..prompt.instruction import Prompts

AUTO = "auto"
STRENGTHS = {"omni": 1.0, "flowedit": 0.75, "inpaint": 1.0, "img2img": 0.6}  # route -> what suits it

NO_OMNI = "the weights have no omni keys (siglip_*)"
NO_MASK = "no mask is given"
BLACK_MASK = "the mask is black everywhere"
PAINT = "Paint where to edit: right-click the picture in Load Image, Open in MaskEditor."
CONNECT = "Connect one to mask, or choose route auto."
OTHER_ROUTE = "Choose route auto, which takes what these weights can do."
NO_SOURCE = "the instruction does not tell what the picture shows now"
EXAMPLES = "'replace the fox with an apple', 'make the background blue', 'add a hat' or 'remove the hat'"
HOW_TO_SAY = f"Describe the picture in source_prompt, or write the instruction like {EXAMPLES}."


class NoSuchRoute(ValueError):
    """The chosen route needs something that is not there."""


@dataclass(frozen=True)
class Plan:
    """strength: from 0, the picture as it is, to 1, pure noise. unused: sentences for the user."""

    route: str
    why: str
    prompts: Prompts
    strength: float
    unused: list[str] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Nothing would change."""
        return self.route == "flowedit" and self.prompts.source == self.prompts.target

    def report(self) -> str:
        target, source = self.prompts.target, self.prompts.source
        lines = [f"Route: {self.route}, because {self.why}."]
        if self.route == "flowedit":
            hint = " (from the instruction; a whole description in source_prompt edits better)"
            lines.append(f"From: {source}{hint if self.prompts.derived else ''}")
        lines.append(f"{'Instruction' if self.route == 'omni' else 'To'}: {target}")
        if self.idle:
            lines.append("Both are the same: the picture is given back as it is.")
        else:
            lines.append(f"Strength: {self.strength:g}")
        return "\n".join(lines + self.unused)


def plan(
    route: str,
    instruction: str,
    prompts: Prompts,
    strength: float = 0.0,
    omni: bool = False,
    mask: bool = False,
    references: tuple[str, ...] = (),
    unpainted: bool = False,
) -> Plan:
    """The way to edit that suits weights, mask and words.

    route: auto or one of STRENGTHS. strength: 0 is what suits the route. omni: the weights have those keys.
    mask: there is one and it is not empty. references: names of what only omni weights look at.
    unpainted: a mask is given and it is black everywhere.
    Raises NoSuchRoute when a route is unknown or lacks what it needs.
    """
    if route not in (AUTO, *STRENGTHS):
        raise NoSuchRoute(f"route is {route!r}, expected one of {', '.join((AUTO, *STRENGTHS))}")
    if not instruction.strip():
        raise NoSuchRoute("instruction is empty: say what to change, or what the picture shall show.")
    lacks = {
        "omni": None if omni else NO_OMNI,
        "inpaint": None if mask else BLACK_MASK if unpainted else NO_MASK,
        "flowedit": None if prompts.source else NO_SOURCE,
        "img2img": None,
    }
    if route != AUTO:
        if lacks[route]:
            missing = lacks[route]
            do = {NO_OMNI: OTHER_ROUTE, NO_MASK: CONNECT, BLACK_MASK: PAINT, NO_SOURCE: HOW_TO_SAY}[missing]
            raise NoSuchRoute(f"route {route} is not possible: {missing}. {do}")
        taken, why = route, "it was chosen"
    else:
        taken = next(name for name, missing in lacks.items() if not missing)
        has = {
            "omni": "the weights have omni keys (siglip_*)",
            "inpaint": "a mask is given",
            "flowedit": "it is known what the picture shows",
            "img2img": "image to image needs nothing else",
        }
        before = list(lacks.values())[: list(lacks).index(taken)]
        why = " and ".join(filter(None, (", ".join(before), has[taken])))
    unused = [f"Not used: the mask; it is black everywhere. {PAINT}"] if unpainted else []
    if taken == "omni":  # such weights read instructions themselves
        prompts = Prompts(None, instruction.strip(), None)
    else:
        if taken != "inpaint" and route == AUTO and prompts.kind is None:
            how = f"An instruction is written like {EXAMPLES}." if prompts.source else HOW_TO_SAY
            unused.append(f"The instruction was taken as a description. {how}")
        unused += [f"Not used: {name}; only omni weights look at it." for name in references]
    return Plan(taken, why, prompts, strength or STRENGTHS[taken], unused)
