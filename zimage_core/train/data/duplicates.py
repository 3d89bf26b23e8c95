"""Copies of one picture: the same file, another encoding or size of it, or a part that was cut out.

Candidates are near by hash, by low frequencies of whole and parts, or by an embedding; a thumbnail laid over
the other confirms them. Groups are communities of what is confirmed, and the best of each is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .alignment import part_of
from .fingerprints import COLOURS, Fingerprints
from .optional import MissingPackage, module

BITS = 6  # of the 64 of a perceptual hash that may differ
LIKENESS = 0.80  # cosine between the low frequencies of a picture and of a part of another
EMBEDDING = 0.9  # cosine between embeddings
SAME = 0.94  # correlation of the details of a copy and its original
COLOUR_LEVELS = 12  # mean difference of colours that a copy may have
WHOLE = 0.97  # of both sides: from here on it is no part but all of it
NEIGHBOURS = 10  # pictures that are looked at for each
SEARCHED = 8  # times as many entries, of which several can be of one picture
EXACT_SEARCH = 1_000_000  # entries up to which every one is compared
LISTS = 1024  # beyond it: of the inverted file, of which PROBES are read
PROBES = 16
SAMPLE = 5_000  # pictures from which scales and lists are learnt
ROWS = 4_096  # pictures at once
LOUVAIN = 200_000  # pictures up to which communities are found by Louvain
SMALL_GROUP = 8  # a group of so few stays whole
FILE, ENCODING, PART = "exact copy", "copy", "part"


@dataclass(frozen=True)
class Edge:
    """Two pictures that are one; kind is FILE, ENCODING or PART, `score` how alike they are."""

    first: int
    second: int
    kind: str
    score: float


@dataclass(frozen=True)
class Copy:
    """A picture that is dropped for another that is kept."""

    index: int
    kept: int
    kind: str


@dataclass(frozen=True)
class Duplicates:
    """What was found, and a line for each way of looking that could not be used."""

    copies: tuple[Copy, ...]
    candidates: int
    ran: tuple[str, ...]
    missing: tuple[str, ...]


def find(
    prints: Fingerprints,
    quality: Sequence[tuple],
    embeddings: np.ndarray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Duplicates:
    """quality: a sortable value of each picture, the best of a group is kept. embeddings: [N, width]."""
    ran, missing = ["equal files"], [prints.missing] if prints.missing else []
    edges = list(equal_files(prints.digests))
    twins = {edge.second for edge in edges}
    single = np.array([i for i in range(len(prints.shapes)) if i not in twins and prints.shapes[i, 0]], int)
    pairs: set[tuple[int, int]] = set()
    try:
        for name, found in candidates(prints, single, embeddings):
            pairs |= found
            ran.append(name)
    except MissingPackage as error:
        missing.append(str(error))
    for done, (part, whole) in enumerate(sorted(pairs)):
        progress(done, len(pairs))
        if edge := confirmed(prints, part, whole):
            edges.append(edge)
    groups, how, problem = communities(edges, len(prints.shapes))
    ran.append(how)
    missing += [problem] if problem else []
    copies = tuple(copy for group in groups for copy in best_kept(group, edges, quality))
    return Duplicates(copies, len(pairs), tuple(ran), tuple(missing))


def equal_files(digests: np.ndarray) -> Iterator[Edge]:
    """Each later file with the first that has its bytes; digests [N, 32], zeros where there is none."""
    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        if digest.any() and (known := first.setdefault(digest.tobytes(), index)) != index:
            yield Edge(known, index, FILE, 1.0)


def candidates(
    prints: Fingerprints, chosen: np.ndarray, embeddings: np.ndarray | None
) -> Iterator[tuple[str, set[tuple[int, int]]]]:
    """(way of looking, pairs (part, whole)); raises MissingPackage where faiss is not there."""
    faiss = module("faiss")
    if len(chosen) < 2:
        return
    if prints.hashes is not None:
        yield "perceptual hashes", _by_hash(faiss, prints.hashes, chosen)
    yield "low frequencies of parts", _by_waves(faiss, prints.waves, chosen)
    if embeddings is not None:
        yield "embeddings", _by_embedding(faiss, embeddings, chosen)


def _by_hash(faiss, hashes: np.ndarray, chosen: np.ndarray) -> set[tuple[int, int]]:
    codes = np.ascontiguousarray(hashes[chosen])
    if len(codes) <= EXACT_SEARCH:
        index = faiss.IndexBinaryFlat(64)
    else:
        index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(64), 64, LISTS)
        index.train(codes[:: max(1, len(codes) // (LISTS * 64))])
        index.nprobe = PROBES
    index.add(codes)
    distances, found = index.search(codes, min(NEIGHBOURS + 1, len(codes)))
    owners = np.arange(len(chosen))
    return _pairs(-distances, found, -BITS, owners, chosen)


def _by_waves(faiss, waves: np.ndarray, chosen: np.ndarray) -> set[tuple[int, int]]:
    sample = waves[chosen[:: -(-len(chosen) // SAMPLE)]].astype(np.float32)
    scale = np.sqrt(sample.reshape(-1, sample.shape[-1]).std(0) + 1e-3)
    return _near(faiss, lambda rows: waves[chosen[rows]].astype(np.float32) / scale, chosen, LIKENESS)


def _by_embedding(faiss, embeddings: np.ndarray, chosen: np.ndarray) -> set[tuple[int, int]]:
    found = _near(faiss, lambda rows: embeddings[chosen[rows], None].astype(np.float32), chosen, EMBEDDING)
    return found | {(b, a) for a, b in found}


def _near(
    faiss, entries: Callable[[slice], np.ndarray], chosen: np.ndarray, least: float
) -> set[tuple[int, int]]:
    """Pairs of each picture's first entry with others' entries of at least that cosine.

    entries: rows of `chosen` -> [rows, parts, width], made block by block, so that memory stays small.
    """
    sample = _unit(entries(slice(0, None, -(-len(chosen) // SAMPLE))))
    parts, width = sample.shape[1:]
    index = flat = faiss.IndexFlatIP(width)
    if len(chosen) * parts > EXACT_SEARCH:
        kind = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(flat, width, LISTS, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(sample.reshape(-1, width))
        index.nprobe = PROBES
    blocks = [slice(start, start + ROWS) for start in range(0, len(chosen), ROWS)]
    for block in blocks:
        index.add(_unit(entries(block)).reshape(-1, width))
    owners, pairs = np.repeat(np.arange(len(chosen)), parts), set()
    for block in blocks:
        queries = np.ascontiguousarray(_unit(entries(block)[:, 0]))
        found = index.search(queries, min(NEIGHBOURS * SEARCHED, len(owners)))
        pairs |= _pairs(*found, least, owners, chosen, block.start)
    return pairs


def _pairs(
    scores: np.ndarray,
    found: np.ndarray,
    least: float,
    owners: np.ndarray,
    chosen: np.ndarray,
    first: int = 0,
) -> set[tuple[int, int]]:
    """(part, whole) of each query and the nearest other pictures, at most NEIGHBOURS.

    first: the row of `chosen` that the first query is.
    """
    pairs = set()
    for query, (row, entries) in enumerate(zip(scores, found, strict=True), first):
        near = owners[entries[(row >= least) & (entries >= 0)]]
        others = list(dict.fromkeys(near[near != query].tolist()))[:NEIGHBOURS]
        pairs.update((int(chosen[query]), int(chosen[other])) for other in others)
    return pairs


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)


def confirmed(prints: Fingerprints, part: int, whole: int) -> Edge | None:
    """The edge between the two where the one is the other, or a part of it, also in colour."""
    shapes = (tuple(prints.shapes[part].tolist()), tuple(prints.shapes[whole].tolist()))
    match = part_of(prints.thumbnail(part), prints.thumbnail(whole), *shapes)
    if match.score < SAME:
        return None
    left, top, width, height = (side * COLOURS for side in match.box)
    seen = _colours(prints.colours[whole], (left, top, left + width, top + height))
    difference = np.abs(seen - _colours(prints.colours[part])).mean()
    if difference > COLOUR_LEVELS:
        return None
    is_whole = min(match.box[2:]) >= WHOLE
    return Edge(part, whole, ENCODING if is_whole else PART, match.score)


def _colours(cells: np.ndarray, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """The means of 4 x 4 fields of cells [COLOURS, COLOURS, 3], or of a box of them."""
    return np.asarray(Image.fromarray(cells).resize((4, 4), Image.Resampling.BOX, box=box), np.float32)


def communities(edges: Sequence[Edge], count: int) -> tuple[list[list[int]], str, str | None]:
    """(groups of two and more, how they were found, what is missing).

    Groups hang together by edges; those of more than SMALL_GROUP are parted by Louvain, because a chain of
    likenesses may lead from one picture to quite another.
    """
    groups = _connected(edges)
    if count > LOUVAIN or all(len(group) <= SMALL_GROUP for group in groups):
        return groups, "groups by union-find", None
    try:
        networkx = module("networkx")
    except MissingPackage as error:
        return groups, "groups by union-find", str(error)
    graph = networkx.Graph()
    graph.add_weighted_edges_from((e.first, e.second, e.score) for e in edges)
    parted = []
    for group in groups:
        if len(group) <= SMALL_GROUP:
            parted.append(group)
            continue
        found = networkx.community.louvain_communities(graph.subgraph(group), resolution=0.5, seed=0)
        parted += [sorted(part) for part in found if len(part) > 1]
    return parted, "groups by Louvain communities", None


def _connected(edges: Iterable[Edge]) -> list[list[int]]:
    parent: dict[int, int] = {}

    def root(item: int) -> int:
        while parent.setdefault(item, item) != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for edge in edges:
        first, second = sorted((root(edge.first), root(edge.second)))
        parent[second] = first
    groups = defaultdict(list)
    for item in parent:
        groups[root(item)].append(item)
    return [sorted(group) for group in groups.values()]


def best_kept(group: Sequence[int], edges: Iterable[Edge], quality: Sequence[tuple]) -> Iterator[Copy]:
    """All but the best of a group, the first of equals; the kind is that of an edge to it, if any."""
    kept = max(group, key=lambda index: (quality[index], -index))
    members = set(group)
    kinds: dict[int, str] = {}
    for edge in edges:
        if edge.first in members and edge.second in members:
            for index in (edge.first, edge.second):
                if kinds.get(index) is None or kept in (edge.first, edge.second):
                    kinds[index] = edge.kind
    for index in group:
        if index != kept:
            yield Copy(index, kept, kinds.get(index, ENCODING))
