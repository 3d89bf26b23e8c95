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
OWN_CLASSES = {"light", "composition", "camera", "texture", "style", "mood"}
SHOWS = OWN_CLASSES | {"background", "abstract", "picture", "depiction", "phrase", "describing"}
LIKENED = {"hypernym", "material", "shared", "size"}  # named in a comparison only: film-like
ENDS_PHRASE = {"function", "relation", "pose"}


def describe(row: list[Token], asked_stems: set[str], strict: bool) -> list[Token]:
    """The answer's tokens; an unlisted word that may be added becomes an allowed one, of class describing.
    strict: the prompt asks for a radiograph or the like, where an attribute of the picture is a finding.
    """
    out = list(row)
    for i, token in enumerate(row):
        if token.kind == "word" and token.group in LIKENED and _compares(out, i):
            out[i] = replace(token, group="describing")
        if token.kind != "content" or token.name:
            continue
        if token.chinese:
            fits = not strict and token.group == "unknown" and _chinese_fits(out, i)
        else:
            known = base(token.text) in asked_stems
            fits = not known and (_says_nothing(token) or not strict and _english_fits(out, i))
        if fits:
            out[i] = replace(token, kind="word", group="describing")
    return out


@lru_cache(maxsize=4096)
def refused(word: str) -> bool:
    """Whether an English word or what it is made of names a thing, a finding, an act or a colour."""
    words, word = english(), word.lower()
    forms = {word, word.removesuffix("s")}
    for ending in words.lists["suffixes"]:
        if word.endswith(ending) and len(word) - len(ending) > 2:
            rest = word[: -len(ending)]
            forms |= {rest, rest + "y", rest + "e", rest[:-1] if rest[-1] == rest[-2] else rest}
    for prefix in words.lists["prefixes"]:
        if word.startswith(prefix) and len(word) - len(prefix) > 2:
            forms.add(word[len(prefix) :])
    return any(f in words.colours or base(f) in words.lists["refused"] for f in forms)


def _says_nothing(token: Token) -> bool:
    """A verb of showing or a noun for a quality: names no thing, wherever it stands."""
    word = token.text.lower()
    return word in english().lists["verbs"] or word in english().lists["abstractions"]


def _english_fits(row: list[Token], at: int) -> bool:
    word, lists = row[at].text.lower(), english().lists
    before = [t for t in row[max(0, at - 4) : at] if not _is_adverb(t)][-2:]
    last = before[-1] if before else None
    after = row[at + 1] if at + 1 < len(row) else None
    follows_noun = _shows(last) or last and last.text.lower() in lists["joins"]
    acts = word.endswith("s") or last and last.text.endswith("s")
    if acts and follows_noun and after and after.text.lower().split()[0] in lists["determiners"]:
        return True  # the light cradles the curve
    if _compares(row, at):
        return True
    if word in lists["parts"] and any(t.text.lower() in lists["definite"] for t in row[max(0, at - 3) : at]):
        return True
    listed = word in lists["attributes"]
    if not listed and (refused(word) or not word.isalpha() or THING.match(word)):
        return False
    if ADVERB.match(word) or QUALITY.match(word):
        return True
    if after and after.text.lower() == "of" and _of_light(row, at + 2):
        return True  # bands of brightness
    if not _may_describe(row[at]):
        return False
    phrase = _phrase_after(row, at)
    if any(t.kind == "content" and not _may_describe(t) or t.group == "hypernym" for t in phrase):
        return False
    if word.endswith("ing") and last and last.kind == "content":
        return False  # an act of the subject
    shown = [t for t in phrase if _shows(t)]
    if shown:  # a curve or an edge can be the subject's
        return listed or any(t.key not in lists["contours"] for t in shown)
    text = last.text.lower() if last else ""
    joined = text in lists["joins"] and len(before) > 1 and _shows(before[-2])
    if text in lists["links"] or text == "," or joined:
        return True
    on_picture = last is not None and last.kind == "word" and last.group in OWN_CLASSES
    return word.endswith(PARTICIPLE) and on_picture and text not in lists["determiners"]


def _compares(row: list[Token], at: int) -> bool:
    """wafer-thin, film-like grain: a comparison within an attribute of the picture."""
    near = row[at + 1 : at + 3]
    tail = near[-1] if near and near[0].key == "hyphen" else None
    if tail is None or tail.text.lower() not in english().lists["comparisons"]:
        return False
    return not any(t.kind == "content" or t.group == "hypernym" for t in _phrase_after(row, at + 2))


def _of_light(row: list[Token], at: int) -> bool:
    return any(t.kind == "word" and t.group == "light" for t in row[at : at + 1])


def _is_adverb(token: Token) -> bool:
    word = token.text.lower()
    return not token.chinese and bool(ADVERB.match(word)) or word in ("very", "more")


def _shows(token: Token | None) -> bool:
    return token is not None and token.kind == "word" and token.group in SHOWS


def _may_describe(token: Token) -> bool:
    """Whether an unlisted word has an attribute's form: -ful, -ish, a listed word with -y."""
    word = token.text.lower()
    if token.name or word in english().lists["attributes"]:
        return not token.name
    known_y = (
        word.endswith("y") and len(word) > 4 and bool(english_class(word[:-1]) or english_class(word[:-2]))
    )
    return not refused(word) and (known_y or bool(ADJECTIVE.match(word) or ADVERB.match(word)))


def _phrase_after(row: list[Token], at: int) -> list[Token]:
    """What follows up to a function word or a mark: the rest of a noun phrase."""
    found: list[Token] = []
    for token in row[at + 1 :]:
        if token.kind == "mark" and token.key not in ("hyphen", ","):
            break
        if token.kind in ("negation", "article", "quote", "number"):
            break
        joins = token.text.lower() in english().lists["joins"]
        if token.group in ENDS_PHRASE and not joins:
            break
        if token.kind == "mark" and token.key == "," or joins:
            if any(_shows(t) or t.kind == "content" and not _may_describe(t) for t in found):
                break
            continue
        found.append(token)
    return found


@lru_cache
def _soft_characters() -> frozenset[str]:
    """The characters that the allowed words of depiction, light and composition are made of."""
    words = chinese()
    own = OWN_CLASSES | {"depiction"}
    counts = Counter(c for w, group in words.classes.items() if group in own for c in set(w))
    common = {c for c, n in counts.items() if n >= 2}
    return frozenset(common - words.lists["refused"] | words.lists["soft"])


def _chinese_fits(row: list[Token], at: int) -> bool:
    lists, text = chinese().lists, row[at].text
    ends = range(len(text) + 1)
    if any(text[i:j] in lists["compounds"] for j in ends for i in range(j)):
        return False  # a word of its own, whatever its characters say
    if at and row[at - 1].text.endswith(tuple(lists["moves"])) and lists["refused"].isdisjoint(text):
        return len(text) < 4
    if len(text) == 2 and text[0] in lists["acts"] and text[1] in lists["complements"]:
        return True  # what light does: falls in, spreads over
    if len(text) > 4 or not set(text) <= (_soft_characters() if len(text) > 1 else lists["soft"]):
        return False
    last = row[at - 1] if at else None
    after = row[at + 1] if at + 1 < len(row) else None
    following = row[at + 2] if at + 2 < len(row) else None
    around = "".join(t.text for t in row[max(0, at - 1) : at + 2] if t.chinese)
    if any(word in around for word in lists["refused_words"]):
        return False
    attributive = after is not None and after.text == chinese().particles["of"]
    subject = following if attributive else after
    if subject and (subject.kind == "content" and subject.group != "unknown" or subject.group == "hypernym"):
        return False
    if text[-1] in lists["heads"]:
        return True
    if last and (last.kind in ("article", "number") or last.text[-1] in lists["existence"]):
        return attributive
    return True
