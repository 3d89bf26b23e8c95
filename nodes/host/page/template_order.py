"""The order in which the page lists this extension's templates."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from server import PromptServer

PACK = Path(__file__).absolute().parents[3].name  # as ComfyUI calls it: a link is not followed
LIST = "/workflow_templates"


@web.middleware
async def by_name(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """ComfyUI lists templates as the folder happens to hold them; ours are numbered."""
    response = await handler(request)
    if request.path in (LIST, f"/api{LIST}") and isinstance(response, web.Response):
        listed = json.loads(response.text)
        if PACK in listed:
            listed[PACK].sort()
            response.text = json.dumps(listed)
    return response


def order_templates() -> None:
    """To be called while the server is made, before it starts."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.app.middlewares.append(by_name)
