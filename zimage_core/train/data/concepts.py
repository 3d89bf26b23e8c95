"""What is in a data set, and how rare each thing is: a graph of concepts, and a weight for each picture.

Concepts come from captions and from a table of parents ("fox": ["animal"]). A picture of a child shows its
parents too. PageRank over the graph tells concepts from stray words; BM25's rarity makes the weight.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from .optional import MissingPackage, module
from .records import DataError, PictureRecord

SPEC = json.loads(Path(__file__).with_name("concepts.json").read_text("utf-8"))
FUNCTION_WORDS = frozenset(SPEC["function_words"])
SIGNS = re.compile(r"[,;.:!?()\[\]{}\"\n\u3001\u3002\uff0c\uff1b\uff1a\uff01\uff1f\uff08\uff09\u201c\u201d]+")
WORDS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
CHINESE = re.compile(r"[\u4e00-\u9fff]+")
LONGEST = 3  # words of a tag, characters per word of a Chinese one
LINKED_WORDS = 5  # words of the longest name that is looked for
FEWEST = 2  # pictures of a word that is no name of the table
IMPORTANT = 0.5  # of the mean PageRank; a concept below it is a stray word
K1, B = 1.2, 0.75  # of BM25 (Robertson and Zaragoza, 2009)
STRENGTH = 0.5  # a thing twenty times as rare is seen 4.5 times as often for each of its pictures
LEAST, MOST = 0.25, 8.0  # of the weights, whose mean is 1
PAIRS = 12  # concepts of a caption whose pairs are counted

Links = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Concepts:
    """names: concepts of each picture, its own and their parents. counts: pictures of each concept.

    ranks: PageRank; empty where networkx is not there, then `missing` says so.
    """

    names: tuple[frozenset[str], ...]
    counts: dict[str, int]
    ranks: dict[str, float]
    weights: tuple[float, ...]
    missing: str | None = None

    def rarest(self, count: int = 10) -> list[str]:
        return sorted(self.counts, key=lambda name: (self.counts[name], name))[:count]


def read_links(file: Path) -> dict[str, tuple[str, ...]]:
    """A JSON object of parents by child. Raises DataError."""
    try:
        values = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}.") from None
    rows = values.items() if isinstance(values, dict) else ()
    links = {child: (parents,) if isinstance(parents, str) else parents for child, parents in rows}
    lists = all(isinstance(parents, (list, tuple)) for parents in links.values())
    if not links or not lists or not all(isinstance(n, str) for parents in links.values() for n in parents):
        raise DataError(f'{file}: expected an object of parents by child, such as {{"fox": ["animal"]}}.')
    return {child.casefold(): tuple(name.casefold() for name in parents) for child, parents in links.items()}


def find(records: Sequence[PictureRecord], links: Links | None = None) -> Concepts:
    """The concepts of the records, and a weight for each, 1 on average over repeats."""
    links = links or {}
    known = set(links) | {parent for parents in links.values() for parent in parents}
    own = [_terms(" \n".join(record.captions), known) for record in records]
    counts = _counted(records, own)
    total = sum(record.repeats for record in records)
    kept = {name for name, count in counts.items() if name in known or count >= FEWEST}
    own = [terms & kept for terms in own]
    ranks, missing = _ranked(own, links)
    if ranks:
        least = IMPORTANT / len(ranks)
        own = [{term for term in terms if term in known or ranks[term] >= least} for terms in own]
    names = [frozenset(terms | _ancestors(terms, links)) for terms in own]
    counts = _counted(records, names)
    weights = _weights(records, names, counts, total)
    return Concepts(tuple(names), dict(counts), ranks, weights, missing)


def _terms(text: str, known: set[str]) -> set[str]:
    """Words, short tags and known names in a caption, in small letters."""
    found: set[str] = set()
    for piece in SIGNS.split(text.casefold()):
        words = [word for word in WORDS.findall(piece) if not CHINESE.search(word)]
        told = [_singular(word, known) for word in words if word not in FUNCTION_WORDS]
        found.update(word for word in told if len(word) > 1)
        if 1 < len(told) == len(words) <= LONGEST:
            found.add(" ".join(told))
        for length in range(2, LINKED_WORDS + 1):
            spans = (" ".join(words[k : k + length]) for k in range(len(words) - length + 1))
            found.update(span for span in spans if span in known)
        for run in CHINESE.findall(piece):
            found |= _chinese(run, known)
    return found


def _singular(word: str, known: set[str]) -> str:
    """Foxes and castles are of the concepts fox and castle, where these are known or the ending is plain."""
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        stem = word.removesuffix(ending) + instead
        if word.endswith(ending) and stem in known:
            return stem
    plain = word.endswith("s") and not word.endswith(("ss", "us", "is", "es"))
    if len(word) > 3 and plain and word not in known:
        return word[:-1]
    return word


def _chinese(run: str, known: set[str]) -> set[str]:
    """Known names in a run of Chinese characters, the longest first; or what is left of a short one."""
    found, at = set(), 0
    while at < len(run):
        length = next((n for n in range(min(8, len(run) - at), 0, -1) if run[at : at + n] in known), 0)
        if length:
            found.add(run[at : at + length])
        at += max(length, 1)
    if not found:
        for word in SPEC["around_chinese"]:
            run = run.removeprefix(word).removesuffix(word)
        if 1 < len(run) <= 2 * LONGEST:
            found.add(run)
    return found


def _ancestors(terms: Iterable[str], links: Links) -> set[str]:
    found: set[str] = set()
    open_ = list(terms)
    while open_:
        for parent in links.get(open_.pop(), ()):
            if parent not in found:
                found.add(parent)
                open_.append(parent)
    return found


def _counted(records: Sequence[PictureRecord], names: Iterable[Iterable[str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for record, own in zip(records, names, strict=True):
        for name in own:
            counts[name] += record.repeats
    return counts


def _ranked(own: Sequence[set[str]], links: Links) -> tuple[dict[str, float], str | None]:
    """PageRank over what stands together in captions, and from children to their parents."""
    together: dict[tuple[str, str], float] = defaultdict(float)
    for terms in own:
        for a, b in combinations(sorted(terms)[:PAIRS], 2):
            together[a, b] += 1
    terms = {term for found in own for term in found}
    try:
        networkx = module("networkx")
    except MissingPackage as error:
        return {}, str(error)
    graph = networkx.DiGraph()
    graph.add_nodes_from(sorted(terms))
    for (a, b), count in together.items():
        graph.add_edge(a, b, weight=count)
        graph.add_edge(b, a, weight=count)
    for child in sorted(terms & set(links)):
        beside = sum(values["weight"] for *_, values in graph.out_edges(child, True))
        graph.add_weighted_edges_from((child, parent, beside + 1) for parent in links[child])
    return (networkx.pagerank(graph) if graph else {}), None


def _weights(
    records: Sequence[PictureRecord], names: Sequence[frozenset[str]], counts: Mapping[str, int], total: int
) -> tuple[float, ...]:
    """By the rarest thing that a picture shows: BM25's score of it, in a caption of that length."""
    mean = sum(map(len, names)) / max(len(names), 1) or 1.0
    scores = []
    for own in names:
        length = K1 * (1 - B + B * len(own) / mean)
        rarity = (math.log(1 + (total - counts[name] + 0.5) / (counts[name] + 0.5)) for name in own)
        scores.append(max(rarity, default=0.0) * (K1 + 1) / (1 + length))
    known = sorted(score for score, own in zip(scores, names, strict=True) if own)
    if not known:
        return (1.0,) * len(records)
    usual = known[len(known) // 2]
    raw = [
        min(max(math.exp(STRENGTH * (score - usual)), LEAST), MOST) if own else 1.0
        for score, own in zip(scores, names, strict=True)
    ]
    scale = total / sum(value * record.repeats for value, record in zip(raw, records, strict=True))
    return tuple(value * scale for value in raw)
