"""What the host calls the error classes of this extension."""

from __future__ import annotations

import builtins
import sys

import execution
import pytest

from tests.host.inside import extension_module

LATE = {
    "training_data": ("ZImageTrainingData", "nowhere"),
    "train_lora": ("ZImageTrainLora", *[None] * 4, "../x", *[None] * 15),
}


def test_the_host_calls_every_error_by_its_bare_name() -> None:
    """A module's name before it, for an extension the path of its folder, takes the message's place."""
    extension_module("nodes")
    for node, inputs in LATE.items():  # imports the rest of what it needs before it looks at its inputs
        with pytest.raises(ValueError):
            getattr(extension_module(f"nodes.{node}"), inputs[0]).execute(*inputs[1:])
    package, names = extension_module("nodes").__name__.rpartition(".")[0], {}
    for module in [m for name, m in sys.modules.items() if name.startswith(f"{package}.")]:
        for name, item in vars(module).items():
            error = isinstance(item, type) and issubclass(item, Exception) and not hasattr(builtins, name)
            if error and item.__module__ in ("builtins", module.__name__):
                names[name] = execution.full_type_name(item)
    assert {
        "WeightsError",
        "NotZImage",
        "NoSuchRoute",
        "EndpointError",
        "Diverged",
        "DataError",
    } <= names.keys()
    assert [name for bare, name in names.items() if name != bare] == []
