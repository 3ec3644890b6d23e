"""Offload the AdaLN layers first where a MODEL does not fit in GPU memory.

ComfyUI orders layers by size, and AdaLN's are the largest of a block: they would stay on the GPU, unused, while weights
that every step reads are streamed. With an AdaLN cache a run reads them once, so they are the first to be offloaded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..modulation import names_last

ADALN = "adaLN_modulation"
# The types of ComfyUI's sort key -> the key that comes last. Without dynamic loading it is one number, largest first;
# with dynamic loading two, smallest first.
LAST = {(int,): (0,), (bool, int): (True, 1)}


@cache
def adaln_last(patcher_class: type) -> type:
    """A subclass of ComfyUI's patcher that loads the AdaLN layers last."""

    class Ordered(patcher_class):
        def _load_list(self, *args, **kwargs) -> Any:
            entries = super()._load_list(*args, **kwargs)
            last = (*names_last(self.model), ADALN) if hasattr(self, "model") else (ADALN,)
            return [_ordered(entry, last) for entry in entries] if isinstance(entries, list) else entries

    Ordered.__name__ = Ordered.__qualname__ = patcher_class.__name__  # ComfyUI's log and its cleaner go by the name
    return Ordered


def load_last(clone):
    """A clone of a MODEL that loads its modulation layers last. It is changed; its class is of this clone alone."""
    if type(clone)._load_list.__qualname__.startswith(adaln_last.__name__):
        return clone
    kind: Any = type(clone)
    clone.__class__ = adaln_last(kind)
    return clone


def _ordered(entry: Any, names: tuple[str, ...]) -> Any:
    """An entry of the load list, (*sort key, bytes, name, layer, weights). An entry of another form is unchanged."""
    if type(entry) is not tuple or len(entry) < 5:
        return entry
    *key, _, name, _, _ = entry
    last = LAST.get(tuple(type(value) for value in key))
    if last is None or not isinstance(name, str) or not _is_last(name, names):
        return entry
    return (*last, *entry[-4:])


def _is_last(name: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of these, or in one of them."""
    return any(name == each or name.startswith(f"{each}.") or (each == ADALN and ADALN in name) for each in names)
