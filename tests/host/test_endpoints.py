"""Chat servers that the host's owner set up in the user directory."""

from __future__ import annotations

from pathlib import Path

from tests.host import inside


def test_names_and_endpoints(tmp_path: Path) -> None:
    """Without a file and with a broken one there are no names, and each error names the file."""
    found = inside.run("endpoints_inside.py", tmp_path)
    file = str(tmp_path / "zimage_endpoints.json")
    assert found["absent"]["names"] == [] and f"there is no {file}" in found["absent"]["a"]
    assert found["good"]["names"] == ["b", "a"] and found["good"]["a"] == "A"
    assert "No endpoint 'c'" in found["good"]["c"] and "'b', 'a'" in found["good"]["c"]
    assert found["broken"]["names"] == [] and f"{file} is no JSON" in found["broken"]["a"]
