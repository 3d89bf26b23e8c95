"""Faithful mode of the prompt enhancer: light and composition may be added, no finding, object, number or
name.

`compare` reads the prompt and the writer's answer (English or Chinese, both the same) and says what was lost
and what was added. It compares words; the word lists beside this file say what a writer may add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from .faithful_form import describe
from .faithful_text import Token, chinese_words, take_quotes, tokens
from .faithful_words import base, chinese, either, english

# Classes of words that the writer may leave out or replace: they say how to show, not what.
DROPPABLE = {"function", "picture", "camera", "apparatus", "phrase", "mood"}
# What may be added to the scene (a grey background, light from the left) but not to the subject.
SCENE_ONLY = {"colour", "side", "size", "material", "shared"}
BREAKS = {"function", "picture", "depiction", "pose", "relation"}
LISTED = {"light", "texture", "size", "shared", "mood", "style", "describing"}  # go on after a comma
PICTURE = {"light", "composition", "camera", "mood", "style"}
PARTS = {"hypernym", "material", "texture", "pose"}  # these speak of the subject


@dataclass(frozen=True)
class Difference:
    """kind: quote, fixed term, number, colour, side, negation, count, name or word."""

    kind: str
    text: str


@dataclass
class Report:
    lost: list[Difference] = field(default_factory=list)
    added: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.lost and not self.added

    def explain(self) -> str:
        """One sentence per thing."""
        lost = [f"The {d.kind} \u201c{d.text}\u201d of the prompt was lost or changed." for d in self.lost]
        added = [f"The {d.kind} \u201c{d.text}\u201d was added; it is not in the prompt." for d in self.added]
        return "\n".join(lost + added)


def compare(prompt: str, answer: str, fixed: Sequence[str] = ()) -> Report:
    """What an answer lost from the prompt and what it added. fixed: terms kept letter by letter."""
    asked, words, scene = _read_prompt(prompt)
    given = tokens(answer, words)
    given = describe(given, {base(t.text) for t in asked}, _is_imaging(asked))
    report = Report()
    for term in fixed:
        if _holds(prompt, term) and not _holds(answer, term):
            report.lost.append(Difference("fixed term", term))
    _quotes(prompt, answer, asked, report)
    for kind in ("number", "colour", "side", "size", "material", "shared"):
        _attributes(kind, asked, given, scene, report)
    _directions(asked, given, report)
    _negations(asked, given, report)
    _counts(asked, given, report)
    _another(asked, given, report)
    _states(asked, given, report)
    _content(asked, given, scene, report)
    report.lost = list(dict.fromkeys(report.lost))
    report.added = list(dict.fromkeys(report.added))
    return report


def _holds(text: str, term: str) -> bool:
    before = r"(?<![A-Za-z0-9])" if term[:1].isascii() else ""
    after = r"(?![A-Za-z0-9])" if term[-1:].isascii() else ""
    return bool(re.search(before + re.escape(term) + after, text))


def _quotes(prompt: str, answer: str, asked: list[Token], report: Report) -> None:
    before, after = take_quotes(prompt)[1], take_quotes(answer)[1]
    report.lost += [Difference("quoted text", q) for q in before if q not in after]
    cues = either("text_cues")
    cued = any(t.text.lower() in cues for t in asked)
    for quote in after:
        named = all(t.name for t in tokens("x " + quote)[1:] if t.kind != "mark")
        if quote not in before and not ((cued or named) and quote.strip() and _holds(prompt, quote)):
            report.added.append(Difference("quoted text", quote))


class _Scene:
    """Knows which words name the surroundings and not the subject of this prompt."""

    def __init__(self, asked: list[Token]):
        used = {t.key for t in asked if t.kind == "word" and t.key not in either("backdrops")}
        runs = [t.text for t in asked if t.kind == "content" and t.chinese]
        used |= {w for w in chinese().lists["scene"] if any(run.endswith(w) for run in runs)}
        self.words = either("scene") - used

    def licences(self, row: list[Token], at: int) -> bool:
        """True where the attribute at this place describes the surroundings: its noun is one of them, or it
        closes a phrase about them (light from the left).
        """
        near = row[at + 1 : at + 8]
        for token, after in zip(near, [*near[1:], None], strict=True):
            if token.kind in ("content", "quote", "number"):
                return False
            listed = token.key == "," and after and after.group in LISTED
            if token.kind == "mark" and token.key != "hyphen" and not listed:
                break
            if self._is_scene(token) or row[at].kind == "side" and token.group == "light" and token.chinese:
                return True
            of_frame = row[at].kind == "side" and token.text.lower() in ("of", "the")
            if token.group in BREAKS and not of_frame and token.text not in either("particles"):
                break
        for token in reversed(row[max(0, at - 8) : at]):
            if token.text.lower() in ("on", "against"):
                if row[at].kind == "side":
                    continue  # shadows on the right
                return row[at].kind == "colour"
            if token.kind in ("content", "quote") or token.kind == "mark" and token.key != "hyphen":
                return False
            if self._is_scene(token):
                return True
        return False

    def _is_scene(self, token: Token) -> bool:
        return (
            token.key in self.words
            or token.group == "phrase"
            and not self.words.isdisjoint(token.key.split())
        )


@lru_cache(maxsize=64)
def _read_prompt(prompt: str) -> tuple[list[Token], frozenset[str], _Scene]:
    asked = tokens(prompt)
    return asked, chinese_words(asked), _Scene(asked)


def _keys(token: Token) -> set[str]:
    return set(token.text) if token.chinese else {base(token.text)}


def _heads(row: list[Token], at: int) -> set[str]:
    """The content that an attribute describes: what follows it in its phrase, else what it closes."""
    found: set[str] = set()
    joined = False
    last = row[at - 1] if at else None
    if last and row[at].kind == "number" and " " in row[at].key:
        if last.kind == "content" and last.chinese:  # the depth of the water 2500 m
            return _keys(last)
        if last.text.lower() == "at":  # a condition, not an attribute
            return found
    for token in row[at + 1 :]:
        if token.kind == "content":
            found |= _keys(token)
        elif (
            token.key in ("hyphen", chinese().particles["of"])
            or token.kind in ("colour", "number", "side", "article", "one")
            and not found
        ):
            continue
        elif token.kind == "word" and token.group not in BREAKS and not found:
            joined = True
        elif row[at].kind == "number" and not found and not joined and token.text.lower() == "of":
            continue
        else:
            break
    if found and last and last.kind == "content" and last.chinese:
        found |= _keys(last)  # mint green, lid open
    if found or joined:
        return found
    for token in reversed(row[:at]):
        if token.kind == "content":
            found |= _keys(token)
        elif found or token.kind == "mark" and token.key != "hyphen":
            break
        elif (
            token.text.lower() not in either("attributive")
            and token.group not in ("picture", "depiction", "pose")
            and not token.chinese
        ):
            break
    return found


def _of_kind(kind: str, row: list[Token]) -> list[int]:
    return [i for i, t in enumerate(row) if t.kind == kind or t.kind == "word" and t.group == kind]


def _attributes(kind: str, asked: list[Token], given: list[Token], scene: _Scene, report: Report) -> None:
    """Numbers, colours, sides, sizes and materials stay with what they describe; none is added."""

    def fits(a: tuple[Token, set[str]], b: tuple[Token, set[str]]) -> bool:
        if a[0].key != b[0].key or not a[1] or not b[1]:
            return a[0].key == b[0].key
        return len(a[1] & b[1]) >= max(1, *(len(heads & b[1]) for _, heads in before))

    before = [(asked[i], _heads(asked, i)) for i in _of_kind(kind, asked)]
    after = [(given[i], _heads(given, i), i) for i in _of_kind(kind, given)]
    kind_name = kind if kind in ("number", "colour", "side") else "word"
    for b in before:
        if not any(fits(b, a[:2]) for a in after):
            report.lost.append(Difference(kind_name, b[0].text))
    own = []
    for a in after:
        if any(fits(b, a[:2]) for b in before):
            own.append(a)
        elif (
            kind == "number"
            and a[0].text.lower() != "both"
            or not (
                scene.licences(given, a[2])
                or _the_material(given, a[2])
                or a[0].text.lower() in ("small", "tiny", "large", "big", "little")
                and _in_frame(given, a[2])
                or kind in ("size", "shared")
                and _clause_on_picture(given, a[2])
            )
        ):
            report.added.append(Difference(kind_name, a[0].text))
    alike = [heads for _, heads in before]
    unclear = {t.key for t, heads in before if not heads or kind == "side" and alike.count(heads) > 1}
    order_before = list(dict.fromkeys(t.key for t, _ in before if t.key in unclear))
    order_after = [
        k for k in dict.fromkeys(t.key for t, heads, _ in own if not heads or kind == "side") if k in unclear
    ]
    order_before = [k for k in order_before if k in order_after]
    if order_before != order_after:
        report.lost.append(Difference(f"order of the {kind}s", ", ".join(order_before)))


def _directions(asked: list[Token], given: list[Token], report: Report) -> None:
    """Chinese: upper, lower, inner, outer right before a word of the prompt stays what it is."""

    def pairs(row: list[Token]) -> list[tuple[str, str]]:
        close = zip(row, row[1:], strict=False)
        joined = [
            a.text + b.text[0] for a, b in close if len(a.text) == 1 and a.chinese and b.kind == "content"
        ]
        inside = [
            t.text[i : i + 2]
            for t in row
            if t.kind == "content" and t.chinese
            for i in range(len(t.text) - 1)
        ]
        return [(p[0], p[1]) for p in joined + inside if p[0] in either("directions")]

    before, after = pairs(asked), pairs(given)
    for direction, noun in before:
        if direction in chinese().opposites and (direction, noun) not in after:
            report.lost.append(Difference("side", direction + noun))
    for direction, noun in after:
        if (direction, noun) not in before and any(named == noun for _, named in before):
            report.added.append(Difference("side", direction + noun))


def _scopes(row: list[Token], wide: bool) -> Iterator[tuple[int, set[int]]]:
    """Each negation and the places of what it negates: to a preposition, or (wide) to the clause's end."""
    for i, token in enumerate(row):
        if token.kind != "negation":
            continue
        found: set[int] = set()
        if token.text.lower() == "free" and i > 1 and row[i - 1].key == "hyphen":
            yield i, {i - 2}
            continue
        if i + 2 < len(row) and row[i + 1].key == "hyphen":
            yield i, {i + 2}
            continue
        for j in range(i + 1, len(row)):
            t = row[j]
            if t.kind == "mark" and t.key not in ("hyphen", "/", chinese().particles["list"]):
                later = next(
                    (
                        x.text.lower()
                        for x in row[j + 1 :]
                        if x.kind == "mark" and x.key == "," or x.text.lower() in ("or", "nor")
                    ),
                    "",
                )
                if t.key != "," or later not in ("or", "nor"):
                    break
            elif t.text.lower() in ("and", "but", "with", "while") or t.kind == "negation":
                break
            elif t.group in ("function", "relation") and found and not wide and t.key not in ("or", "nor"):
                if not t.chinese or t.text not in either("alternatives"):
                    break
            elif t.kind in ("content", "quote") or t.kind == "word" and t.group not in BREAKS:
                found.add(j)
        if not found:  # no sprinkles: a verb's form names the thing
            near = range(i + 1, min(i + 3, len(row)))
            found = {j for j in near if row[j].group in ("depiction", "picture")}
        determines = token.text.lower() in either("determines") and found
        if not determines and not any(row[j].kind in ("content", "quote") for j in found):
            for j in range(i - 1, -1, -1):
                if row[j].kind == "mark" and row[j].key != "hyphen":
                    break
                if row[j].kind in ("content", "quote"):
                    found.add(j)
        yield i, found


def _negatable(token: Token) -> bool:
    """Whether it names a blemish of the picture (glare, noise) or a quality of one."""
    return token.key in either("negatable") or token.group in (
        "light",
        "mood",
        "texture",
    )


def _unhindering(row: list[Token], at: int) -> bool:
    """Whether the negation at this place is like "without hiding the needle": it denies no needle."""
    after = row[at + 1] if at + 1 < len(row) else None
    if after is None or after.key not in either("unhindering"):
        return False
    if after.chinese:
        return row[at].text == chinese().particles["not"]
    plain = after.text.lower() in ("unnecessary", "superfluous", "distracting")
    return plain or row[at].text.lower() in ("without", "not") and after.text.lower().endswith("ing")


def _negations(asked: list[Token], given: list[Token], report: Report) -> None:
    def keys(row: list[Token], places: Iterable[int]) -> set[str]:
        return {k for j in places if row[j].kind in ("content", "quote") for k in _names(row[j])}

    def told(row: list[Token], places: Iterable[int]) -> set[str]:
        """With the allowed words and colours: without text, no blue veil."""
        described = {
            row[j].key
            for j in places
            if row[j].kind in ("word", "colour") and row[j].group not in BREAKS - {"depiction", "picture"}
        }
        return keys(row, places) | described

    core = [(i, places) for i, places in _scopes(asked, False)]
    wide = {j for _, places in _scopes(asked, True) for j in places}
    core_places = {j for _, places in core for j in places}
    affirmed = keys(asked, set(range(len(asked))) - wide - core_places)
    negated = keys(asked, core_places) - affirmed
    given_wide = {j for i, places in _scopes(given, True) if not _unhindering(given, i) for j in places}
    given_core = [(i, places) for i, places in _scopes(given, False) if not _unhindering(given, i)]
    denied = keys(given, given_wide | {j for _, places in given_core for j in places})
    for i, places in core:
        missing = keys(asked, places) - affirmed - denied
        plain = not keys(asked, places) and not told(asked, places) <= told(given, given_wide)
        if missing or plain or not given_core:
            report.lost.append(Difference("negation", _phrase(asked, i, places)))
    outside = keys(given, set(range(len(given))) - given_wide)
    if negated & outside:
        report.lost.append(Difference("negation", ", ".join(sorted(negated & outside))))
    allowed = told(asked, wide | core_places)
    negatable = either("negatable")
    for i, places in given_core:
        inside = told(given, places)
        harmless = (
            not keys(given, places)
            and places
            and all(_negatable(given[j]) for j in places)
            and any(given[j].key in negatable for j in places)
        )
        if not (inside and inside <= allowed) and not harmless:
            report.added.append(Difference("negation", _phrase(given, i, places)))


def _names(token: Token) -> set[str]:
    if token.chinese and len(token.text) > 1:
        return {token.text[i : i + 2] for i in range(len(token.text) - 1)}
    return {token.text} if token.chinese or token.kind == "quote" else {base(token.text)}


def _phrase(row: list[Token], at: int, places: set[int]) -> str:
    join = "" if row[at].chinese else " "
    return join.join(row[j].text for j in sorted({at, *places}))


def _plural(word: str) -> bool:
    lower = word.lower()
    regular = lower.endswith("s") and not lower.endswith(("ss", "us", "is"))
    return regular or lower in english().irregular and english().irregular[lower] != lower


def _names_a_thing(token: Token) -> bool:
    return not token.chinese and (token.kind == "content" or token.group == "hypernym")


def _counts(asked: list[Token], given: list[Token], report: Report) -> None:
    """One stays one and many stay many, also without a number."""

    def noun(row: list[Token], at: int) -> Token | None:
        last = None
        for token in row[at + 1 :]:
            if _names_a_thing(token):
                last = token
            elif last or token.kind == "mark" and token.key != "hyphen" or token.group in BREAKS:
                break
        return last

    def forms(row: list[Token]) -> dict[str, set[bool]]:
        found: dict[str, set[bool]] = {}
        for t in row:
            if _names_a_thing(t):
                found.setdefault(base(t.text), set()).add(_plural(t.text))
        return found

    before = forms(asked)
    for one, shapes, report_list in ((asked, forms(given), report.added), (given, before, report.lost)):
        for i, token in enumerate(one):
            head = noun(one, i) if token.kind in ("article", "one") and not token.chinese else None
            key = base(head.text) if head else ""
            many = shapes.get(key, set())
            if head and not _plural(head.text) and True in many and before.get(key) != many | {False}:
                report_list.append(Difference("count", f"{token.text} {head.text}"))


def _another(asked: list[Token], given: list[Token], report: Report) -> None:
    """Beside it stands a nurse, after the nurse of the prompt: a second one."""
    for i, token in enumerate(given[:-1]):
        thing = given[i + 1]
        if token.kind not in ("article", "one") or thing.kind != "content":
            continue
        told = any(t.kind == "content" and t.key.endswith(thing.key) for t in given[:i])
        if told and sum(t.kind == "content" and thing.key in t.key for t in asked) < 2:
            report.added.append(Difference("count", token.text + " " * (not thing.chinese) + thing.text))


def _states(asked: list[Token], given: list[Token], report: Report) -> None:
    """The cork still in, the lights off: a word of place that closes a phrase says how the thing is."""

    def closing(row: list[Token]) -> list[tuple[str, Token]]:
        after = [*(t.key for t in row[1:]), "."]
        before = ["", *(t.key for t in row)]
        ends = [key in (",", ".", ";", "and") for key in after]
        rows = zip(before, row, ends, strict=False)
        return [(key, t) for key, t, end in rows if end and t.text.lower() in either("states")]

    pairs = {(a.key, b.text.lower()) for a, b in zip(given, given[1:], strict=False)}
    kept = {token.text.lower() for _, token in closing(given)}
    for key, token in closing(asked):
        if token.text.lower() not in kept and (key, token.text.lower()) not in pairs:
            report.lost.append(Difference("word", token.text))


def _content(asked: list[Token], given: list[Token], scene: _Scene, report: Report) -> None:
    asked_text = {t.text for t in asked}
    asked_stems = {base(t.text) for t in asked}
    quoted = [t.text for t in given if t.kind == "quote"]
    given_text = {t.text for t in given} | {w for q in quoted for w in re.findall(r"[\w-]+", q)}
    given_stems = {base(t) for t in given_text}
    given_chinese = "\n".join(["".join(t.text if t.chinese else "\n" for t in given), *quoted])
    for token in asked:
        if token.kind == "content" and token.chinese:
            if not _kept(token.text, given_chinese):
                report.lost.append(Difference("word", token.text))
        elif token.kind == "content" and token.name:
            if token.text not in given_text:
                report.lost.append(Difference("name", token.text))
        elif token.kind == "content":
            if base(token.text) not in given_stems:
                report.lost.append(Difference("word", token.text))
        elif token.group == "phrase" and token.key.replace(" ", "_") in either("kept"):
            if all(t.key != token.key for t in given):
                report.lost.append(Difference("word", token.text))
        elif token.kind == "word" and token.group not in DROPPABLE | SCENE_ONLY:
            if token.key not in given_stems and token.key not in given_chinese:
                report.lost.append(Difference("word", token.text))
    read_as_finding = either("ambiguous")
    strict = _is_imaging(asked)
    unknown = ""
    for i, token in enumerate([*given, Token("mark", "", "")]):
        if token.kind == "content" and token.chinese and token.group == "unknown":
            unknown += token.text
            continue
        if unknown:
            report.added.append(Difference("word", unknown))
            unknown = ""
        if token.kind == "content" and not token.chinese:
            mixed = any(c.isupper() for c in token.text[1:]) or any(c.isdigit() for c in token.text)
            known = token.text in asked_text if mixed else base(token.text) in asked_stems
            if not known:
                report.added.append(Difference("name" if token.name else "word", token.text))
        elif (
            token.kind == "word" and strict and token.key in read_as_finding and token.text not in asked_text
        ):
            report.added.append(Difference("word", token.text))
        elif (
            token.kind == "word" and token.group in ("hypernym", "apparatus") and token.key not in asked_stems
        ):
            if not _refers(given, i, asked):
                report.added.append(Difference("word", token.text))


def _is_imaging(asked: list[Token]) -> bool:
    """Whether the prompt asks for a radiograph, a scan or the like."""
    names = either("imaging")
    return any(t.text.lower() in names for t in asked) or any(
        word in t.text for t in asked if t.chinese for word in chinese().lists["imaging"]
    )


def _kept(run: str, text: str) -> bool:
    """Whether a run of Chinese is in the text, whole or with a short word set into it."""
    cuts = (re.escape(run[:i]) + ".{0,4}" + re.escape(run[i:]) for i in range(2, len(run) - 1))
    return run in text or any(re.search(cut, text) for cut in cuts)


def _the_material(row: list[Token], at: int) -> bool:
    """the glass, the metal: speaks of the subject's own material, and of no other thing."""
    after = row[at + 1] if at + 1 < len(row) else None
    alone = after is None or after.kind == "mark" and after.key != "hyphen" or after.group in BREAKS
    return row[at].group == "material" and at > 0 and row[at - 1].text.lower() == "the" and alone


def _in_frame(row: list[Token], at: int) -> bool:
    """small in the lower part of the frame: a place in the composition, not an attribute of the subject."""
    if at + 1 == len(row) or row[at + 1].text.lower() not in ("in", "within"):
        return False
    for token in row[at + 2 : at + 9]:
        if not either("frame").isdisjoint(token.text.lower().split()):
            return True
        if token.kind in ("content", "quote") or token.kind == "mark":
            return False
    return False


def _clause_on_picture(row: list[Token], at: int) -> bool:
    """Whether the clause around this place speaks of light, composition or mood and of nothing else."""
    ends = [
        i
        for i, t in enumerate(row)
        if t.kind == "mark" and t.key not in ("hyphen", "/", chinese().particles["list"])
    ]
    start = max((i for i in ends if i < at), default=-1) + 1
    clause = row[start : min((i for i in ends if i > at), default=len(row))]
    if any(t.kind in ("content", "quote") or t.group in PARTS or t.key in either("surfaces") for t in clause):
        return False
    return any(t.group in PICTURE for t in clause)


def _refers(given: list[Token], at: int, asked: list[Token]) -> bool:
    """Whether a general noun (the animal, the liquid) speaks of what the prompt has, and adds nothing."""
    before = [t.text.lower() for t in given[max(0, at - 3) : at]]
    if given[at].group == "apparatus" and not either("optics").isdisjoint(before):
        return True
    if not given[at].chinese:
        kinds = english().kinds.get(given[at].key)
        meant = kinds is None or any(base(t.text) in kinds for t in asked)
        return meant and not either("definite").isdisjoint(before)
    if given[at].text[-1] in chinese().lists["body"]:
        return any(given[at].text[0] in t.text for t in asked)
    last = given[at - 1] if at else None
    return (
        last is None or last.kind not in ("article", "number") and last.text not in chinese().lists["adding"]
    )
