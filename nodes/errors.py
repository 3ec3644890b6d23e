"""What a node says when an input cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """Names the node, the input, what was found and what would be right."""

    def __init__(self, node: str, name: str, found: str, right: str):
        super().__init__(f"{node}: {name}: {found}. {right}")
