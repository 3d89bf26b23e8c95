"""Edit instructions in English or Chinese -> what the picture shows and what it shall show.

Models that were not trained on instructions know only descriptions. The patterns are in instruction.json.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHINESE = re.compile("[\u4e00-\u9fff]")
ENDS = re.compile(r"^[\s\"']+|[\s\"'.!?\u3002\uff01\uff1f]+$")
FLAGS = re.IGNORECASE | re.DOTALL
FIELDS = ("old", "new", "what", "how", "where")  # the named groups that patterns may have
LONGEST = 300  # characters; what is longer is a description
BARE = {"replace": ("old",), "attribute": ("what", "how")}  # what these kinds name without an article


@dataclass(frozen=True)
class Prompts:
    """What an instruction says of the picture before and after.

    source: what the picture shows, None when it is not known. target: what it shall show.
    kind: the kind of instruction, None where the words were taken for a description of the target.
    derived: all that is known of the picture is what the instruction says of it.
    """

    source: str | None
    target: str
    kind: str | None
    derived: bool = False


def prompts_of(instruction: str, source: str = "") -> Prompts:
    """source: a description of the picture as it is; the change is then made in these words."""
    instruction, source = tidy(instruction), tidy(source)
    language = Language.of(instruction)
    kind, fields = language.read(instruction)
    if kind is None:
        return Prompts(source or None, instruction, None)
    if source and (changed := language.changed(kind, source, fields)):
        return Prompts(source, changed, kind)
    before, after = language.rules["joined" if source else "alone"][kind]
    before, after = (text.format(text=source, **fields) for text in (before, after))
    return Prompts(before, after, kind, derived=not source)


def tidy(text: str) -> str:
    return ENDS.sub("", " ".join(text.split()))


@dataclass(frozen=True)
class Language:
    """The rules of one language, and what they do to a description."""

    rules: dict

    @staticmethod
    def of(text: str) -> Language:
        return Language(_rules()["zh" if CHINESE.search(text) else "en"])

    def read(self, instruction: str) -> tuple[str | None, dict[str, str]]:
        instruction = re.sub("^" + self.rules["polite"], "", instruction, flags=FLAGS)
        for kind, pattern in self.rules["patterns"] if len(instruction) <= LONGEST else ():
            for name, words in self.rules["words"].items():
                pattern = pattern.replace(f"<{name}>", words)
            if match := re.fullmatch(pattern, instruction, FLAGS):
                parts = {name: text.strip() for name, text in match.groupdict().items() if text}
                parts |= {name: self.bare(parts[name]) for name in BARE.get(kind, ()) if name in parts}
                return kind, dict.fromkeys(FIELDS, "") | parts
        return None, {}

    def bare(self, phrase: str) -> str:
        """Without the article."""
        return re.sub("^" + self.rules["determiner"], "", phrase, flags=FLAGS)

    def changed(self, kind: str, text: str, fields: dict[str, str]) -> str | None:
        """The description after the change; None where it has no word of what changes."""
        if kind == "replace":
            return self._replaced(text, fields["old"], fields["new"])
        if kind == "attribute":
            return self._with_attribute(text, fields["what"], fields["how"])
        if kind == "remove":
            return self._removed(text, self.bare(fields["old"]))
        return None

    def _noun(self, name: str) -> str:
        return self.rules["boundary"] + re.escape(name) + self.rules["boundary"]

    def _replaced(self, text: str, old: str, new: str) -> str | None:
        def put(match: re.Match) -> str:
            if match["article"] is None:
                return self.bare(new)
            return new if self.bare(new) != new else self._article(match["article"], new) + new

        pattern = f"(?P<article>{self.rules['boundary']}{self.rules['determiner']})?{self._noun(old)}"
        result, count = re.subn(pattern, put, text, flags=FLAGS)
        return result if count else None

    def _with_attribute(self, text: str, what: str, how: str) -> str | None:
        rules, noun = self.rules, self._noun(what)
        colour = rules["words"]["colour"]
        article = f"(?P<article>{rules['boundary']}{rules['determiner']})"
        looks = [f"{article}?{rules['boundary']}{colour}{rules['gap']}"]
        if re.fullmatch(rules["words"]["part"], what, FLAGS):  # each picture has one, with one look
            looks.append(rf"{article}\w+(?:\s+\w+)?{rules['gap']}")
        looks.append(f"{article}?")

        def put(match: re.Match) -> str:
            before = self._article(match["article"], how) if match["article"] else ""
            return before + how + rules["space"] + match["noun"]

        predicate = f"({noun}{rules['is']}){colour}"
        said, count = re.subn(predicate, lambda match: match[1] + how, text, flags=FLAGS)
        for look in looks:
            if not count:
                said, count = re.subn(f"{look}(?P<noun>{noun})", put, text, flags=FLAGS)
        return said if count else None

    def _removed(self, text: str, old: str) -> str | None:
        pattern = f"{self.rules['removed_with']}(?:{self.rules['determiner']})?{self._noun(old)}"
        result, count = re.subn(pattern, "", text, flags=FLAGS)
        return tidy(result).strip(",\uff0c ") or None if count else None

    def _article(self, was: str, phrase: str) -> str:
        """The article `was`, as it has to be before a phrase."""
        choice = self.rules.get("article")
        if choice is None or not re.fullmatch(choice["indefinite"], was, FLAGS):
            return was
        return choice["then"] if phrase[:1].lower() in choice["before"] else choice["else"]


@cache
def _rules() -> dict:
    return json.loads(Path(__file__).with_name("instruction.json").read_text(encoding="utf-8"))
