"""Cache headers for the pack's scripts `web/js/**/*.mjs`."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from .messages import current_server

SCRIPTS = f"/extensions/{Path(__file__).parents[3].name}/js/"


def register() -> None:
    """Make browsers validate each script before use.

    ComfyUI sends no-cache for .js files only. Without it, browsers keep .mjs files for days, and an update of the pack
    would run old and new modules together.
    """
    server = current_server()
    if server is not None:
        server.app.on_response_prepare.append(_set_no_cache)


async def _set_no_cache(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith(SCRIPTS) and request.path.endswith(".mjs"):
        response.headers.setdefault("Cache-Control", "no-cache")
