"""How the page gets the pack's scripts: `web/js/**/*.mjs`, which the host neither imports nor keeps fresh by itself."""

from __future__ import annotations

import sys
from pathlib import Path

from aiohttp import web

SCRIPTS = f"/extensions/{Path(__file__).parents[3].name}/js/"


def register() -> None:
    """Let the browser ask for each module whether it is still the same.

    The host forbids keeping .js files and says nothing about .mjs files: a browser then keeps them for days, and after
    an update of the pack it would run old modules beside new ones.
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if instance is not None:
        instance.app.on_response_prepare.append(_ask_again)


async def _ask_again(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith(SCRIPTS) and request.path.endswith(".mjs"):
        response.headers.setdefault("Cache-Control", "no-cache")
