"""What the web page asks the server: a file's blocks, the presets, a prompt's tokens, the curve of noise levels."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aiohttp import web

from ..mmdit_core.checkpoints.detect import count_blocks
from ..mmdit_core.checkpoints.errors import CheckpointError
from ..mmdit_core.checkpoints.header import read_header
from ..mmdit_core.control.presets import PRESETS, Preset
from .comfyui.loading import folders
from .comfyui.text import token_counts
from .sampler.live_curve import live_curve
from .text import T5_LENGTHS, TRAINED_T5_TOKENS, WIDGETS

LONGEST_TEXT = 50_000  # characters that are counted while somebody types


def register() -> None:
    """Add the routes to the server, where there is one."""
    # Without a server (in another program, in a test) nothing has imported its module.
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if instance is not None:
        instance.routes.get("/mmdit/blocks")(blocks)
        instance.routes.get("/mmdit/presets")(presets)
        instance.routes.post("/mmdit/tokens")(tokens)
        instance.routes.post("/mmdit/curve")(curve)


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


async def tokens(request: web.Request) -> web.Response:
    """POST the texts of TripleTextEncode by their inputs' names, and t5_length.

    Returns: {"prompt": [...], "negative": [...]} with label, used, chunks, cut and too_long of each encoder; {} for
    texts that are too long to be counted at every key.
    """
    try:
        given = await request.json()
        texts = {name: given.get(name, "") for name in ("prompt", "negative", *WIDGETS.values())}
        limit = T5_LENGTHS[given.get("t5_length") or "auto"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return web.Response(status=400, text="texts by name, and a t5_length of the node's")
    if not all(isinstance(text, str) for text in texts.values()):
        return web.Response(status=400, text="every text must be one")
    if sum(map(len, texts.values())) > LONGEST_TEXT:
        return web.json_response({})
    return web.json_response(await asyncio.to_thread(_counts, texts, limit))


async def curve(request: web.Request) -> web.Response:
    """POST FlowMatchingSampler's dials and what is known of its model, its picture and its block controls.

    Asks and returns as `live_curve`; of the model {"name", "folder"} as for /mmdit/blocks, or null.
    """
    try:
        given = await request.json()
        file = given.get("model") or {}
        path = folders.listed_path(file.get("name", ""), file.get("folder", ""))
        known = {**given, "own_loader": not file.get("folder")}
        return web.json_response(await asyncio.to_thread(live_curve, known, path))
    except (ValueError, KeyError, TypeError, AttributeError):
        return web.Response(status=400, text="the node's dials by name, and windows with a start and an end")


def _counts(texts: Mapping[str, str], limit: int | None) -> dict[str, list[dict[str, Any]]]:
    own = {key: texts[widget] for key, widget in WIDGETS.items()}
    both = {"prompt": own, "negative": {}}
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
        for title, prompts in both.items()
    }


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
