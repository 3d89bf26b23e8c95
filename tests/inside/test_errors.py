"""What the host calls the error classes of this extension."""

from __future__ import annotations

import builtins

import execution

from tests.host.inside import ROOT, extension_module


def test_the_host_calls_every_error_by_its_bare_name() -> None:
    """A module's name before it, for an extension the path of its folder, takes the message's place."""
    extension_module("nodes")
    names = {}
    for room in ("nodes", "zimage_core"):
        for file in sorted((ROOT / room).rglob("*.py")):
            path = file.parent if file.stem == "__init__" else file.with_suffix("")
            module = extension_module(".".join(path.relative_to(ROOT).parts))
            for name, item in vars(module).items():
                error = isinstance(item, type) and issubclass(item, Exception) and not hasattr(builtins, name)
                if error and item.__module__ in ("builtins", module.__name__):
                    names[name] = execution.full_type_name(item)
    assert {"WeightsError", "NotZImage", "NoSuchRoute", "EndpointError"} <= names.keys()
    assert [name for bare, name in names.items() if name != bare] == []
