"""The frontend's HTTP routes: blocks of a file, presets, token counts of a prompt, sigmas of a sampler's inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aiohttp import web

from ..mmdit_core.checkpoints.blocks import FileBlocks, find_blocks
from ..mmdit_core.checkpoints.errors import CheckpointError
from ..mmdit_core.checkpoints.header import read_header
from ..mmdit_core.control.presets import PRESETS, Preset
from .comfyui.frontend.messages import current_server
from .comfyui.loading import folders
from .comfyui.text import token_counts
from .sampler.live_curve import live_curve
from .text import T5_LENGTHS, TRAINED_T5_TOKENS, WIDGETS

MAX_TEXT = 50_000  # characters of a prompt that is counted while it is typed
# What a malformed body raises: wrong types, missing keys, infinite numbers, deep nesting, an unknown charset.
BAD_REQUEST = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def register() -> None:
    """Add the routes to ComfyUI's server; nothing in a process without one."""
    server = current_server()
    if server is not None:
        server.routes.get("/mmdit/blocks")(blocks)
        server.routes.get("/mmdit/presets")(presets)
        server.routes.post("/mmdit/tokens")(tokens)
        server.routes.post("/mmdit/curve")(curve)


async def blocks(request: web.Request) -> web.Response:
    """GET ?name=FILE&folder=FOLDER: the blocks of a file's model.

    Returns: {"sections": [{"name": "double", "count": 19}, ...], "refiners": [...], "double": 19, "single": 38}: the
        kinds of its blocks in order, the blocks that run before them and are not counted, and the two numbers that
        block lists are written in; both null if the model is unknown.
    Only files that ComfyUI lists are read: in that folder or, without one, in those of MMDiTLoader.
    """
    path = folders.listed_path(request.query.get("name", ""), request.query.get("folder", ""))
    found = None
    if path is not None:
        status = path.stat()
        found = await asyncio.to_thread(_blocks, str(path), status.st_mtime_ns, status.st_size)
    return web.json_response(_as_json(found))


async def presets(request: web.Request) -> web.Response:
    """GET: all presets, for the menu of a block strip."""
    return web.json_response([_preset(preset) for preset in PRESETS])


async def tokens(request: web.Request) -> web.Response:
    """POST TripleTextEncode's texts and t5_length by name.

    Returns: {"prompt": [...], "negative": [...]}, one entry for each encoder: label, used, chunks, cut, too_long; {} if
        the texts are longer than MAX_TEXT.
    """
    try:
        body = await request.json()
        texts = {name: body.get(name, "") for name in ("prompt", "negative", *WIDGETS.values())}
        limit = T5_LENGTHS[body.get("t5_length") or "auto"]
    except BAD_REQUEST:
        return web.Response(status=400, text="send texts by name, and one of the node's values of t5_length")
    if not all(isinstance(text, str) for text in texts.values()):
        return web.Response(status=400, text="each text must be a string")
    if sum(map(len, texts.values())) > MAX_TEXT:
        return web.json_response({})
    return web.json_response(await asyncio.to_thread(_count_tokens, texts, limit))


async def curve(request: web.Request) -> web.Response:
    """POST FlowMatchingSampler's inputs with the known facts of its model, image and block controls.

    Body and answer as for `live_curve`; the body's model is {"name", "folder"} as for /mmdit/blocks, or null.
    """
    try:
        body = await request.json()
        file = body.get("model") or {}
        path = folders.listed_path(file.get("name", ""), file.get("folder", ""))
        facts = {**body, "own_loader": not file.get("folder")}
        return web.json_response(await asyncio.to_thread(live_curve, facts, path))
    except BAD_REQUEST:
        return web.Response(status=400, text="send the node's inputs by name, and windows with a start and an end")


def _count_tokens(texts: Mapping[str, str], limit: int | None) -> dict[str, list[dict[str, Any]]]:
    own = {key: texts[widget] for key, widget in WIDGETS.items()}
    return {
        title: [
            {
                "label": found.label,
                "used": found.used,
                "chunks": found.chunks,
                "cut": list(found.cut),
                "too_long": found.key == "t5xxl" and found.used > TRAINED_T5_TOKENS,
            }
            for found in token_counts.count(texts[title], prompts, limit)
        ]
        for title, prompts in (("prompt", own), ("negative", {}))
    }


@lru_cache(maxsize=64)
def _blocks(path: str, modified: int, size: int) -> FileBlocks | None:
    """The blocks in a file; time and size are part of the cache's key, so that a changed file is read again."""
    try:
        return find_blocks(read_header(path).tensors)
    except CheckpointError:
        return None


def _as_json(found: FileBlocks | None) -> dict[str, Any]:
    """The answer of /mmdit/blocks."""
    if found is None:
        return {"sections": [], "refiners": [], "double": None, "single": None}
    single = sum(count for name, count in found.sections if name == "single")
    total = sum(count for _, count in found.sections)
    return {
        "sections": [{"name": name, "count": count} for name, count in found.sections],
        "refiners": [{"name": name, "count": count} for name, count in found.refiners],
        "double": total - single,
        "single": single,
    }


def _preset(preset: Preset) -> dict[str, object]:
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
