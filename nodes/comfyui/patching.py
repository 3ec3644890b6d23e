"""How a node of this pack leaves something on a MODEL: as an option of its clone, with the wrappers that act on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def attach(model, key: str, value: Any, wrappers: Mapping[str, Callable]):
    """A clone of the MODEL with a value in its transformer_options; the MODEL that came in stays as it is.

    Args: key, of the value and of the wrappers; wrappers, by the host's kind of wrapper, each put there once, however
        often a value is set.
    """
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    if key not in options:
        for kind, wrapper in wrappers.items():
            clone.add_wrapper_with_key(kind, key, wrapper)
    options[key] = value
    return clone


def detach(model, key: str, wrappers: Mapping[str, Callable]):
    """A clone of the MODEL without what `attach` left there under a key."""
    clone = model.clone()
    if clone.model_options["transformer_options"].pop(key, None) is not None:
        for kind in wrappers:
            clone.remove_wrappers_with_key(kind, key)
    return clone
