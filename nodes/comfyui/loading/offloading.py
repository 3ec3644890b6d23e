"""Offload the AdaLN layers first where a MODEL does not fit in GPU memory.

ComfyUI orders layers by size, and AdaLN's are the largest of a block: they would stay on the GPU, unused, while weights
that every step reads are streamed. With an AdaLN cache a run reads them once, so they are the first to be offloaded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

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
            return [_ordered(entry) for entry in entries] if isinstance(entries, list) else entries

    Ordered.__name__ = Ordered.__qualname__ = patcher_class.__name__  # ComfyUI's log and its cleaner go by the name
    return Ordered


def _ordered(entry: Any) -> Any:
    """An entry of the load list, (*sort key, bytes, name, layer, weights). An entry of another form is unchanged."""
    if type(entry) is not tuple or len(entry) < 5:
        return entry
    *key, _, name, _, _ = entry
    last = LAST.get(tuple(type(value) for value in key))
    if last is None or not isinstance(name, str) or ADALN not in name:
        return entry
    return (*last, *entry[-4:])
