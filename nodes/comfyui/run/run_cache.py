"""The run cache: the states of the last run, from which the next run starts at the first step that a change affects."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

LIMIT = 1 << 30  # bytes of states; beyond it, not every step's are kept


class RunCache:
    """The states of the last run, on the CPU, each before one of its segments. They are dropped with the model."""

    def __init__(self) -> None:
        self._model: weakref.ref | None = None
        self._key: Any = None
        self._segments: tuple[Any, ...] = ()
        self._states: dict[int, Any] = {}

    def open(self, model, key: Any, segments: Sequence[Any]) -> None:
        """Keep the states of the last run that are valid for a new run, too.

        Args: model, ComfyUI's MODEL; key, what decides every step; segments, for each what decides it alone.
        """
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._segments, segments, strict=False))
        valid = sum(1 for _ in same) if self._key is not None and self._key == key else -1
        self._states = {index: state for index, state in self._states.items() if index <= valid}
        self._model = weakref.ref(model.model, self._model_gone)
        self._key, self._segments = key, tuple(segments)

    def clear(self) -> None:
        """Drop all states."""
        self._states, self._key = {}, None

    def latest(self) -> tuple[int, Any] | None:
        """The last segment that the run can start with, and the state before it."""
        return max(self._states.items(), key=lambda item: item[0], default=None)

    def keep(self, index: int, state: Callable[[], Any], size: int) -> None:
        """Keep the state before a segment; the first and the last always, the others as far as there is room.

        Args: state makes it; size in bytes.
        """
        every = max(1, math.ceil(size * (len(self._segments) + 1) / LIMIT))
        if index not in self._states and (index % every == 0 or index == len(self._segments)):
            self._states[index] = state()

    def _model_gone(self, model: weakref.ref) -> None:
        if model is self._model:
            self.clear()
