"""What a node tells the page while and after it runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def show_text(node_id: str | None, text: str) -> None:
    """Show a text on a node; without a server, nothing."""
    server = _server()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


def send_event(node_id: str | None, event: str, data: Mapping[str, Any]) -> None:
    """Send an event of ours, about a node, to the page that queued the run; without a server, nothing."""
    server = _server()
    if server is not None and node_id is not None:
        server.send_sync(event, {"node": node_id, **data}, server.client_id)


def _server() -> Any:
    # The host's server module is not there when its other modules are used by themselves.
    module = importlib.import_module("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)
