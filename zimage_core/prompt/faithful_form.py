"""Words that no list holds: what their form and place say.

An attribute of the light, the picture or the mood may be added; a thing, a finding, an act of the subject or
an attribute of it may not. The lists of refused words (by class) are in the JSON beside this file.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache

from .faithful_text import Token
from .faithful_words import base, chinese, english, english_class

ADVERB = re.compile(r"\w{4,}ly$")
ADJECTIVE = re.compile(r"\w{3,}(?:ish|ous|ive|ful|ic|ical|al|ary|ory|ant|ent|able|ible|esque|ing|ed)$")
QUALITY = re.compile(r"\w{3,}(?:ness|ity|ence|ance|ism)$")  # a noun, but of no thing
THING = re.compile(r"\w*(?:bed|seed|weed|reed|sled|spring|string|ling|wing|fish|fly|oness|board)s?$")
PARTICIPLE = ("ing", "ed")
PREFIXES = ("un", "over", "under", "dis", "semi", "half", "non")
DETERMINERS = frozenset("the a an its each every this these their all any some".split())
LINKS = frozenset(
    "is are was were looks look feels feel remains remain stays stay appears seems keeps".split()
)
JOINS = frozenset("and yet but or".split())
SHOWS = {"light", "composition", "camera", "background", "texture", "style", "mood", "abstract", "picture"}
SHOWS |= {"depiction", "phrase", "describing"}
ENDS_PHRASE = {"function", "relation", "pose"}
OF = "\u7684"
OWN_CLASSES = {"depiction", "light", "composition", "camera", "texture", "style", "mood"}
MOVES = ("\u4ee4\u4eba", "\u5f15\u4eba", "\u8ba9\u4eba")  # makes one ... (wonder)
EXISTENCE = (
    "\u6709\u662f\u7740\u89c1\u51fa\u4f34\u5e26\u542b\u9732\u73b0\u548c\u4e0e\u53ca"  # there is, shows, and
)


def describe(row: list[Token], asked_stems: set[str]) -> list[Token]:
    """The answer's tokens; an unlisted word that may be added becomes an allowed one, of class describing."""
    out = list(row)
    for i, token in enumerate(row):
        if token.kind != "content" or token.name:
            continue
        if token.chinese:
            fits = token.group == "unknown" and _chinese_fits(out, i)
        else:
            known = base(token.text) in asked_stems
            fits = not known and _english_fits(out, i)
        if fits:
            out[i] = replace(token, kind="word", group="describing")
    return out


@lru_cache(maxsize=4096)
def refused(word: str) -> bool:
    """Whether an English word or what it is made of names a thing, a finding, an act or a colour."""
    word = word.lower()
    forms = {word, word.removesuffix("s")}
    for ending in (
        "ly",
        "ily",
        "ally",
        "ness",
        "iness",
        "y",
        "ous",
        "al",
        "ic",
        "ish",
        "ed",
        "ing",
        "ment",
        "ive",
    ):
        if word.endswith(ending) and len(word) - len(ending) > 2:
            rest = word[: -len(ending)]
            forms |= {rest, rest + "y", rest + "e", rest[:-1] if rest[-1] == rest[-2] else rest}
    for prefix in PREFIXES:
        if word.startswith(prefix) and len(word) - len(prefix) > 2:
            forms.add(word[len(prefix) :])
    words = english()
    return any(f in words.colours or base(f) in words.refused for f in forms)


def _english_fits(row: list[Token], at: int) -> bool:
    word = row[at].text.lower()
    if refused(word) or not word.isalpha() or THING.match(word):
        return False
    if ADVERB.match(word):
        return True
    before = [t for t in row[max(0, at - 4) : at] if not _is_adverb(t)][-2:]
    last = before[-1] if before else None
    after = row[at + 1] if at + 1 < len(row) else None
    if QUALITY.match(word) or _sensed(row, at):
        return True
    follows_noun = _shows(last) or last and last.text.lower() in JOINS
    if word.endswith("s") and follows_noun and after and after.text.lower() in DETERMINERS:
        return True  # the light cradles the curve
    if after and after.text.lower() == "of" and _of_light(row, at + 2):
        return True  # bands of brightness
    known_y = word.endswith("y") and bool(english_class(word[:-1]) or english_class(word[:-2]))
    if not (ADJECTIVE.match(word) or known_y):
        return False
    phrase = _phrase_after(row, at)
    if any(t.kind == "content" and not _may_describe(t) or t.group == "hypernym" for t in phrase):
        return False
    if any(_shows(t) for t in phrase):
        return True
    text = last.text.lower() if last else ""
    if text in LINKS or text == "," or text in JOINS and len(before) > 1 and _shows(before[-2]):
        return True
    on_picture = last is not None and last.kind == "word" and last.group in OWN_CLASSES - {"depiction"}
    return word.endswith(PARTICIPLE) and on_picture and text not in DETERMINERS


def _of_light(row: list[Token], at: int) -> bool:
    return any(t.kind == "word" and t.group == "light" for t in row[at : at + 1])


def _is_adverb(token: Token) -> bool:
    return (
        not token.chinese and bool(ADVERB.match(token.text.lower())) or token.text.lower() in ("very", "more")
    )


def _shows(token: Token | None) -> bool:
    return token is not None and token.kind == "word" and token.group in SHOWS


def _may_describe(token: Token) -> bool:
    word = token.text.lower()
    return not token.name and not refused(word) and bool(ADJECTIVE.match(word) or ADVERB.match(word))


def _phrase_after(row: list[Token], at: int) -> list[Token]:
    """What follows up to a function word or a mark: the rest of a noun phrase."""
    found: list[Token] = []
    for token in row[at + 1 :]:
        if token.kind == "mark" and token.key not in ("hyphen", ","):
            break
        if token.kind in ("negation", "article", "quote", "number"):
            break
        if token.group in ENDS_PHRASE and token.text.lower() not in JOINS:
            break
        if token.kind == "mark" and token.key == "," or token.text.lower() in JOINS:
            if any(_shows(t) or t.kind == "content" and not _may_describe(t) for t in found):
                break
            continue
        found.append(token)
    return found


def _sensed(row: list[Token], at: int) -> bool:
    """A sense of ..., an air of ...: names a feeling."""
    near = [t.text.lower() for t in row[max(0, at - 4) : at]]
    return "of" in near and bool({"sense", "feeling", "air", "mood", "atmosphere", "impression"} & set(near))


@lru_cache
def _soft_characters() -> frozenset[str]:
    """The characters that the allowed words of depiction, light and composition are made of."""
    words = chinese()
    counts = Counter(c for w, group in words.classes.items() if group in OWN_CLASSES for c in set(w))
    own = {c for c, n in counts.items() if n >= 2 and c not in words.refused_characters}
    return frozenset(own | set(words.soft))


def _chinese_fits(row: list[Token], at: int) -> bool:
    words, text = chinese(), row[at].text
    if text in words.compounds:  # a word of its own, whatever its characters say
        return False
    if at and row[at - 1].text.endswith(MOVES) and words.refused_characters.isdisjoint(text):
        return len(text) < 4
    if len(text) > 4 or not set(text) <= (_soft_characters() if len(text) > 1 else set(words.soft)):
        return False
    last = row[at - 1] if at else None
    after = row[at + 1] if at + 1 < len(row) else None
    following = row[at + 2] if at + 2 < len(row) else None
    around = (
        (last.text if last and last.chinese else "") + text + (after.text if after and after.chinese else "")
    )
    if any(word in around for word in words.refused):
        return False
    subject = following if after and after.text == OF else after
    if subject and (subject.kind == "content" and subject.group != "unknown" or subject.group == "hypernym"):
        return False
    if text[-1] in words.heads:
        return True
    if last and (last.kind in ("article", "number") or last.text[-1] in EXISTENCE):
        return bool(after and after.text == OF)
    return True
