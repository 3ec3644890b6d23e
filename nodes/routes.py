"""What the web page asks the server: how many blocks a checkpoint has, and which presets there are."""

from __future__ import annotations

import asyncio
import sys
from functools import lru_cache

from aiohttp import web

from ..mmdit_core.header import CheckpointError, read_header
from ..mmdit_core.presets import PRESETS, Preset
from ..mmdit_core.recognise import count_blocks
from .host import folders


def register() -> None:
    """Add the routes to the server, where there is one."""
    # Without a server (in another program, in a test) nothing has imported its module.
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if instance is not None:
        instance.routes.get("/mmdit/blocks")(blocks)
        instance.routes.get("/mmdit/presets")(presets)


async def blocks(request: web.Request) -> web.Response:
    """GET ?name=FILE&folder=FOLDER: {"double": n, "single": n}, both null where that is not known.

    Only names that the host lists in that folder are looked at; without a folder, in those of MMDiTLoader.
    """
    path = folders.listed_path(request.query.get("name", ""), request.query.get("folder", ""))
    found = None
    if path is not None:
        status = path.stat()
        found = await asyncio.to_thread(_counted, str(path), status.st_mtime_ns, status.st_size)
    double, single = found or (None, None)
    return web.json_response({"double": double, "single": single})


async def presets(request: web.Request) -> web.Response:
    """GET: every preset, as the menu of a block strip shows it."""
    return web.json_response([_described(preset) for preset in PRESETS])


@lru_cache(maxsize=64)
def _counted(path: str, changed: int, size: int) -> tuple[int, int] | None:
    """The blocks in a file; its time and size are there so that a changed file is read again."""
    try:
        return count_blocks(read_header(path).tensors)
    except CheckpointError:
        return None


def _described(preset: Preset) -> dict[str, object]:
    actions = {control.action for control in preset.controls}
    strengths = {block: control.strength for control in preset.controls for block in control.blocks}
    return {
        "name": preset.name,
        "model": preset.model,
        "double": preset.double,
        "single": preset.single,
        "action": actions.pop() if len(actions) == 1 else None,
        "strengths": sorted(strengths.items()),
        "note": preset.note,
    }
