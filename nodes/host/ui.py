"""Words that a node shows while and after it runs."""

from __future__ import annotations

import importlib


def show_text(node_id: str | None, text: str) -> None:
    """Show a text on a node; without a server, nothing."""
    # The host's server module is not there when its other modules are used by themselves.
    server = getattr(importlib.import_module("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)
