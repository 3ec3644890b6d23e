"""Which block does what: a sweep of one operation on one block at a time, measured against the untouched picture.

The sweep, its distances and what follows from them are plain data here; whoever samples fills them in.
Source of the three operations and of the boost's strength 2: arXiv 2601.02211.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .control.spec import BlockControl

OPERATIONS = ("skip", "disable", "boost")

# Parts of the sampling, by share: a window holds its start and not its end.
WINDOWS: dict[str, tuple[float, float]] = {"whole": (0.0, 1.0), "early": (0.0, 0.5), "late": (0.5, 1.0)}

METRIC = (
    "relative L2: the root of the summed squares of (picture - baseline), divided by that of the baseline, over all "
    "values of one latent, or of one decoded image in [0, 1]; the mean over the seeds"
)
ONE_AT_A_TIME = (
    "Every block was measured alone. What several skipped blocks do together can be more or less than these distances "
    "say: look at a picture with the whole list skipped before you rely on it."
)
EQUAL_BLOCKS = (
    "The speed-up counts every block as equal in time and leaves out what is not a block; it is for skipping on both "
    "branches, in all steps."
)


@dataclass(frozen=True)
class Cell:
    """One operation on one block in one window of WINDOWS; strength is that of a boost, 1 for the others."""

    operation: str
    block: int
    window: str = "whole"
    strength: float = 1.0

    def control(self) -> BlockControl:
        """The operation as the paper defines it: disable onward, boost residual, both branches, all text."""
        start, end = WINDOWS[self.window]
        return BlockControl(self.operation, (self.block,), strength=self.strength, start_percent=start, end_percent=end)


def plan(
    operations: Iterable[str], blocks: Sequence[int], *, strength: float = 2.0, early_late: bool = False
) -> tuple[Cell, ...]:
    """The cells of a sweep, whole runs before halves, so that a sweep that is cut short has measured the main thing.

    Raises: ValueError for an operation that is not in OPERATIONS.
    """
    chosen = tuple(operations)
    unknown = [operation for operation in chosen if operation not in OPERATIONS]
    if unknown:
        raise ValueError(f"plan: operation {unknown[0]!r} is unknown; choose of {', '.join(OPERATIONS)}")
    return tuple(
        Cell(operation, block, window, strength if operation == "boost" else 1.0)
        for windows in ((("whole",), ("early", "late")) if early_late else (("whole",),))
        for operation in chosen
        for window in windows
        for block in blocks
    )


def relative_l2(found: Tensor, baseline: Tensor) -> float:
    """|found - baseline| / |baseline|, over all values, in float64.

    A baseline of zeros (a black image) has no scale of its own: it counts as one of ones.
    Raises: ValueError for different shapes.
    """
    if found.shape != baseline.shape:
        raise ValueError(f"relative_l2: shapes are {list(found.shape)} and {list(baseline.shape)}; they must be equal")
    reference = baseline.double()
    scale = reference.norm().item() or math.sqrt(reference.numel())
    return (found.double() - reference).norm().item() / scale


@dataclass
class Distances:
    """A cell's distances to the baseline, one for each seed that is done."""

    latent: list[float] = field(default_factory=list)
    image: list[float] = field(default_factory=list)

    def add(self, latent: float, image: float) -> None:
        self.latent.append(latent)
        self.image.append(image)


def mean(values: Sequence[float]) -> float | None:
    """None where there is no value, or one that is no finite number (a picture that broke)."""
    average = sum(values) / len(values) if values else math.nan
    return average if math.isfinite(average) else None


@dataclass(frozen=True)
class SkipList:
    """Blocks to skip for a wanted speed-up, least effect first.

    Fields: wanted and reached, how many times as fast; calls_saved of calls, the block calls of one picture.
    """

    blocks: tuple[int, ...]
    wanted: float
    reached: float
    calls_saved: int
    calls: int

    @property
    def text(self) -> str:
        """As BlockSkip reads it."""
        return ", ".join(str(block) for block in sorted(self.blocks))


def suggest_skips(effects: Mapping[int, float | None], total: int, wanted: float, *, calls_each: int = 1) -> SkipList:
    """The blocks whose skipping changes least, as many as the wanted speed-up needs.

    n blocks with k skipped take (n - k) / n of the time. One block always stays.
    Args: effects, measured block -> distance, None where the picture broke: never suggested; total, the model's
        blocks; wanted >= 1; calls_each, calls of one block for one picture: steps times branches.
    Returns: fewer blocks than needed where too few were measured; `reached` says so.
    Raises: ValueError if wanted < 1.
    """
    if not wanted >= 1:
        raise ValueError(f"suggest_skips: the wanted speed-up is {wanted}; it must be at least 1")
    # The small number: 24 * (1 - 1 / 1.2) is 4.000000000000001 in binary.
    needed = min(math.ceil(total * (1 - 1 / wanted) - 1e-9), total - 1)
    ranked = sorted((effect, block) for block, effect in effects.items() if effect is not None)
    blocks = tuple(block for _, block in ranked[:needed])
    return SkipList(
        blocks=blocks,
        wanted=wanted,
        reached=total / (total - len(blocks)),
        calls_saved=len(blocks) * calls_each,
        calls=total * calls_each,
    )


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
) -> dict[str, Any]:
    """All that a sweep found, as what JSON can hold.

    Args: settings, as they go into the report; distances in the sweep's order; calls_each, see suggest_skips;
        notes, further sentences; more, what else was measured of a cell.
    """
    skips = {cell.block: mean(d.latent) for cell, d in distances.items() if cell.operation == "skip" and _whole(cell)}
    said = [*notes]
    last = double + single - 1
    if any(cell.operation == "boost" and cell.block == last for cell in distances):
        said.append(
            "A boost of the last block scales text that no later block reads: it changes nothing but roundings."
        )
    if any(mean(d.latent) is None or mean(d.image) is None for d in distances.values()):
        said.append("A distance of null: the picture held values that are no numbers.")
    return {
        "model": model,
        "blocks": {"double": double, "single": single, "total": double + single},
        "settings": dict(settings),
        "metric": METRIC,
        "cells": [{**_cell(cell, found), **(more or {}).get(cell, {})} for cell, found in distances.items()],
        "skip_list": _skip_list(skips, double + single, speedup, calls_each) if skips else None,
        "notes": said,
    }


def effects(found: Mapping[str, Any]) -> dict[str, Any]:
    """A report in short, for strips of blocks: operation -> each block's distance in latents, None where not measured.

    Args: found, what `report` returned. Only sweeps over all steps count.
    """
    blocks = found["blocks"]
    measured: dict[str, list[float | None]] = {}
    for cell in found["cells"]:
        if cell["window"] == "whole":
            row = measured.setdefault(cell["operation"], [None] * blocks["total"])
            row[cell["block"]] = cell["latent"]
    return {"model": found["model"], "double": blocks["double"], "single": blocks["single"], "effects": measured}


def _whole(cell: Cell) -> bool:
    return cell.window == "whole"


def _cell(cell: Cell, found: Distances) -> dict[str, Any]:
    return {
        "operation": cell.operation,
        "block": cell.block,
        "window": cell.window,
        "latent": _number(found.latent),
        "image": _number(found.image),
        "latent_by_seed": [_number([value]) for value in found.latent],
        "image_by_seed": [_number([value]) for value in found.image],
    }


def _number(values: Sequence[float]) -> float | None:
    """The mean, with the digits that mean something."""
    average = mean(values)
    return None if average is None else float(f"{average:.6g}")


def _skip_list(skips: Mapping[int, float | None], total: int, speedup: float, calls_each: int) -> dict[str, Any]:
    found = suggest_skips(skips, total, speedup, calls_each=calls_each)
    return {
        "blocks_least_effect_first": list(found.blocks),
        "latent_distance_alone": [_number([skips[block] or 0.0]) for block in found.blocks],
        "for_block_skip": found.text,
        "wanted_speedup": found.wanted,
        "reached_speedup": round(found.reached, 4),
        "block_calls_saved": found.calls_saved,
        "block_calls": found.calls,
        "notes": [ONE_AT_A_TIME, EQUAL_BLOCKS],
    }
