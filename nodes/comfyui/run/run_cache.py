"""The states of the last run, for the next one to begin with."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

LIMIT = 1 << 30  # bytes of states that are kept; beyond it, not every step's


class Kept:
    """The states of the last run, on the CPU, each before one of its pieces. They go when the model goes."""

    def __init__(self) -> None:
        self._model: weakref.ref | None = None
        self._key: Any = None
        self._pieces: tuple[Any, ...] = ()
        self._states: dict[int, Any] = {}

    def open(self, model, key: Any, pieces: Sequence[Any]) -> None:
        """Keep of the last run what holds for a new one, too.

        Args: model, the host's MODEL; key, all that decides every step; pieces, for each what decides it alone.
        """
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._pieces, pieces, strict=False))
        reach = sum(1 for _ in same) if self._key is not None and self._key == key else -1
        self._states = {number: state for number, state in self._states.items() if number <= reach}
        self._model = weakref.ref(model.model, self._forget)
        self._key, self._pieces = key, tuple(pieces)

    def _forget(self, model: weakref.ref) -> None:
        if model is self._model:
            self._states, self._key = {}, None

    def latest(self) -> tuple[int, Any] | None:
        """The furthest piece that can be begun with, and the state before it."""
        return max(self._states.items(), key=lambda item: item[0], default=None)

    def keep(self, number: int, state: Callable[[], Any], size: int) -> None:
        """Keep the state before a piece, unless there is no room for each: the first and the last are always kept."""
        every = max(1, math.ceil(size * (len(self._pieces) + 1) / LIMIT))
        if number not in self._states and (number % every == 0 or number == len(self._pieces)):
            self._states[number] = state()
