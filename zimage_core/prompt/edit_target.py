"""What an edited picture shall show: written by a language model, or by the patterns of instruction.py.

A language model that follows requests understands any instruction, but only together with a description of
the picture as it is. What it answers is checked; what cannot be used goes back to the patterns.
"""

from __future__ import annotations

import json
from pathlib import Path

from .answer import AnswerError, read_answer
from .enhancer import Write, WriterFailed
from .instruction import Language, NotUnderstood, Prompts, prompts_of, tidy
from .kept import missing
from .language import content_words, language_of
from .messages import Message

WRITTEN, GIVEN = "written", "given"  # kinds of Prompts beside those of the patterns
LEAST_KEPT = 0.5  # of the description's words that the instruction does not name
ROOM = 200  # characters that a target may have beyond twice the description

_SPEC = json.loads(Path(__file__).with_name("edit_target.json").read_text(encoding="utf-8"))


def edit_prompts(instruction: str, source: str, write: Write | None) -> tuple[Prompts, str]:
    """The prompts of an edit, and a line on who wrote the target.

    write: a language model that follows requests; None for the patterns alone. Raises NotUnderstood.
    """
    source, failed = " ".join(source.split()), ""
    if write and source and instruction.strip():
        try:
            target, note = written_target(instruction, source, write)
            return Prompts(source, target, WRITTEN), f"Target by the text encoder: {note}."
        except (WriterFailed, AnswerError) as error:
            failed = f"The text encoder's answer is not used: {error}."
    try:
        prompts = prompts_of(instruction, source)
    except NotUnderstood as error:
        hint = failed
        if write and not source:
            hint = (
                "With a description of the picture in source_prompt the text encoder reads other "
                "instructions, too."
            )
        raise NotUnderstood(" ".join(filter(None, (str(error), hint)))) from error
    return prompts, " ".join(filter(None, (failed, "Target by the patterns.")))


def written_target(instruction: str, source: str, write: Write) -> tuple[str, str]:
    """The target and a note of what was written and is lacking.

    Raises AnswerError for an answer that is no description of the edited picture, and what `write` raises.
    """
    draft = write(messages(instruction, source), 0)
    if not draft.ended:
        raise AnswerError("it was cut off")
    target = " ".join(read_answer(draft.text).split())
    if reason := unusable(target, instruction, source):
        raise AnswerError(reason)
    lacking = lost(target, instruction, source)
    return target, draft.note + (f"; not in it: {', '.join(lacking)}" if lacking else "")


def messages(instruction: str, source: str) -> list[Message]:
    """In the language of the description."""
    spec = _SPEC["zh" if language_of(source) == "zh" else "en"]
    asked = spec["asked"].format(source=source, instruction=instruction.strip())
    return [{"role": "system", "content": "\n".join(spec["task"])}, {"role": "user", "content": asked}]


def unusable(target: str, instruction: str, source: str) -> str | None:
    """Why an answer cannot be the source after the edit."""
    same, described = tidy(target).casefold(), _is_description(instruction)
    if same == tidy(source).casefold() != tidy(instruction).casefold():
        return "it changes nothing"
    if same == tidy(instruction).casefold() and not described:
        return "it repeats the instruction"
    if len(target) > 2 * len(source) + len(instruction) + ROOM:
        return "it is much longer than source_prompt"
    if (language_of(target) == "zh") != (language_of(source) == "zh"):
        return "it is in another language than source_prompt"
    words, named = content_words(target), content_words(instruction)
    may_go = described and len(named & words) >= LEAST_KEPT * len(named)
    rest = content_words(source) - named
    if not may_go and len(rest & words) < LEAST_KEPT * len(rest):
        return "it keeps too little of source_prompt"
    return None


def lost(target: str, instruction: str, source: str) -> list[str]:
    """Quoted texts and measures that the target lacks; what source and instruction both name may go."""
    both = {*missing(source, "")} & {*missing(instruction, "")}
    wanted = dict.fromkeys((*missing(source, target), *missing(instruction, target)))
    return [text for text in wanted if text not in both]


def _is_description(instruction: str) -> bool:
    language, text = Language.of(instruction), tidy(instruction)
    return language.read(text)[0] is None and not language.is_instruction(text, with_source=True)
