"""Edit instructions in English or Chinese -> what the picture shows and what it shall show, by patterns.

Models that were not trained on instructions know only descriptions. The patterns are in instruction.json.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from .kept import QUOTED
from .syntax import whole_letters

CHINESE = re.compile("[\u4e00-\u9fff]")
ENDS = re.compile(r"^[\s']+|[\s'.!?\u3002\uff01\uff1f]+$")
FLAGS = re.IGNORECASE | re.DOTALL
FIELDS = ("old", "new", "what", "how", "where")  # the named groups that patterns may have
THINGS = ("old", "what", "where")  # of them, those that name something in the picture
LONGEST = 300  # characters; what is longer is a description
BARE = {"replace": ("old",), "attribute": ("what", "how")}  # what these kinds name without an article
BACKGROUND = ("background", "backdrop", "\u80cc\u666f")


class NotUnderstood(ValueError):
    """The patterns do not know what an instruction asks for; the message says what they would know."""


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
    """source: a description of the picture as it is; the change is then made in these words.

    What no pattern reads is a description of the target. Raises NotUnderstood for what is an instruction all
    the same, and for one whose words do not lead to a description.
    """
    instruction, source = tidy(instruction), tidy(source)
    language = Language.of(instruction)
    kind, fields = language.read(instruction)
    if kind is None:
        if language.is_instruction(instruction, with_source=bool(source)):
            raise language.refusal("unread", instruction=instruction)
        return Prompts(source or None, instruction, None)
    fields = language.without_pronouns(fields, source, instruction)
    if source and language.contradicts(kind, source, fields):
        raise language.refusal("unread", instruction=instruction)
    if source and (changed := language.changed(kind, source, fields)):
        return Prompts(source, changed, kind)
    before, after = language.rules["joined" if source else "alone"][kind]
    before, after = (text.format(text=source, **fields).strip() for text in (before, after))
    return Prompts(before, after, kind, derived=not source)


def tidy(text: str) -> str:
    """On one line, without quotation marks around all of it and without the mark that ends a sentence."""
    text = ENDS.sub("", " ".join(whole_letters(text).split()))
    if text.count('"') % 2 or re.fullmatch('"[^"]*"', text):
        text = ENDS.sub("", text.strip('"'))
    return text


@dataclass(frozen=True)
class Language:
    """The rules of one language, and what they do to a description."""

    rules: dict

    @staticmethod
    def of(text: str) -> Language:
        """By what stands outside of quotation marks, where there is something."""
        return _languages()["zh" if CHINESE.search(QUOTED.sub("", text) or text) else "en"]

    @cached_property
    def patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(kind, re.compile(self.expanded(text), FLAGS)) for kind, text in self.rules["patterns"]]

    def expanded(self, pattern: str, **more: str) -> str:
        """With the words that <name> stands for."""
        words = {**self.rules["words"], "determiner": self.rules["determiner"], **more}
        names = re.compile(f"<({'|'.join(words)})>")
        while names.search(pattern):
            pattern = names.sub(lambda match: words[match[1]], pattern)
        return pattern

    def read(self, instruction: str) -> tuple[str | None, dict[str, str]]:
        instruction = self._without_politeness(instruction)
        for kind, pattern in self.patterns if len(instruction) <= LONGEST else ():
            if match := pattern.fullmatch(instruction):
                parts = {name: text.strip() for name, text in match.groupdict().items() if text}
                if any(self.is_article(parts[name]) for name in THINGS if name in parts):
                    return None, {}
                parts |= {name: self.bare(parts[name]) for name in BARE.get(kind, ()) if name in parts}
                if "how" in parts:
                    parts["how"] = self.rules["doing"].get(parts["how"].lower(), parts["how"])
                return kind, dict.fromkeys(FIELDS, "") | parts
        return None, {}

    def is_instruction(self, text: str, with_source: bool) -> bool:
        """Whether a text that no pattern reads asks for something all the same.

        with_source: then words without an article are too few to describe a whole picture.
        """
        if len(text) > LONGEST:
            return False
        kinds = [*self.rules["commands"], *(self.rules["fragments"] if with_source else ())]
        forms = (text, self._without_politeness(text))
        return any(re.fullmatch(self.expanded(kind), form, FLAGS) for kind in kinds for form in forms)

    def refusal(self, why: str, **words: str) -> NotUnderstood:
        return NotUnderstood(self.rules["refusals"][why].format(**words))

    def without_pronouns(self, fields: dict[str, str], source: str, instruction: str) -> dict[str, str]:
        """The fields, with the words of the source for pronouns. Raises NotUnderstood where it has none."""

        def referent(pronoun: str) -> str:
            pronoun = self.rules["same_as"].get(pronoun.lower(), pronoun.lower())
            words = self.rules["pronouns"].get(pronoun)
            found = words and re.search(self._noun(words, escape=False), source, FLAGS)
            if not found:
                raise self.refusal("pronoun", word=pronoun, instruction=instruction)
            return found[0]

        known = {*self.rules["pronouns"], *self.rules["same_as"]}
        named = {name: referent(fields[name]) for name in THINGS if fields[name].lower() in known}
        for name in FIELDS:
            if name not in named and (left := re.fullmatch(self.rules["leftover"], fields[name], FLAGS)):
                referent(left["word"])
        return fields | named

    def bare(self, phrase: str) -> str:
        """Without the article."""
        return re.sub("^" + self.rules["determiner"], "", phrase, flags=FLAGS)

    def is_article(self, phrase: str) -> bool:
        """Whether it is that and no more: nothing is named."""
        return re.fullmatch(self.rules["articles"], phrase, FLAGS) is not None

    def changed(self, kind: str, text: str, fields: dict[str, str]) -> str | None:
        """The description after the change; None where it has no word of what changes and needs none.

        Raises NotUnderstood where it needs one, or where the word cannot be taken out.
        """
        if kind == "replace":
            return self._replaced(text, fields["old"], fields["new"]) or self._unnamed(fields["old"])
        if kind == "attribute":
            what = fields["what"]
            changed = self._with_attribute(text, what, fields["how"])
            return changed or self._may_be_added(text, what)
        if kind == "give":
            owner = self.bare(fields["where"])
            return self._given(text, owner, fields["new"]) or self._unnamed(owner)
        if kind == "remove":
            return self._removed(text, self.bare(fields["old"]))
        return None

    def contradicts(self, kind: str, text: str, fields: dict[str, str]) -> bool:
        """Whether the new words would stand beside old ones that say something else.

        So does a second place for what is there already, and a comparison with a look that is told.
        """
        if kind == "add":
            moved = re.fullmatch(self.rules["moved"], fields["new"], FLAGS)
            return bool(moved and re.search(self._noun(moved["thing"]), text, FLAGS))
        if kind == "attribute" and re.fullmatch(self.rules["comparative"], fields["how"], FLAGS):
            look = self.expanded(rf"(?:^|[\s,])(?!<determiner>)\w+\s+{self._noun(fields['what'])}")
            return bool(re.search(look, text, FLAGS))
        return False

    def _unnamed(self, what: str) -> None:
        raise self.refusal("unnamed", word=what)

    def _may_be_added(self, text: str, what: str) -> None:
        """Each picture has a sky, and each person hair; a background only where no place is named."""
        common = self.expanded("<part>|<own>")
        if not re.fullmatch(common, what, FLAGS):
            self._unnamed(what)
        if what.lower() in BACKGROUND and re.search(self.rules["place"], text, FLAGS):
            raise self.refusal("place", word=what)

    def _without_politeness(self, text: str) -> str:
        return re.sub("^" + self.rules["polite"], "", text, flags=FLAGS)

    def _noun(self, name: str, escape: bool = True) -> str:
        """A pattern for this word, or for one of several with | between them."""
        begins, ends = (self.rules["boundary"] if edge.isalnum() else "" for edge in (name[:1], name[-1:]))
        return f"{begins}(?:{re.escape(name) if escape else name}){ends}"

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

    def _given(self, text: str, owner: str, new: str) -> str | None:
        result, count = re.subn(
            f"{self._noun(owner)}(?!')", lambda match: f"{match[0]} with {new}", text, count=1, flags=FLAGS
        )
        return result if count else None

    def _removed(self, text: str, old: str) -> str | None:
        noun = self._noun(old)
        if not re.search(noun, text, FLAGS):
            return None
        for pattern in self.rules["removed"]:
            text = re.sub(self.expanded(pattern, old=noun), "", text, flags=FLAGS)
        text = tidy(text).strip(",\uff0c ")
        if not text or re.search(f"{noun}|{self.expanded(self.rules['dangling'])}", text, FLAGS):
            raise self.refusal("entangled", word=old)
        return text

    def _article(self, was: str, phrase: str) -> str:
        """The article `was`, as it has to be before a phrase."""
        choice = self.rules.get("article")
        if choice is None or not re.fullmatch(choice["indefinite"], was, FLAGS):
            return was
        return choice["then"] if phrase[:1].lower() in choice["before"] else choice["else"]


@cache
def _languages() -> dict[str, Language]:
    rules = json.loads(Path(__file__).with_name("instruction.json").read_text(encoding="utf-8"))
    return {name: Language(rules[name]) for name in ("en", "zh")}
