"""StepCache: which predictions of a run are computed, and which are taken over from those before.

A model call with guidance computes two predictions, for the positive and the negative prompt. Both change slowly along
a rectified flow, and their difference more slowly still. So in some steps the negative is left out and made of the
positive and the difference that was kept, and in some nothing is computed at all.

What is done is decided by the noise level: the step of the run's levels that it lies in, and its place in the sampling.
All calls that a solver makes within one step are treated alike, however many it makes (one at the step's end belongs to
the next step), and a step that an adaptive solver tries again is treated as it was the first time. What is not there to
be taken over is computed.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

SLACK = 1e-5  # of noise levels, float32 in one place and float64 in another, and of places in the sampling

# What becomes of the negative prediction; LEFT_OUT: the positive stands for it, and guidance has no effect.
COMPUTED, REUSED, LEFT_OUT = "computed", "reused", "left out"


@dataclass(frozen=True)
class Turn:
    """What is done in a step: whether the positive prediction is computed, and what becomes of the negative."""

    positive: bool
    negative: str


@dataclass(frozen=True)
class StepCache:
    """What is computed of a run.

    Fields: every >= 1, of the steps one in so many is computed, the others go on from what was computed before;
    uncond_every >= 1, of the computed steps one in so many computes the negative too; start and end of guidance in
    [0, 1] of the sampling, outside it the negative is left out; warmup and tail in [0, 1], the shares of a run's
    steps before and from which all is computed; order of going on, 0 keeps what was there last, 1 draws a line through
    the last two; meant_for, the steps of the run that `every` and `warmup` are meant for, 0 for any: in a shorter one
    no more of the sampling is passed over at once, as many first steps are computed, and the last one.
    Raises: ValueError that names the field, what was found and what would be right.
    Source: Liu et al. 2025, "From reusing to forecasting: accelerating diffusion models with TaylorSeers", for the
        line; Kynkaanniemi et al. 2024, "Applying guidance in a limited interval", for the window.
    """

    every: int = 1
    uncond_every: int = 1
    start: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    tail: float = 1.0
    order: int = 1
    meant_for: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "uncond_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"StepCache: {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"StepCache: guidance is from {self.start} to {self.end}; 0 <= start <= end <= 1")
        for name in ("warmup", "tail"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"StepCache: {name} is {getattr(self, name)}; it must be in [0, 1]")
        if self.meant_for < 0:
            raise ValueError(f"StepCache: meant_for is {self.meant_for}; it must be at least 0")
        if self.order not in (0, 1):
            raise ValueError(f"StepCache: order is {self.order}; it must be 0 or 1")

    @property
    def has_window(self) -> bool:
        return self.start > 0 or self.end < 1

    @property
    def remembers(self) -> bool:
        """Whether a step depends on what was computed in earlier ones."""
        return self.every > 1 or self.uncond_every > 1

    @property
    def does_nothing(self) -> bool:
        return not self.has_window and not self.remembers

    def turn(self, step: int, steps: int, place: float) -> Turn:
        """Args: step from 0, of so many steps; place in the sampling, in [0, 1] (in a window: start in, end out)."""
        settled = math.ceil(self.warmup * max(steps, self.meant_for) - SLACK)
        tail = min(self.tail * steps, steps - 1) if self.meant_for else self.tail * steps
        every = math.ceil(self.every * min(1.0, steps / self.meant_for)) if self.meant_for else self.every
        since = step - settled
        in_full = since < 0 or step >= tail - SLACK
        positive = in_full or since % every == 0
        begun = self.start <= 0 or place >= self.start - SLACK
        ended = self.end < 1 and place >= self.end - SLACK
        if ended or not begun:
            return Turn(positive, LEFT_OUT)
        fresh = positive and (in_full or since // every % self.uncond_every == 0)
        return Turn(positive, COMPUTED if fresh else REUSED)

    def work(self, steps: int) -> float:
        """Share of a guided run's predictions that are computed, where steps lie evenly; one model call a step."""
        done, known = 0, False
        for step in range(steps):
            turn = self.turn(step, steps, step / steps)
            fresh = turn.negative == COMPUTED or (turn.negative == REUSED and not known)
            known |= fresh
            done += (turn.positive or fresh) + fresh
        return done / (2 * steps)

    def to_json(self) -> str:
        """One line that `from_json` takes back; fields at their defaults are left out."""
        return json.dumps({f.name: asdict(self)[f.name] for f in fields(self) if getattr(self, f.name) != f.default})

    @classmethod
    def from_json(cls, text: str) -> StepCache:
        """Raises: ValueError for what is no JSON object, or has other fields."""
        values: Any = json.loads(text)
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(names):
            raise ValueError(f"StepCache: expected a JSON object with some of {', '.join(names)}")
        return cls(**values)


@dataclass
class PredictionCount:
    """What a run computed, in predictions.

    Fields: cond and uncond, computed; extrapolated, cond that were not computed; reused and left_out, uncond that were
    not computed; without_uncond, predictions that had no uncond; other, what other nodes requested, all computed.
    """

    predictions: int = 0
    cond: int = 0
    uncond: int = 0
    extrapolated: int = 0
    reused: int = 0
    left_out: int = 0
    without_uncond: int = 0
    other: int = 0

    @property
    def work(self) -> float:
        """Share of what would have been computed without any step_cache."""
        whole = 2 * self.predictions - self.without_uncond + self.other
        return (self.cond + self.uncond + self.other) / whole if whole else 1.0


class Track:
    """A quantity at the last noise levels at which it was computed, two at most, and where it goes from there."""

    def __init__(self, order: int):
        self.order = order
        self.points: list[tuple[float, Tensor]] = []

    def add(self, sigma: float, value: Tensor) -> None:
        """Points at this level and below go: a solver came back to where it was before, and they lie ahead of it."""
        before = [point for point in self.points if point[0] > sigma * (1 + SLACK)]
        self.points = [*before[-1:], (sigma, value)]

    def at(self, sigma: float) -> Tensor | None:
        """The value to go on with at a level; None where nothing was computed before it."""
        if not self.points or sigma > self.points[-1][0] * (1 + SLACK):
            return None
        level, last = self.points[-1]
        if self.order == 0 or len(self.points) < 2:
            return last
        before, first = self.points[0]
        # No further than the two points lie apart: beyond that a line says little.
        return last + (last - first) * min(1.0, (level - sigma) / (before - level))


@dataclass
class _Kept:
    """What is kept of one kind of prediction: the positive, its distance to the negative, the step that used it."""

    ahead: Track
    apart: Track
    step: int


# with_negative -> velocities of the positive and the negative prompt, the latter None where it was not asked for
Compute = Callable[[bool], tuple[Tensor, Tensor | None]]


@dataclass
class StepCacheRun:
    """One run under a step cache: what it keeps, and what it counts. Never longer than the run, and never shared.

    levels [steps + 1]: the run's noise levels. Where they do not fall all is computed: an inversion must be exact.
    """

    step_cache: StepCache
    levels: Sequence[float]
    count: PredictionCount = field(default_factory=PredictionCount)

    def __post_init__(self) -> None:
        pairs = list(zip(self.levels, self.levels[1:], strict=False))
        if not pairs or not all(a > b for a, b in pairs):
            self.step_cache = StepCache()
        self._rising = [-level for level in self.levels]
        self._known: dict[Hashable, _Kept] = {}

    def _kept(self, seen: Hashable, step: int) -> _Kept:
        """What is kept of predictions of this kind. What a step did not ask for is gone in the next."""
        self._known = {key: kept for key, kept in self._known.items() if kept.step >= step - 1}
        new = _Kept(Track(self.step_cache.order), Track(self.step_cache.order), step)
        if seen is None:
            return new
        kept = self._known.setdefault(seen, new)
        kept.step = step
        return kept

    def step_of(self, sigma: float) -> int:
        """The step that begins at this noise level, or holds it."""
        steps = len(self.levels) - 1
        return min(max(0, bisect_left(self._rising, -sigma * (1 - SLACK)) - 1), max(0, steps - 1))

    def predict(
        self, sigma: float, place: float, compute: Compute, *, negative: bool, seen: Hashable = None
    ) -> tuple[Tensor, Tensor | None]:
        """The velocities for the positive and the negative prompt, computed or not.

        Args: sigma > 0, the noise level; place in the sampling, in [0, 1]; compute, the model; negative, whether it is
            wanted; seen, what the predictions are of (shape, active prompts, hooks): one goes on from those of its own
            kind alone; None for what cannot be compared: all that the window does not leave out is computed.
        Returns: [B, ...] each; the negative is None where it is not wanted.
        """
        step = self.step_of(sigma)
        kept = self._kept(seen, step)
        turn = self.step_cache.turn(step, max(1, len(self.levels) - 1), place)
        wanted = negative and turn.negative != LEFT_OUT
        ahead = None if turn.positive else kept.ahead.at(sigma)
        apart = kept.apart.at(sigma) if wanted and turn.negative == REUSED else None
        fresh = wanted and apart is None
        if ahead is None or fresh:
            ahead, behind = compute(fresh)
            kept.ahead.add(sigma, ahead)
            self.count.cond += 1
        else:
            behind = None
            self.count.extrapolated += 1
        self._counted(negative, wanted, fresh)
        if not negative:
            return ahead, None
        if fresh:
            assert behind is not None
            kept.apart.add(sigma, ahead - behind)
            return ahead, behind
        return ahead, ahead if apart is None else ahead - apart

    def _counted(self, negative: bool, wanted: bool, fresh: bool) -> None:
        self.count.predictions += 1
        name = "without_uncond" if not negative else "left_out" if not wanted else "uncond" if fresh else "reused"
        setattr(self.count, name, getattr(self.count, name) + 1)
