"""Which weights the host leaves outside the GPU's memory when a MODEL does not fit: those that the steps do not read.

The host ranks layers by size, and AdaLN's are the largest of a block: they would stay on the GPU, unused, while what
every step reads is brought in anew. Ranked last they are the first to stay outside, and cost one way in for each run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

READ_ONCE = "adaLN_modulation"


@cache
def last_in(patcher_class: type) -> type:
    """The host's patcher class with these layers ranked last; the rest of it is the host's."""

    class Ranked(patcher_class):
        def _load_list(self, *args, **kwargs) -> list[Any]:
            return [_ranked(entry) for entry in super()._load_list(*args, **kwargs)]

    Ranked.__name__ = Ranked.__qualname__ = patcher_class.__name__  # the host's log and its cleaner go by it
    return Ranked


def _ranked(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    """An entry of the host's list: (what it sorts by, bytes, name, layer, weights), in this or in a later host.

    Without dynamic loading it sorts by one number, largest first; with it by two, smallest first. Of another form
    nothing is known: it stays as it is, and the model works as in the host's order.
    """
    if len(entry) < 5 or READ_ONCE not in str(entry[-3]):
        return entry
    ranks = {5: (0,), 6: (True, 1)}.get(len(entry))
    return entry if ranks is None else (*ranks, *entry[-4:])
