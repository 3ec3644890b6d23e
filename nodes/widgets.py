"""Input widgets that several nodes share, and the check of the values that come from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import InputError


def check_values(node: str, inputs: Mapping[str, tuple[Any, ...]], given: Mapping[str, Any]) -> None:
    """Refuse what the widgets would not allow: a number that is out of range or none, a choice that there is not.

    Args: inputs, as INPUT_TYPES has them; given, values by name.
    Raises: InputError.
    """
    for name, value in given.items():
        kind, options = inputs[name][0], inputs[name][1]
        if isinstance(kind, list) and value not in kind:
            raise InputError(node, name, f"{value!r} is unknown", f"Choose one of {', '.join(kind)}")
        if kind not in ("INT", "FLOAT") or isinstance(value, bool):
            continue
        low, high = options["min"], options.get("max", math.inf)
        if not low <= value <= high:  # nor is NaN
            raise InputError(node, name, f"{value:g}", f"Set a number from {low:g} to {high:g}")
