"""`bench formats`: every format at small widths; its matrices are those of its own package."""

from __future__ import annotations

from bench import formats
from tests.core.formats import KITCHEN, WIDE


def test_all_formats_hold_and_more_bits_are_closer() -> None:
    rows = {found["name"]: found for found in formats.rows(WIDE)}
    assert not [name for name, found in rows.items() if found["holds"] is False]
    ours = [name for name in rows if name.endswith("as we make them")]
    assert len(ours) == len(KITCHEN) + len(formats.WRITTEN)
    assert rows["Q4_K: bytes"]["value"] == 144 / 256
    size = {name: rows[f"{name}: bytes"]["value"] for name in ("Q8_0", "Q5_1", "Q4_0")}
    error = {name: rows[f"{name}: error of the velocity"]["value"] for name in size}
    assert size["Q8_0"] > size["Q5_1"] > size["Q4_0"] and error["Q8_0"] < error["Q5_1"] < error["Q4_0"]
