"""Lists whose choice comes from another node."""

from __future__ import annotations

import pytest

from tests.host.inside import extension_module


@pytest.mark.parametrize(
    ("module", "node", "name"),
    [("style", "ZImageStyle", "style"), ("picture_text", "ZImagePictureText", "image")],
)
def test_a_linked_choice_is_not_refused_before_it_is_known(module: str, node: str, name: str) -> None:
    """The host gives None for what is linked."""
    node = getattr(extension_module(f"nodes.{module}"), node)
    assert node.validate_inputs(**{name: None}) is True
    assert node.fingerprint_inputs(**{name: None}) is not None
    assert "nowhere" in node.validate_inputs(**{name: "nowhere"})
