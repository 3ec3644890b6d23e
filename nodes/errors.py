"""The error that a node raises when an input cannot be used."""

from __future__ import annotations

LONGEST = 1000  # characters of what was found: it may quote an input


class InputError(ValueError):
    """Names the node, the input, what was found and what would be right; each is an attribute."""

    def __init__(self, node: str, name: str, found: str, right: str):
        found = found if len(found) <= LONGEST else f"{found[:LONGEST]}..."
        self.node, self.name, self.found, self.right = node, name, found, right
        super().__init__(f"{node}: {name}: {found}. {right}")


def require(holds: object, node: str, name: str, found: str, right: str) -> None:
    """Raise an InputError unless `holds` is true.

    The two texts are built even where nothing is wrong, so they must be cheap and must not fail.
    """
    if not holds:
        raise InputError(node, name, found, right)
