"""Scores of cells by attribute, and paired differences to the baseline with intervals over prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from attributes.judge import wilson

from .cells import Cell

OVERALL, ALL = "overall", "all"
Scores = dict[str, dict[int, float]]  # attribute -> prompt -> mean over its images, in [0, 1]


@dataclass(frozen=True)
class Interval:
    """A mean in percentage points with its 95% interval, over n prompts."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"

    @property
    def plain(self) -> str:
        """As text without a sign, for a share."""
        return f"{self.mean:.1f}% ({self.low:.1f} to {self.high:.1f})"


def scores(cells: Iterable[Cell]) -> Scores:
    """The scores by attribute and prompt.

    An image's score of an attribute is the mean of its readable answers about it. `overall` is the mean of an image's
    attributes. `all` is 1 if every answer is yes, for images with readable answers of a judge that says yes or no. Two
    images of a prompt are not independent: they are averaged first.
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        by_attribute: dict[str, list[float]] = defaultdict(list)
        for attribute, value in cell.answers:
            if value is not None:
                by_attribute[attribute].append(value)
        means = {attribute: float(np.mean(values)) for attribute, values in by_attribute.items()}
        if means:
            means[OVERALL] = float(np.mean(list(means.values())))
            if all(value in (0, 1) for _, value in cell.answers):
                means[ALL] = float(all(value == 1 for _, value in cell.answers))
        for attribute, value in means.items():
            found[attribute][cell.prompt].append(value)
    return {name: {prompt: float(np.mean(each)) for prompt, each in by.items()} for name, by in found.items()}


def shares(cells: Iterable[Cell]) -> dict[str, Interval]:
    """The mean score of each attribute, with Wilson's interval where every score is 0 or 1."""
    return {name: _share(list(by.values())) for name, by in scores(cells).items()}


def _share(values: Sequence[float]) -> Interval:
    if set(values) <= {0.0, 1.0}:
        low, high = wilson(int(sum(values)), len(values))
        return Interval(100 * float(np.mean(values)), 100 * low, 100 * high, len(values))
    return interval(values, low=0, high=100)


def gains(cells: Iterable[Cell], baseline: Iterable[Cell]) -> dict[str, Interval]:
    """The mean difference to the baseline of each attribute, over the prompts that both have."""
    found, reference = scores(cells), scores(baseline)
    by_name = {name: differences(found, reference, name) for name in found if name in reference}
    return {name: interval(values) for name, values in by_name.items() if values}


def differences(found: Scores, reference: Scores, name: str) -> list[float]:
    """The differences of an attribute's scores by prompt."""
    return [value - reference[name][prompt] for prompt, value in found[name].items() if prompt in reference[name]]


def interval(values: Sequence[float], low: float = -100, high: float = 100) -> Interval:
    """The mean of values in [-1, 1] as percentage points with Student's 95% interval, within `low` and `high`."""
    points = 100 * np.asarray(values, dtype=np.float64)
    mean = float(points.mean())
    if len(points) < 2:
        return Interval(mean, low, high, len(points))
    half = float(stats.t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / len(points) ** 0.5)
    return Interval(mean, max(low, mean - half), min(high, mean + half), len(points))


def unreadable(cells: Iterable[Cell]) -> tuple[int, int]:
    """How many answers of how many could not be read."""
    values = [value for cell in cells for _, value in cell.answers]
    return sum(value is None for value in values), len(values)


def by_attribute(found: Mapping[str, Interval]) -> list[str]:
    """The attributes in the order of reports: those of the judge, then overall and all."""
    return [*sorted(set(found) - {OVERALL, ALL}), *(name for name in (OVERALL, ALL) if name in found)]
