"""Rows on the console as they come, and in a file after each, so that a run that breaks off still tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

VERDICTS = {True: "holds", False: "DOES NOT HOLD", None: "-"}
COLUMNS = {"name": 64, "value": 9, "unit": 16, "bar": 12, "verdict": 13, "against": 0}


def line(cells: dict[str, str]) -> str:
    return "  ".join(cells[name].ljust(width) for name, width in COLUMNS.items()).rstrip()


def shown(row: dict) -> str:
    """A prediction says that it is one, where a measured fact says whether it holds."""
    value = row["value"]
    number = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    verdict = "predicted" if row.get("predicted") else VERDICTS[row["holds"]]
    return line({**row, "value": number, "bar": row["bar"] or "-", "verdict": verdict})


def publish(
    rows: Iterable[dict], show: Callable[[str], None], path: Path | None = None, about: dict | None = None
) -> bool:
    """Whether no row failed to hold. about: what the file says beside the rows."""
    show(line({name: name for name in COLUMNS}))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for row in rows:
        show(shown(row))
        found.append(row)
        if path:
            kept = found if about is None else {**about, "rows": found}
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return all(row["holds"] is not False for row in found)
