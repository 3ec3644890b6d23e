"""The frontend's HTTP routes: the model in a file, presets, token counts of a prompt, sigmas of a sampler's inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from aiohttp import web

from ..mmdit_core.checkpoints import gguf
from ..mmdit_core.checkpoints.blocks import FileBlocks, find_blocks, find_variant
from ..mmdit_core.checkpoints.bounded_json import parse
from ..mmdit_core.checkpoints.errors import CheckpointError
from ..mmdit_core.checkpoints.header import read_header
from ..mmdit_core.control.preset_files import MeasuredPreset
from ..mmdit_core.control.presets import FILLED_PRESETS, PRESETS, FilledPreset, Preset
from .comfyui.frontend import user_presets
from .comfyui.frontend.messages import current_server
from .comfyui.loading import folders
from .comfyui.loading.other_models import detect, family_label
from .comfyui.text import token_counts
from .comfyui.text.conditioning import EMBEDDING
from .comfyui.text.limits import MOST_CHARACTERS, why_too_much
from .sampler.live_curve import live_curve
from .text import T5_LENGTHS, TRAINED_T5_TOKENS, WIDGETS

MAX_BODY = 1_000_000  # bytes
# What a malformed body raises: wrong types, missing keys, infinite numbers, an unknown charset, damaged compression.
BAD_REQUEST = (ValueError, LookupError, TypeError, AttributeError, OverflowError, web.RequestPayloadError)


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

    Returns: {"sections": [{"name": "double", "count": 19}, ...], "refiners": [...], "double": 19, "single": 38,
        "family": "FLUX.1", "variant": null}: the kinds of its blocks in order, the blocks that run before them and are
        not counted, the two numbers that block lists are written in, the model's family, and its name where presets
        need it, as "SD3.5 Medium"; null for what is unknown.
    Only files that ComfyUI lists are read: in that folder or, without one and for "*", in those of MMDiTLoader.
    """
    return web.json_response(await _model_in(request.query.get("name", ""), request.query.get("folder", "")))


async def presets(request: web.Request) -> web.Response:
    """GET: all presets, for the menu of a block strip.

    Returns: a list; the `kind` of an entry is "published", "filled" (published, with the node's inputs), "measured" (of
        the user's files, with the node's inputs) or "unreadable" (a file).
    """
    folder = user_presets.folder_of(request)
    found, unreadable = await asyncio.to_thread(user_presets.read_all, folder) if folder else ((), {})
    return web.json_response(
        [
            *(_preset(preset) for preset in PRESETS),
            *(_filled(preset) for preset in FILLED_PRESETS),
            *(_measured(preset, file) for file, preset in found),
            *({"kind": "unreadable", "name": file, "reason": reason} for file, reason in unreadable.items()),
        ]
    )


async def tokens(request: web.Request) -> web.Response:
    """POST TripleTextEncode's texts and t5_length by name.

    Returns: {"prompt": [...], "negative": [...]}, one entry for each encoder: label, used, chunks, cut, too_long; {} if
        the texts are too long to be counted while they are typed, or name a textual inversion, whose file is read in
        a run alone.
    """
    try:
        body = await _body(request)
        texts = {name: body.get(name, "") for name in ("prompt", "negative", *WIDGETS.values())}
        limit = T5_LENGTHS[body.get("t5_length") or "auto"]
    except BAD_REQUEST:
        return web.Response(status=400, text="send texts by name, and one of the node's values of t5_length")
    if not all(isinstance(text, str) for text in texts.values()):
        return web.Response(status=400, text="each text must be a string")
    total = "\n".join(texts.values())
    if len(total) > MOST_CHARACTERS or any(map(why_too_much, texts.values())) or EMBEDDING.search(total):
        return web.json_response({})
    return web.json_response(await asyncio.to_thread(_count_tokens, texts, limit))


async def curve(request: web.Request) -> web.Response:
    """POST FlowMatchingSampler's inputs with the known facts of its model, image and block controls.

    Body and answer as for `live_curve`; the body's model is {"name", "folder"} as for /mmdit/blocks, or null.
    """
    try:
        body = await _body(request)
        file = body.get("model") or {}
        path = folders.listed_path(file.get("name", ""), file.get("folder", ""))
        facts = {**body, "own_loader": not file.get("folder")}
        return web.json_response(await asyncio.to_thread(live_curve, facts, path))
    except BAD_REQUEST:
        return web.Response(status=400, text="send the node's inputs by name, and windows with a start and an end")


async def _body(request: web.Request) -> Any:
    """The JSON of a request. Raises: HTTPRequestEntityTooLarge before more than MAX_BODY is read; BAD_REQUEST."""
    text = bytearray()
    async for part in request.content.iter_chunked(2**16):
        text += part
        if len(text) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(text))
    return parse(text.decode(request.charset or "utf-8"))


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


async def _model_in(name: str, folder: str) -> dict[str, Any]:
    """The answer of /mmdit/blocks for a file that ComfyUI lists."""
    path = folders.listed_path(name, folder)
    if path is None:
        return _as_json(None, None, None)
    try:
        status = path.stat()
    except OSError:  # gone since it was listed
        return _as_json(None, None, None)
    return _as_json(*await asyncio.to_thread(_read_model, str(path), status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _read_model(path: str, modified: int, size: int) -> tuple[FileBlocks | None, str | None, str | None]:
    """Blocks, family and variant of a file; with time and size in the key, a changed file is read again."""
    try:
        if path.endswith(gguf.SUFFIX):  # its shapes are not the model's, so the family stays unknown
            names = gguf.tensor_names(path)
            return find_blocks(names), None, find_variant(names)
        header = read_header(path)
    except CheckpointError:
        return None, None, None
    kind = detect(header)
    found, variant = find_blocks(header.tensors), find_variant(header.tensors)
    try:
        return found, None if kind is None else family_label(kind), variant
    except LookupError:  # a family that the nodes do not act on
        return found, None, variant


def _as_json(found: FileBlocks | None, family: str | None, variant: str | None) -> dict[str, Any]:
    if found is None:
        nothing = dict.fromkeys(("double", "single"))
        return {"sections": [], "refiners": [], **nothing, "family": family, "variant": variant}
    single = sum(count for name, count in found.sections if name == "single")
    total = sum(count for _, count in found.sections)
    return {
        "sections": [{"name": name, "count": count} for name, count in found.sections],
        "refiners": [{"name": name, "count": count} for name, count in found.refiners],
        "double": total - single,
        "single": single,
        "family": family,
        "variant": variant,
    }


def _preset(preset: Preset) -> dict[str, object]:
    actions = {control.action for control in preset.controls}
    strengths = {block: control.strength for control in preset.controls for block in control.blocks}
    return {
        "kind": "published",
        "name": preset.name,
        "model": preset.model,
        "double": preset.double,
        "single": preset.single,
        "action": actions.pop() if len(actions) == 1 else None,
        "strengths": sorted(strengths.items()),
        "note": preset.note,
    }


def _filled(preset: FilledPreset) -> dict[str, object]:
    return {
        "kind": "filled",
        "name": preset.name,
        "from": "published",
        "action": preset.action,
        "family": preset.model.family,
        "double": preset.model.double,
        "single": preset.model.single,
        "widgets": dict(preset.widgets),
        "made_for": preset.made_for,
        "notes": dict(preset.notes),
    }


def _measured(preset: MeasuredPreset, file: str) -> dict[str, object]:
    widgets = {name: getattr(preset, name) for name in ("blocks", "branch", "strength", "mode")}
    evidence = preset.evidence
    return {
        "kind": "measured",
        "name": preset.name,
        "from": file,
        "action": preset.action,
        "family": preset.family,
        "double": preset.double,
        "single": preset.single,
        "widgets": {name: value for name, value in widgets.items() if value is not None},
        "made_for": preset.made_for,
        "file": preset.file,
        "evidence": None if evidence is None else asdict(evidence),
    }
