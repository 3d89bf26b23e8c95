"""Mutants of `zimage_core`: one small change of its source each, by cosmic-ray's kinds and some of ours."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "zimage_core"
SET_ASIDE = Path(__file__).with_name("set_aside.json")
# Kinds that cosmic-ray lacks: another function of the same signature.
_OPPOSITES = (
    ("max", "min"),
    ("amax", "amin"),
    ("maximum", "minimum"),
    ("any", "all"),
    ("ones", "zeros"),
    ("ones_like", "zeros_like"),
    ("sin", "cos"),
    ("floor", "ceil"),
    ("startswith", "endswith"),
    ("removeprefix", "removesuffix"),
)
SWAPS = {
    **dict(_OPPOSITES),
    **{after: before for before, after in _OPPOSITES},
    "int": "round",
    "median": "mode",
    "rstrip": "lstrip",
    "sorted": "list",
}

# Of None, names of options and small numbers, being the same and being equal cannot be told apart.
ALIKE = re.compile("ReplaceComparisonOperator_(Eq_Is|Is_Eq|NotEq_IsNot|IsNot_NotEq)$")

Position = tuple[int, int]  # line from 1, column from 0


@dataclass(frozen=True)
class Mutant:
    """One change: at `line` (from 1) of `path`, what `was` there became something else; spaces are single."""

    path: str
    line: int
    was: str
    became: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}\n  - {self.was}\n  + {self.became}"


@dataclass(frozen=True)
class Site:
    """A place in the source that can be changed, and the ways to change it there."""

    path: str
    start: Position
    ways: tuple[tuple, ...]  # ("cosmic-ray", operator, occurrence) or ("text", start, end, new)


def modules() -> list[str]:
    """The files that are mutated: the package without its training."""
    files = (path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))
    return sorted(name for name in files if not name.startswith(f"{PACKAGE}/train/"))


def without_effect(tree: ast.Module) -> list[tuple[Position, Position]]:
    """Where no change can be told from outside.

    Annotations are never run: they are strings under `from __future__ import annotations`. `strict=` of zip
    and `frozen=` of a dataclass forbid what the code does not do. Lines of the log are for whoever looks for
    a fault, and nothing goes by them.
    """
    nodes, found = list(ast.walk(tree)), []
    futures = {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    if "annotations" in futures:
        found += [getattr(node, "annotation", None) for node in nodes]
        found += [getattr(node, "returns", None) for node in nodes]
    found += [n.value for n in nodes if isinstance(n, ast.keyword) and n.arg in ("strict", "frozen")]
    found += [n for n in nodes if isinstance(n, ast.Expr) and ast.unparse(n).startswith(("log.", "logging."))]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found if n is not None]


def sites(path: str, source: str) -> Iterator[Site]:
    """Every place of a file but those without effect."""
    tree = ast.parse(source)
    skipped = without_effect(tree)
    ways: dict[tuple[Position, Position], list[tuple]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(set(cosmic_ray.plugins.operator_names())):
        operator_class = cosmic_ray.plugins.get_operator(name)
        if operator_class.arguments() or ALIKE.search(name):
            continue  # those with arguments exchange variables, and want their names
        operator = operator_class()
        positions = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            ways.setdefault((start, end), []).append(("cosmic-ray", name, occurrence))
    for start, end, new in _own(tree):
        ways.setdefault((start, end), []).append(("text", start, end, new))
    for (start, _end), choices in sorted(ways.items()):
        if not any(low <= start < high for low, high in skipped):
            yield Site(path, start, tuple(choices))


def _own(tree: ast.Module) -> Iterator[tuple[Position, Position, str]]:
    """(start, end, new text): a function for its opposite, a statement that only has an effect for none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in SWAPS:
            end = node.lineno, node.end_col_offset
            yield (node.lineno, node.col_offset), end, SWAPS[node.id]
        elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
            end = node.end_lineno, node.end_col_offset
            yield (end[0], end[1] - len(node.attr)), end, SWAPS[node.attr]
        elif isinstance(node, ast.keyword) and node.arg in SWAPS:
            start = node.lineno, node.col_offset
            yield start, (start[0], start[1] + len(node.arg)), SWAPS[node.arg]
        elif isinstance(node, (ast.AugAssign, ast.Raise)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            yield (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), "pass"


def made(site: Site, way: tuple, source: str) -> Mutant | None:
    """The mutant of a site; None where the change leaves the program as it is."""
    if way[0] == "cosmic-ray":
        operator = cosmic_ray.plugins.get_operator(way[1])()
        try:
            new = mutate_code(source, operator, way[2])
        except AttributeError:  # cosmic-ray does not know `except (module.Error, Other)`
            return None
    else:
        _, (line, column), (end_line, end_column), text = way
        lines = source.splitlines(keepends=True)
        new = "".join(lines[: line - 1]) + lines[line - 1][:column] + text
        new += lines[end_line - 1][end_column:] + "".join(lines[end_line:])
    if new is None or _program(new) == _program(source):
        return None
    before, after = source.splitlines(), new.splitlines()
    changes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    _, low, high, new_low, new_high = next(change for change in changes if change[0] != "equal")
    was, became = (_joined(lines) for lines in (before[low:high], after[new_low:new_high]))
    return Mutant(site.path, site.start[0], was, became, new)


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _program(source: str) -> str | None:
    """What decides how the source runs; None where it does not even parse."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:
        return None


def set_aside() -> list[dict]:
    """Mutants that cannot be told from the original: path, was, became, and the reason."""
    return json.loads(SET_ASIDE.read_text(encoding="utf-8"))


def draw(seed: int, count: int, only: str = "") -> tuple[list[Mutant], list[dict]]:
    """`count` mutants and the rows of set_aside.json that were drawn and replaced.

    First a place is drawn, then what is done there: of all mutants alone, half would be replaced operators.
    only: the start of the paths to draw from. Raises ValueError when there are fewer places than count.
    """
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path in modules() if path.startswith(only)}
    places = [site for path, source in sources.items() for site in sites(path, source)]
    chance = random.Random(seed)
    chance.shuffle(places)
    reasons = {(row["path"], row["was"], row["became"]): row for row in set_aside()}
    drawn, aside = [], []
    for site in places:
        ways = list(site.ways)
        chance.shuffle(ways)
        mutant = next(filter(None, (made(site, way, sources[site.path]) for way in ways)), None)
        if mutant is None or _program(mutant.source) is None:
            continue
        row = reasons.get((mutant.path, mutant.was, mutant.became))
        if row:
            aside.append(row)
        else:
            drawn.append(mutant)
        if len(drawn) == count:
            return drawn, aside
    raise ValueError(f"{len(drawn)} mutants in {only or PACKAGE}, {count} were wanted")
