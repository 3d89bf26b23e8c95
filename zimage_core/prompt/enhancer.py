"""A short prompt -> the description that a language model makes of it, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .answer import AnswerError, read_answer
from .faithful import compare
from .messages import AUTO, Message, compose

ATTEMPTS = 3  # a faithful answer is asked for with so many seeds
MOST_TOLD = 5  # complaints about one answer
LARGEST_SEED = 2**64 - 1


class WriterFailed(RuntimeError):
    """Nothing was written; the message says why. Another seed does not help."""


@dataclass(frozen=True)
class Draft:
    """What a language model wrote; note says how much."""

    text: str
    note: str


@dataclass(frozen=True)
class Request:
    """fixed: terms that must come back as they are."""

    prompt: str
    template: str
    language: str = AUTO
    faithful: bool = False
    fixed: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Outcome:
    """text: None where no answer could be used. notes: what happened, a line each."""

    text: str | None = None
    notes: list[str] = field(default_factory=list)


Write = Callable[[list[Message], int], Draft]  # messages, seed; may raise WriterFailed


def terms(text: str) -> tuple[str, ...]:
    """The terms of a list with commas, English or Chinese."""
    return tuple(filter(None, (term.strip() for term in text.replace("\uff0c", ",").split(","))))


def enhance(request: Request, write: Write) -> Outcome:
    """Asks for an answer and, where it must be faithful and is not, again with the next seeds."""
    messages = compose(request.prompt, request.template, request.language, request.fixed)
    outcome = Outcome()
    for attempt in range(ATTEMPTS if request.faithful else 1):
        try:
            draft = write(messages, (request.seed + attempt) % (LARGEST_SEED + 1))
            outcome.notes.append(draft.note)
            answer = read_answer(draft.text)
        except WriterFailed as error:
            outcome.notes.append(str(error))
            break
        except AnswerError as error:
            outcome.notes.append(f"refused: {error}")
            continue
        complaints = _complaints(request, answer)
        outcome.notes += complaints
        if not (complaints and request.faithful):
            outcome.text = answer
            break
    return outcome


def _complaints(request: Request, answer: str) -> list[str]:
    """What a faithful answer would have kept or left out; an answer in another language than the prompt's
    cannot be compared and is not faithful. Only the fixed terms count in normal mode.
    """
    lost = [term for term in request.fixed if term not in answer]
    complaints = [f"lost: {', '.join(lost)}"] if lost else []
    if request.faithful:
        asked = "\n".join((request.prompt, *(term for term in request.fixed if term not in request.prompt)))
        found = compare(asked, answer).explain().splitlines()
        complaints += found[:MOST_TOLD]
        if len(found) > MOST_TOLD:
            complaints.append(f"and {len(found) - MOST_TOLD} more")
    return complaints
