"""A short prompt -> the description that a language model makes of it, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .answer import AnswerError, read_answer
from .faithful import Offer
from .kept import missing
from .language import lost_words
from .messages import AUTO, Message, compose

LARGEST_SEED = 2**64 - 1


class WriterFailed(RuntimeError):
    """Nothing was written; the message says why. Another seed does not help."""


@dataclass(frozen=True)
class Draft:
    """What a language model wrote; note says how much, ended whether it came to its end."""

    text: str
    note: str
    ended: bool = True


@dataclass(frozen=True)
class Request:
    """fixed: terms that are wanted back as they are."""

    prompt: str
    template: str
    language: str = AUTO
    fixed: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Outcome:
    """text: None where no answer could be used. notes: what happened, a line each.

    failed: nothing was written at last, and another seed does not help.
    """

    text: str | None = None
    notes: list[str] = field(default_factory=list)
    failed: bool = False


# Both may raise WriterFailed, or AnswerError for an answer that cannot be used.
Write = Callable[[list[Message], int], Draft]  # messages, seed
Choose = Callable[[Offer], tuple[Mapping[str, object], str]]  # -> slot: what was chosen; and a note


def terms(text: str) -> tuple[str, ...]:
    """The terms of a list with commas, English or Chinese."""
    return tuple(filter(None, (term.strip() for term in text.replace("\uff0c", ",").split(","))))


def enhance(request: Request, write: Write) -> Outcome:
    """The answer, and what it lacks of the fixed terms and of the prompt's quoted texts and measures.

    Where fixed terms are lost it is asked for once more, with the next seed; where they are lost again, the
    prompt itself is put before the description.
    """
    messages = compose(request.prompt, request.template, request.language, request.fixed)
    outcome = Outcome()
    for seed in (request.seed, (request.seed + 1) % (LARGEST_SEED + 1)):
        try:
            draft = write(messages, seed)
            outcome.notes.append(draft.note)
            outcome.text = read_answer(draft.text)
        except WriterFailed as error:
            outcome.notes.append(str(error))
            outcome.failed = True
            break
        except AnswerError as error:
            outcome.notes.append(f"refused: {error}")
            break
        if not (lost := absent(request.fixed, outcome.text)):
            break
        outcome.notes.append(f"fixed terms lost: {', '.join(lost)}")
    if outcome.text is None:
        return outcome
    if absent(request.fixed, outcome.text):
        outcome.text = f"{request.prompt.strip()}\n\n{outcome.text}"
        outcome.notes.append("the prompt itself is put before the description")
    lacking = [*absent(request.fixed, outcome.text), *missing(request.prompt, outcome.text)]
    if lacking:
        outcome.notes.append(f"not in the description: {', '.join(dict.fromkeys(lacking))}")
    if lost := lost_words(request.prompt, outcome.text):
        outcome.notes.append(f"words of the prompt that the description lacks: {', '.join(lost)}")
    return outcome


def describe_faithfully(offer: Offer, choose: Choose, fixed: Iterable[str] = ()) -> Outcome:
    """The prompt as it is and, after it, the additions that were chosen: asked once, and never refused.

    fixed: terms that are named where the prompt does not have them.
    """
    outcome, chosen = Outcome(), {}
    if offer.slots:
        try:
            chosen, note = choose(offer)
        except WriterFailed as error:
            return Outcome(notes=[str(error)], failed=True)
        except AnswerError as error:
            note = f"no choice: {error}"
        outcome.notes.append(note)
    outcome.text = offer.description(chosen)
    outcome.notes.append(f"added: {', '.join(offer.additions(chosen)) or 'nothing'}")
    if lacking := absent(fixed, offer.prompt):
        outcome.notes.append(f"fixed terms that are not in the prompt: {', '.join(lacking)}")
    return outcome


def absent(terms: Iterable[str], text: str) -> list[str]:
    return [term for term in terms if term not in text]
