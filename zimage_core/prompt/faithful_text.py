"""Text -> tokens, English and Chinese in one stream: quotes, numbers with units, names, colours, sides,
negations, allowed words, and what remains: content.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from .faithful_words import base, chinese, either, english, english_class

# Opening and closing marks: straight and curly double, German, guillemets, corner brackets, book title marks.
PAIRS = (
    ('"', '"'),
    ("\u201c", "\u201d"),
    ("\u201e", "\u201c"),
    ("\u00ab", "\u00bb"),
    ("\u300c", "\u300d"),
    ("\u300e", "\u300f"),
    ("\u300a", "\u300b"),
    ("\uff02", "\uff02"),
    ("`", "`"),
)
INNER = r"[^'\u2018\u2019\n]*"  # an apostrophe within a word closes nothing
SINGLE = rf"(?<!\w)['\u2018](?=\S)({INNER}(?:(?<=\w)['\u2019](?=\w){INNER})*)(?<=\S)['\u2019](?!\w)"
QUOTED = re.compile(
    "|".join(f"{re.escape(a)}([^{re.escape(a + b)}]*){re.escape(b)}" for a, b in PAIRS) + "|" + SINGLE
)
LONGEST = 12  # characters of a word from the lists or the prompt
QUOTE_MARK = "\ue000"  # private use: stands for the n-th quote while the rest is read
SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
VULGAR = re.compile("([\u00bc-\u00be\u2150-\u215e])")
CJK = "\u3400-\u4dbf\u4e00-\u9fff"
FIRST_WORD = re.compile("[A-Za-z]+")
ENDS_IN_WORD = re.compile("[A-Za-z0-9-]| (?:left|right)\\b")  # at the bottom right is another place
CJK_RUN = re.compile(f"[{CJK}]+")
DASH = re.compile("[\u2010-\u2015\u2212\ufe63\uff0d]")


@dataclass(frozen=True)
class Token:
    """kind: word (allowed), content, number, article, one, colour, side, negation, quote or mark. key: what
    is compared. group: the class of an allowed word. name: kept letter by letter. chinese: of a Chinese run.
    """

    kind: str
    text: str
    key: str
    group: str = ""
    name: bool = False
    chinese: bool = False


def normalise(text: str) -> str:
    """One form for widths, dashes, degree and micro signs; superscripts become ^2."""
    text = SUPERSCRIPT.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[0]), text)
    text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[1]).replace("\u2044", "/"), text)
    text = text.replace("\u00d7", "x").replace("\u2019", "'")
    return DASH.sub("-", unicodedata.normalize("NFKC", text))


def take_quotes(text: str) -> tuple[str, list[str]]:
    """The text with a mark for each quotation, and the quotations, verbatim."""
    quotes: list[str] = []

    def keep(match: re.Match) -> str:
        quotes.append(next(g for g in match.groups() if g is not None))
        return f" {QUOTE_MARK} "

    return QUOTED.sub(keep, text), quotes


def _number_words(text: str) -> Fraction | None:
    """Value of English number words such as "two hundred and five" or "three quarters"."""
    table = english().numbers
    total, group = Fraction(0), None
    for word in re.split(r"[\s-]+", text.lower()):
        if word in ("and", "a"):
            continue
        value = Fraction(table[word])
        if value < 1:
            group = value if group is None else group * value
        elif value >= 100:
            group = (1 if group is None else group) * value
            if value > 100:
                total, group = total + group, Fraction(0)
        else:
            group = value if group is None else group + value
    return total + (group or 0)


def _chinese_value(text: str) -> Fraction | None:
    """Value of a Chinese or mixed numeral; None where it is none."""
    table, particles = chinese().numbers, chinese().particles
    share, point = particles["share"], particles["point"]
    if text in table:
        return Fraction(table[text])
    if share in text:
        below, above = (_chinese_value(part) for part in text.split(share, 1))
        return above / below if below and above is not None else None
    if point in text:
        whole, decimals = text.split(point, 1)
        value = _chinese_value(whole)
        return None if value is None else value + Fraction("0." + "".join(table[c] for c in decimals))
    parts = re.findall(r"\d+(?:\.\d+)?|.", text)
    values = [
        Fraction(p) if p[0] in "0123456789" else Fraction(table[p]) if p in table else None for p in parts
    ]
    if None in values:
        return None
    if len(values) > 1 and all(v < 10 and v == int(v) for v in values):
        return Fraction("".join(str(v) for v in values))  # year style: digit by digit
    total, section, digit = Fraction(0), Fraction(0), None
    for part, value in zip(parts, values, strict=True):
        if part[0] in "0123456789" or value in range(10):
            digit = value
        elif value < 1:
            section, digit = section + (digit or 0) + value, None
        elif value < 10000:
            section, digit = section + (1 if digit is None else digit) * value, None
        else:
            total, section, digit = total + (section + (digit or 0) or 1) * value, Fraction(0), None
    return total + section + (digit or 0)


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


@dataclass(frozen=True)
class _Patterns:
    digits: re.Pattern
    number_words: re.Pattern
    sign: re.Pattern
    unit: re.Pattern
    word: re.Pattern
    numeral: re.Pattern


@lru_cache
def _patterns() -> _Patterns:
    en, zh = english(), chinese()
    latin = rf"(?:{_alternatives(en.units)})(?![A-Za-z0-9])"
    unit = rf"(?:{latin}|{_alternatives(u for u in zh.units if not u.isascii() and u[0] > CJK[0])})"
    several = rf"(?:{_alternatives(en.numbers)})(?![A-Za-z])"
    numerals = "".join(c for c in zh.numbers if len(c) == 1)
    fixed = _alternatives(w for w in zh.numbers if len(w) > 1)
    digit = rf"[{numerals}\d]"
    per, point, share = (zh.particles[name] for name in ("per", "point", "share"))
    return _Patterns(
        digits=re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.:/]\d+)*"),
        number_words=re.compile(rf"{several}(?:(?:-|\s+|\s+and\s+(?:a\s+)?)(?:{several}))*", re.IGNORECASE),
        sign=re.compile(rf"(?:{_alternatives(en.signs)})\s*|{_alternatives(zh.signs)}", re.IGNORECASE),
        unit=re.compile(rf"(?:\s|-)?({unit})(?:\s*(?:/|per\s|{per})\s*({unit}))?|\s*([%x])(?![A-Za-z0-9])"),
        word=re.compile(r"[^\W\d_][^\W_]*(?:(?:[&'./+_-]|&amp;)[^\W_]+)*[+]?|\d[^\W_]*(?:[-/.+_&][^\W_]+)*"),
        numeral=re.compile(rf"{fixed}|{digit}+(?:\.\d+)?(?:{point}{digit}+)?{digit}*(?:{share}{digit}+)?"),
    )


@lru_cache
def _number_starts() -> frozenset[str]:
    """First words of numbers and their signs."""
    return frozenset(w.split()[0].lower() for w in [*english().numbers, *english().signs])


def _canonical(value: Fraction | str, unit: str, sign: str) -> str:
    return f"{sign}{value}{' ' + unit if unit else ''}"


def _unit_at(text: str, at: int) -> tuple[str, int]:
    """Canonical unit at this place, and where it ends; "" where there is none."""
    match = _patterns().unit.match(text, at)
    if not match:
        return "", at
    table = english().units | chinese().units
    if match[3]:
        return match[3], match.end()
    return table[match[1]] + ("/" + table[match[2]] if match[2] else ""), match.end()


def _digits_value(text: str) -> Fraction | str:
    """The value; times, ratios and versions such as 10:10 or 1.2.3 stay as they are written."""
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text) else text
    if re.fullmatch(r"\d+(?:\.\d+)?|\d+/[1-9]\d*", plain):
        return Fraction(plain)
    return plain


class _Scanner:
    """Reads one text. prompt_words: runs of content of the prompt, known when the answer is read."""

    def __init__(self, text: str, prompt_words: frozenset[str]):
        body, self.quotes = take_quotes(text)
        self.text = normalise(body)
        self.prompt_words = prompt_words
        self.tokens: list[Token] = []
        self.quote_number = 0

    def read(self) -> list[Token]:
        at = 0
        while at < len(self.text):
            self.at = at
            at = self._step(at)
        return _ranges(self.tokens)

    def _step(self, at: int) -> int:
        text, patterns, char = self.text, _patterns(), self.text[at]
        if char == QUOTE_MARK:
            quote = self.quotes[self.quote_number]
            self.quote_number += 1
            self.tokens.append(Token("quote", quote, quote))
            return at + 1
        if char.isspace():
            return at + 1
        free = at == 0 or not (text[at - 1].isascii() and text[at - 1].isalnum())
        if free and (phrase := self._phrase(at)):
            self._add("word", phrase, phrase.lower(), "phrase")
            return at + len(phrase)
        if free and (not char.isascii() or not char.isalpha() or self._first_word(at) in _number_starts()):
            end = self._quantity(at)
            if end > at:
                return end
        if match := CJK_RUN.match(text, at):
            self._chinese(match[0])
            return match.end()
        if match := patterns.word.match(text, at):
            word = CJK_RUN.split(match[0])[0]  # [^\W] also holds Chinese characters
            if word:
                self._latin(word)
                return at + len(word)
        self.tokens.append(Token("mark", char, char))
        return at + 1

    def _first_word(self, at: int) -> str:
        match = FIRST_WORD.match(self.text, at)
        return match[0].lower() if match else ""

    def _phrase(self, at: int) -> str:
        """The fixed expression that starts at this place, or an empty string."""
        for phrase in english().phrases.get(self._first_word(at), ()):
            end = at + len(phrase)
            if self.text[at:end].lower() == phrase and not ENDS_IN_WORD.match(self.text, end):
                return self.text[at:end]
        return ""

    def _add(self, kind: str, text: str, key: str, group: str = "", name: bool = False) -> None:
        self.tokens.append(Token(kind, text, key, group, name))

    def _quantity(self, at: int) -> int:
        """A number with its sign and unit from here on; returns where it ends, or `at`."""
        text, patterns = self.text, _patterns()
        signs = english().signs | chinese().signs
        sign, start = "", at
        if match := patterns.sign.match(text, at):
            key = match[0].strip().lower()
            if not (
                key == "-" and at and not text[at - 1].isspace() and text[at - 1] not in "(:\uff0c\u3002,"
            ):
                sign, start = signs[key], match.end()
        currency = ""
        if start < len(text) and text[start] in "$\u20ac\u00a3\u00a5":
            currency, start = text[start], start + 1
        if match := patterns.digits.match(text, start):
            end = match.end()
            ordinal = re.compile(r"(?:st|nd|rd|th)\b").match(text, end)
            if ordinal:
                self._add("number", text[at : ordinal.end()], f"ordinal {match[0]}")
                return ordinal.end()
            unit, after = _unit_at(text, end)
            glued = (
                after == end
                and end < len(text)
                and text[end].isascii()
                and (text[end].isalpha() or text[end] == "_")
            )
            if glued:
                return at  # 3D, 7A: a name, not a number
            if after == end and currency:
                unit = currency
            if end < len(text) and text[end] == "^" and after == end:
                power = re.compile(r"\^-?\d+").match(text, end)
                if power:
                    self._add("number", text[at : power.end()], f"{sign}{match[0]}{power[0]}")
                    return power.end()
            self._add("number", text[at:after], _canonical(_digits_value(match[0]), unit, sign))
            return after
        if match := patterns.number_words.match(text, start):
            if match[0].lower() in ("one", "single", "a single", "the single") and not sign:
                unit, after = _unit_at(text, match.end())
                if not unit:
                    self._add("one", match[0], "1")
                    return match.end()
            value = _number_words(match[0])
            unit, after = _unit_at(text, match.end())
            self._add("number", text[at:after], _canonical(value, unit, sign))
            return after
        numeral = CJK_RUN.match(text, start) if sign and start > at else None
        if numeral and (found := _numeral(text, start)):
            value, end = found
            unit, after = _unit_at(text, end)
            self._add("number", text[at:after], _canonical(value, unit, sign))
            return after
        return at

    def _starts_sentence(self) -> bool:
        last = next((t for t in reversed(self.tokens) if t.kind != "quote"), None)
        return last is None or (last.kind == "mark" and last.text in ".!?:;()\n\u3002\uff1a\uff1b-")

    def _latin(self, word: str) -> None:
        if word.lower().endswith("'s") or word.endswith("'"):
            word = word[: -2 if word.lower().endswith("'s") else -1]
        parts = re.split("[-/]", word)
        if len(parts) > 1 and not all(
            any(c.isdigit() for c in p) or (p.isupper() and len(p) < 6) for p in parts
        ):
            for part in parts:
                if part:
                    self._single(part)
                    self.tokens.append(Token("mark", "-", "hyphen"))
            self.tokens.pop()
            return
        self._single(word)

    def _single(self, word: str) -> None:
        words, lower = english(), word.lower()
        first = self._starts_sentence()
        capital = any(c.isupper() for c in word[1:]) or any(c.isdigit() for c in word)
        known = english_class(word) if not capital else None
        if lower == "free" and not self._denies():
            self._add("content" if not known else "word", word, base(word), known or "")
        elif lower in words.lists["negations"] or lower.endswith("n't"):
            self._add("negation", word, "not")
        elif lower in words.colours and (not word[0].isupper() or first):
            self._add("colour", word, words.colours[lower])
        elif lower in words.sides and (not word[0].isupper() or first):
            self._add("side", word, words.sides[lower])
        elif lower in ("a", "an"):
            self._add("article", word, "1")
        elif (
            capital or (word[0].isupper() and not first and len(word) > 1) or (len(word) == 1 and word != "I")
        ):
            self._add("content", word, word if capital else base(word), known or "", True)
        elif known:
            self._add("word", word, base(word), known)
        else:
            self._add("content", word, base(word))

    def _denies(self) -> bool:
        """Whether "free" at this place means without: shadow-free, free of shadow."""
        hyphen = bool(self.tokens) and self.tokens[-1].key == "hyphen"
        return hyphen or bool(re.compile(r"\w*\s+(?:of|from)\b").match(self.text, self.at))

    def _chinese(self, run: str) -> None:
        segments = _segments(run, self.prompt_words)
        row: list[Token] = []
        for i, (kind, text, key, group) in enumerate(segments):
            last = row[-1] if row else None
            follows = kind == "content" and last and last.kind == "content" and last.group == group
            if (
                not self.prompt_words
                and kind == "word"
                and group != "size"
                and len(text) == 1
                and text not in chinese().lists["connectors"]
            ):  # a one-character word beside content belongs to it
                after = i + 1 < len(segments) and segments[i + 1][0] == "content"
                if (last and last.kind == "content") or after:
                    kind, group = "content", "unknown"
                    follows = bool(last) and last.kind == "content"
            if follows:
                row[-1] = Token("content", last.text + text, last.key + text, last.group, False, True)
            else:
                row.append(Token(kind, text, key, group, False, True))
        if not self.prompt_words:
            row = [part for token in row for part in _without_last_verb(token)]
        self.tokens += row


def _numeral(text: str, at: int) -> tuple[Fraction, int] | None:
    """A Chinese numeral at this place: its value and end."""
    match = _patterns().numeral.match(text, at)
    if not match or match[0].isascii():
        return None
    value = _chinese_value(match[0])
    return None if value is None else (value, match.end())


def _without_last_verb(token: Token) -> list[Token]:
    """A cat sleeps (on): the noun is a word of its own."""
    if token.kind != "content" or len(token.text) < 2 or token.text[-1] not in chinese().lists["verbs"]:
        return [token]
    return [replace(token, text=t, key=t) for t in (token.text[:-1], token.text[-1])]


@lru_cache(maxsize=256)
def _substrings(prompt_words: frozenset[str]) -> frozenset[str]:
    """What an answer may take from its content: parts of two or more characters, and last ones."""
    spans = {w[i:j] for w in prompt_words for i in range(len(w)) for j in range(i + 2, len(w) + 1)}
    return frozenset(spans | prompt_words | {w[-1] for w in prompt_words})


def _candidates(run: str, at: int, known: frozenset[str]) -> list[tuple[int, int, str, str, str]]:
    """What can stand at this place: (end, cost, kind, key, group)."""
    words, particles = chinese(), chinese().particles
    found = [(at + 1, 40, "content", run[at], "unknown")]
    for end in range(at + 1, min(len(run), at + LONGEST) + 1):
        piece = run[at:end]
        if piece in words.lists["negations"]:
            found.append((end, 10, "negation", "not", ""))
        elif piece in words.colours:
            found.append((end, 10, "colour", words.colours[piece], ""))
        elif piece in words.sides:
            found.append((end, 10, "side", words.sides[piece], ""))
        elif piece in words.classes:
            found.append((end, 10, "word", piece, words.classes[piece]))
        elif piece in words.lists["compounds"]:
            found.append((end, 9, "content", piece, "" if piece in known else "unknown"))
        if piece in known:
            found.append((end, 10, "content", piece, ""))
        if piece in words.phrases:
            found.append((end, 9, "word", piece, "phrase"))
    if run[at] == particles["one"] and at + 1 < len(run) and run[at + 1] in words.lists["classifiers"]:
        found.append((at + 2, 9, "article", "1", ""))
    share = run.startswith(particles["percent"], at)
    if numeral := _numeral(run, at + len(particles["percent"]) * share):
        value, end = numeral
        unit, after = ("%", end) if share else _unit_at(run, end)
        if not unit and after < len(run) and run[after] in words.lists["classifiers"]:
            after += 1
        if run.startswith(particles["half"], after) and value >= 1:
            value, after = value + Fraction(1, 2), after + 1
        if run[at:after] == particles["one"]:
            found.append((after, 11, "article", "1", ""))
        else:
            found.append((after, 10, "number", _canonical(value, unit, ""), ""))
    return found


@lru_cache(maxsize=4096)
def _segments(run: str, prompt_words: frozenset[str]) -> list[tuple[str, str, str, str]]:
    """The cheapest way through a run of Chinese: few words, as little unknown as can be."""
    known = _substrings(prompt_words)
    best: list[tuple[int, int, tuple]] = [(0, 0, ())] + [(1 << 30, 0, ())] * len(run)
    for at in range(len(run)):
        cost = best[at][0]
        for end, price, *what in _candidates(run, at, known):
            if cost + price < best[end][0]:
                best[end] = (cost + price, at, tuple(what))
    found, end = [], len(run)
    while end:
        _, at, (kind, key, group) = best[end]
        found.append((kind, run[at:end], key, group))
        end = at
    return found[::-1]


def _ranges(tokens: list[Token]) -> list[Token]:
    """3-5 mm: the first number takes the unit of the second."""
    out = list(tokens)
    for i in range(len(out) - 2):
        a, between, b = out[i : i + 3]
        if a.kind == b.kind == "number" and " " not in a.key and " " in b.key:
            if between.text in ("-", "~", "to") or between.text in either("reach"):
                out[i] = Token("number", a.text, a.key + b.key[b.key.index(" ") :], chinese=a.chinese)
    return out


@lru_cache(maxsize=64)
def tokens(text: str, prompt_words: frozenset[str] = frozenset()) -> list[Token]:
    """Reads a prompt, or an answer with the Chinese words of its prompt. The list is shared, for reading."""
    return _Scanner(text, prompt_words).read()


def chinese_words(read: Iterable[Token]) -> frozenset[str]:
    """The runs of Chinese content."""
    return frozenset(t.text for t in read if t.kind == "content" and t.chinese)
