"""Chat servers that the host's owner set up in the user directory."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import pytest

from tests.host.inside import extension_module

endpoints = extension_module("nodes.host.writing.endpoints")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return tmp_path / "zimage_endpoints.json"


def test_without_a_file_there_are_no_names_and_an_error_names_it(file: Path) -> None:
    assert endpoints.endpoint_names() == []
    with pytest.raises(RuntimeError) as error:
        endpoints.endpoint("a")
    assert f"there is no {file}" in str(error.value)


def test_names_and_endpoints(file: Path) -> None:
    entries = {name: {"url": "http://localhost:1/v1", "model": name.upper()} for name in ("b", "a")}
    file.write_text(json.dumps(entries))
    assert endpoints.endpoint_names() == ["b", "a"]
    assert endpoints.endpoint("a").model == "A"
    with pytest.raises(RuntimeError) as error:
        endpoints.endpoint("c")
    assert "No endpoint 'c'" in str(error.value) and "'b', 'a'" in str(error.value)


def test_a_broken_file_is_named(file: Path) -> None:
    file.write_text("{")
    assert endpoints.endpoint_names() == []
    with pytest.raises(RuntimeError) as error:
        endpoints.endpoint("a")
    assert f"{file} is no JSON" in str(error.value)
