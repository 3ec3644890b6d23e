"""Block analysis: one operation on one block at a time, measured by its distance to the baseline image.

All of it is plain data: the plan of a sweep, the distances and the report. The caller samples the images.
Source: arXiv 2601.02211, for the three operations and the strength 2 of the boost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .control.spec import BlockControl
from .flow.window import Window

OPERATIONS = ("skip", "disable", "boost")
WINDOWS = {"whole": Window(), "early": Window(0.0, 0.5), "late": Window(0.5, 1.0)}

METRIC = (
    "relative L2: the norm of (image - baseline) divided by the norm of the baseline, over all values of one latent, "
    "or of one decoded image in [0, 1]; the mean over the seeds"
)
OF_PROMPTS = METRIC.replace("the mean over the seeds", "the mean over the prompts and their seeds")
ONE_AT_A_TIME = (
    "Every block was measured alone. Several skipped blocks can change the image more or less than these distances "
    "suggest: check an image with the whole list skipped before you use the list."
)
EQUAL_BLOCKS = (
    "The speedup assumes that all blocks take the same time and that nothing else takes any. It holds for a skip on "
    "both branches in all steps."
)
BY_JUDGE = "The smallest loss of images that are right in all attributes first; of equal losses, the smallest distance."
# The sign of n differences is the same by chance with a probability of 2 ** (1 - n), below 5% from 6 on.
MIN_PAIRS = 6
# What a nearly free skip changes at most: a convention. Independent latents of one norm differ by sqrt(2). On the small
# model, with the prompt and seed of the help page's image, the skip that keeps all shapes has 0.13, the next one 0.57.
MOST_DISTANCE = 0.25  # in latents
MOST_LOSS = 5.0  # percentage points of the images that are right in all attributes
JUDGED_FROM = 50.0  # percent of the baseline images that are right; with fewer, a judge cannot see most losses
LAST_BLOCK = "A boost of the last block scales text that no later block reads: its distance is rounding."
MOST_LISTED = 256  # prompts; the report of more lists no values of each
NOT_FINITE = "A distance of null: the image has values that are not finite numbers."


@dataclass(frozen=True)
class Cell:
    """One measurement of a sweep: an operation of OPERATIONS on one block in a window of WINDOWS.

    strength is the boost's; it is 1 for the other operations.
    """

    operation: str
    block: int
    window: str = "whole"
    strength: float = 1.0

    def control(self) -> BlockControl:
        """The operation as in the paper: disable onward, residual boost, both branches, all text tokens."""
        return BlockControl(self.operation, (self.block,), strength=self.strength, window=WINDOWS[self.window])


def plan(
    operations: Iterable[str], blocks: Sequence[int], *, strength: float = 2.0, early_late: bool = False
) -> tuple[Cell, ...]:
    """List the cells of a sweep, whole runs before halves, so that a cancelled sweep has the main result.

    Args: operations, from OPERATIONS; blocks >= 0; strength of the boosts; early_late, also measure both halves.
    Raises: ValueError for an unknown operation.
    """
    chosen = tuple(operations)
    unknown = [operation for operation in chosen if operation not in OPERATIONS]
    if unknown:
        raise ValueError(f"plan: operation {unknown[0]!r} is unknown; choose one of {', '.join(OPERATIONS)}")
    return tuple(
        Cell(operation, block, window, strength if operation == "boost" else 1.0)
        for windows in ((("whole",), ("early", "late")) if early_late else (("whole",),))
        for operation in chosen
        for window in windows
        for block in blocks
    )


def relative_l2(found: Tensor, baseline: Tensor) -> float:
    """Compute |found - baseline| / |baseline| over all values, in float64.

    Args: two tensors of one shape. A baseline of zeros (a black image) has no scale; ones are the scale then.
    Raises: ValueError if the shapes differ.
    """
    if found.shape != baseline.shape:
        raise ValueError(f"relative_l2: shapes are {list(found.shape)} and {list(baseline.shape)}; they must be equal")
    reference = baseline.double()
    scale = reference.norm().item() or math.sqrt(reference.numel())
    return (found.double() - reference).norm().item() / scale


@dataclass
class Distances:
    """The distances of one cell to the baseline, one for each finished seed, prompt by prompt."""

    latent: list[float] = field(default_factory=list)
    image: list[float] = field(default_factory=list)


def mean(values: Sequence[float]) -> float | None:
    """Average the values. Returns: None if there are none, or if the average is not finite."""
    average = sum(values) / len(values) if values else math.nan
    return average if math.isfinite(average) else None


@dataclass(frozen=True)
class Change:
    """The mean of paired differences, and its 95% interval; low and high are None for fewer than two pairs."""

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def is_gain(self) -> bool:
        """True if the interval is above 0 and there are pairs enough for it to mean something."""
        return self.pairs >= MIN_PAIRS and self.low is not None and self.low > 0


def paired_change(found: Sequence[float], baseline: Sequence[float]) -> Change:
    """Compute the mean of found - baseline with Student's 95% interval.

    Args: two lists of one length, of at least one value each.
    Raises: ValueError if the lengths differ or are 0.
    """
    number = len(found)
    if number != len(baseline) or not number:
        raise ValueError(f"paired_change: lengths are {number} and {len(baseline)}; they must be equal and not 0")
    changes = [value - other for value, other in zip(found, baseline, strict=True)]
    average = sum(changes) / number
    if number < 2:
        return Change(average, None, None, number)
    deviation = math.sqrt(sum((change - average) ** 2 for change in changes) / (number - 1))
    half = student_quantile(number - 1) * deviation / math.sqrt(number)
    return Change(average, average - half, average + half, number)


def student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution, to 0.2%.

    Args: freedom >= 1, the degrees of freedom.
    Source: Abramowitz and Stegun, 26.7.5, from 3 degrees on; below, the closed forms.
    """
    if freedom <= 2:
        return math.tan(0.475 * math.pi) if freedom == 1 else 0.95 * math.sqrt(2 / (1 - 0.95**2))
    x = 1.959963984540054
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def suggest_boosts(changes: Mapping[int, Change]) -> tuple[int, ...]:
    """Choose the blocks whose boost alone is a gain beyond chance, the largest gain first.

    Args: changes, block -> change of what is judged.
    """
    return tuple(sorted((b for b, change in changes.items() if change.is_gain), key=lambda b: (-changes[b].mean, b)))


def nearly_free(
    distances: Mapping[int, float | None], losses: Mapping[int, float] | None = None, *, judge_decides: bool = True
) -> frozenset[int]:
    """The blocks whose skip alone does little harm.

    Args: distances, losses, as of suggest_skips; judge_decides, False if the images are too few, or too few of the
        baselines right, for the losses alone.
    Returns: those with a loss of at most MOST_LOSS and, unless a judge decides, a distance of at most MOST_DISTANCE.
    """
    decides = losses is not None and judge_decides
    return frozenset(
        block
        for block, distance in distances.items()
        if distance is not None
        and (losses is None or losses[block] <= MOST_LOSS)
        and (decides or distance <= MOST_DISTANCE)
    )


def suggest_skips(
    distances: Mapping[int, float | None],
    total: int,
    speedup: float,
    losses: Mapping[int, float] | None = None,
) -> tuple[int, ...]:
    """Choose the blocks to skip: the smallest distances first, as many as the speedup needs.

    k of n skipped blocks leave (n - k) / n of the time. At least one block stays.
    Args: distances, block -> distance, None if the image is not finite (never suggested); total, the number of blocks;
        speedup >= 1; losses, block -> loss of what is judged: the smallest losses first, of equal ones the distances.
    Returns: block numbers; fewer than needed if too few blocks were measured.
    Raises: ValueError if speedup < 1.
    """
    if not speedup >= 1:
        raise ValueError(f"suggest_skips: speedup is {speedup}; it must be at least 1")
    # 1e-9 absorbs rounding: 24 * (1 - 1 / 1.2) is 4.000000000000001 in binary.
    needed = min(math.ceil(total * (1 - 1 / speedup) - 1e-9), total - 1)
    return _ranked(distances, losses)[:needed]


def _ranked(distances: Mapping[int, float | None], losses: Mapping[int, float] | None) -> tuple[int, ...]:
    """The blocks with a finite distance, the least effect first."""
    ranked = sorted(
        (round(losses[block], 9) if losses else 0.0, distance, block)
        for block, distance in distances.items()
        if distance is not None
    )
    return tuple(block for *_, block in ranked)


def report(
    *,
    model: str,
    double: int,
    single: int,
    settings: Mapping[str, Any],
    distances: Mapping[Cell, Distances],
    speedup: float,
    calls_each: int,
    notes: Iterable[str] = (),
    more: Mapping[Cell, Mapping[str, Any]] | None = None,
    prompts: int = 0,
    losses: Mapping[int, float] | None = None,
    judge_decides: bool = True,
) -> dict[str, Any]:
    """Summarize a sweep as JSON-compatible data.

    Args: model, its name; double, single, its block counts; settings, copied into the report; distances, in the order
        of the sweep; speedup, see suggest_skips; calls_each, calls of one block for one image: steps times branches;
        notes, more sentences; more, further entries by cell; prompts, their number if the distances are of several
        prompts, else 0; losses, see suggest_skips, for a second skip list; judge_decides, see nearly_free.
    """
    total = double + single
    skips = {c.block: mean(d.latent) for c, d in distances.items() if c.operation == "skip" and c.window == "whole"}
    boosts_last = any(cell.operation == "boost" and cell.block == total - 1 for cell in distances)
    by_judge = {}
    if skips and losses:
        by_judge["skip_list_by_judge"] = _skip_list(skips, total, speedup, calls_each, losses, judge_decides)
    not_finite = any(mean(found.latent) is None or mean(found.image) is None for found in distances.values())
    return {
        "model": model,
        "blocks": {"double": double, "single": single, "total": total},
        "settings": dict(settings),
        "metric": OF_PROMPTS if prompts else METRIC,
        "cells": [{**_cell(cell, found, prompts), **(more or {}).get(cell, {})} for cell, found in distances.items()],
        "skip_list": _skip_list(skips, total, speedup, calls_each) if skips else None,
        **by_judge,
        "notes": [*notes, *[LAST_BLOCK] * boosts_last, *[NOT_FINITE] * not_finite],
    }


def effects(report: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a report to what a strip of blocks draws.

    Returns: model, double, single; effects, operation -> the latent distance of each block in the whole sampling, None
        where there is none.
    """
    blocks = report["blocks"]
    measured: dict[str, list[float | None]] = {}
    for cell in report["cells"]:
        if cell["window"] == "whole":
            measured.setdefault(cell["operation"], [None] * blocks["total"])[cell["block"]] = cell["latent"]
    return {"model": report["model"], "double": blocks["double"], "single": blocks["single"], "effects": measured}


def _cell(cell: Cell, found: Distances, prompts: int) -> dict[str, Any]:
    return {
        "operation": cell.operation,
        "block": cell.block,
        "window": cell.window,
        "latent": _rounded(found.latent),
        "image": _rounded(found.image),
        **(_by_prompt(found, prompts) if prompts else _by_seed(found)),
    }


def _by_seed(found: Distances) -> dict[str, Any]:
    return {
        "latent_by_seed": [_rounded([value]) for value in found.latent],
        "image_by_seed": [_rounded([value]) for value in found.image],
    }


def _by_prompt(found: Distances, prompts: int) -> dict[str, Any]:
    """One line for each cell: a JSON list has a line for each value. Nothing for more than MOST_LISTED prompts."""
    if prompts > MOST_LISTED:
        return {}
    seeds = len(found.latent) // prompts
    means = [mean(found.latent[start : start + seeds]) for start in range(0, len(found.latent), seeds or 1)]
    return {"latent_by_prompt": " ".join("null" if value is None else f"{value:.3g}" for value in means)}


def _rounded(values: Sequence[float]) -> float | None:
    """The mean to six significant digits."""
    average = mean(values)
    return None if average is None else float(f"{average:.6g}")


def _skip_list(
    distances: Mapping[int, float | None],
    total: int,
    speedup: float,
    calls_each: int,
    losses: Mapping[int, float] | None = None,
    judge_decides: bool = True,
) -> dict[str, Any]:
    """The blocks to skip: of those that are nearly free the ones with the least effect, no more than needed."""
    free = nearly_free(distances, losses, judge_decides=judge_decides)
    ranked = _ranked(distances, losses)
    blocks = suggest_skips({block: distances[block] for block in free}, total, speedup, losses)
    limits = {} if losses and judge_decides else {"latent_distance": MOST_DISTANCE}

    def alone(block: int) -> dict[str, float | None]:
        distance = {"latent_distance": _rounded([distances[block] or 0.0])}
        return {**distance, "loss": round(losses[block], 2)} if losses else distance

    return {
        "blocks_least_effect_first": list(blocks),
        "latent_distance_alone": [alone(block)["latent_distance"] for block in blocks],
        **({"loss_alone": [alone(block)["loss"] for block in blocks]} if losses else {}),
        "nearly_free": [block for block in ranked if block in free],
        "limits": {**limits, **({"loss": MOST_LOSS} if losses else {})},
        "not_free": [{"block": block, **alone(block)} for block in ranked if block not in free],
        "for_block_skip": ", ".join(str(block) for block in sorted(blocks)),
        "wanted_speedup": speedup,
        "reached_speedup": round(total / (total - len(blocks)), 4),
        "block_calls_saved": len(blocks) * calls_each,
        "block_calls": total * calls_each,
        "notes": [*[BY_JUDGE] * bool(losses), ONE_AT_A_TIME, EQUAL_BLOCKS],
    }
