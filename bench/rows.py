"""A measured fact, and whether it holds; or a predicted one."""

from __future__ import annotations

import operator
from typing import Any

COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


def row(
    name: str, value: float | None, unit: str = "", bar: str | None = None, against: str = ""
) -> dict[str, Any]:
    """bar: like "<= 1e-5". `holds` is None without a bar, or without a value where the hardware is absent."""
    holds = None
    if bar is not None and value is not None:
        sign, limit = bar.split()
        holds = bool(COMPARE[sign](value, float(limit)))
    return {"name": name, "value": value, "unit": unit, "bar": bar, "holds": holds, "against": against}


def prediction(name: str, value: float, unit: str = "", against: str = "") -> dict[str, Any]:
    """What was not measured; it has no bar, and is to be shown as what it is."""
    return {**row(name, value, unit, None, against), "predicted": True}
