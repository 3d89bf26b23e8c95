"""An output that cannot be used: whoever uses it says why."""

from __future__ import annotations

from comfy_execution.graph_utils import ExecutionBlocker


def blocked(reason: str) -> ExecutionBlocker:
    """Stops the nodes behind it; the page shows the reason."""
    return ExecutionBlocker(reason)
