"""How pages are looked at: in each language, with nodes on a canvas and as parts of the document."""

from __future__ import annotations

import itertools

import pytest

from tests.core.random_models import seeds
from tests.long import LONG

MODES = {False: "canvas", True: "nodes 2.0"}
(SEED,) = seeds(1)
# The short form has each language and each mode once; which with which, the seed says.
_BOTH = itertools.product(("en", "zh"), MODES) if LONG else (("en", SEED % 2 == 1), ("zh", SEED % 2 == 0))

in_languages_and_modes = pytest.mark.parametrize(
    ("locale", "nodes_2"),
    [pytest.param(locale, mode, id=f"{locale}, {MODES[mode]}") for locale, mode in _BOTH],
)
in_modes = pytest.mark.parametrize(
    "nodes_2", [pytest.param(mode, id=name) for mode, name in MODES.items() if LONG or not mode]
)
