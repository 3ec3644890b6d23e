"""Texts on nodes and events, sent to the frontend while a node runs and after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def current_server() -> Any | None:
    """ComfyUI's running server, None in a process without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def show_text(node_id: str | None, text: str) -> None:
    """Show a text on a node to the client that queued the run; nothing without a server or a client."""
    server = _server_with_client()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id, server.client_id)


def send_event(node_id: str | None, event: str, data: Mapping[str, Any]) -> None:
    """Send an event about a node to the client that queued the run; nothing without a server or a client."""
    server = _server_with_client()
    if server is not None and node_id is not None:
        server.send_sync(event, {"node": node_id, **data}, server.client_id)


def _server_with_client() -> Any | None:
    """The server, if a client queued the run: without a client id ComfyUI sends a message to every open page."""
    server = current_server()
    return server if server is not None and server.client_id is not None else None
