"""Which weights the host leaves outside the GPU's memory when a MODEL does not fit: those that the steps do not read.

The host ranks layers by size, and AdaLN's are the largest of a block: they would stay on the GPU, unused, while what
every step reads is brought in anew. Ranked last they are the first to stay outside, and cost one way in for each run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

ADALN = "adaLN_modulation"
# What the host sorts by, in types -> what comes last. Without dynamic loading one number, largest first; with it two,
# smallest first.
LAST = {(int,): (0,), (bool, int): (True, 1)}


@cache
def last_in(patcher_class: type) -> type:
    """The host's patcher class with these layers ranked last; the rest of it is the host's."""

    class Ranked(patcher_class):
        def _load_list(self, *args, **kwargs) -> Any:
            entries = super()._load_list(*args, **kwargs)
            return [_ranked(entry) for entry in entries] if isinstance(entries, list) else entries

    Ranked.__name__ = Ranked.__qualname__ = patcher_class.__name__  # the host's log and its cleaner go by it
    return Ranked


def _ranked(entry: Any) -> Any:
    """An entry of the host's list: (what it sorts by, bytes, name, layer, weights).

    In a later host it may be another one. Of that nothing is known: it stays as it is, and so does the host's order.
    """
    if type(entry) is not tuple or len(entry) < 5:
        return entry
    *order, _, name, _, _ = entry
    last = LAST.get(tuple(type(value) for value in order))
    if last is None or not isinstance(name, str) or ADALN not in name:
        return entry
    return (*last, *entry[-4:])
