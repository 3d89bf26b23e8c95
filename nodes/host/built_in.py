"""The built-in model: where its files lie, and its settings."""

from __future__ import annotations

import json
from pathlib import Path

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


def nano_settings() -> dict:
    """models/nano/config.json: sizes of the three parts and the colours of its live preview."""
    return json.loads((NANO / "config.json").read_text(encoding="utf-8"))
