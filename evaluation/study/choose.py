"""What to boost and what to skip, chosen on one part of the prompts, and random block sets to compare with.

A choice asks for cells by its `measure` and reads nothing else, so that a second start makes the same one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations

from ..controls import Control
from .statistics import OVERALL, Interval

Gains = dict[str, Interval]
Measure = Callable[[Sequence[Control]], list[Gains]]  # the gains of each control on the prompts to choose on

SET_SIZES = (2, 3, 5)  # of boosts, besides single blocks


def choose_boost(branch: str, singles: Sequence[Control], measure: Measure) -> Control | None:
    """The boost with the largest gain of the overall score: one block, or the best few of one mode and strength.

    Args: singles, the boosts of the block map; measure, see above.
    Returns: None if no boost helps on these prompts.
    """
    own = [control for control in singles if control.action == "boost" and control.branch == branch]
    gain = {control: each[OVERALL].mean for control, each in zip(own, measure(own), strict=True)}
    sets = []
    for kind in sorted({(control.mode, control.strength) for control in own}):
        ranked = sorted((c for c in own if (c.mode, c.strength) == kind and gain[c] > 0), key=lambda c: (-gain[c], c))
        blocks = [control.blocks[0] for control in ranked]
        sets += [
            Control("boost", tuple(sorted(blocks[:size])), branch, *kind) for size in SET_SIZES if size <= len(blocks)
        ]
    gain |= {control: each[OVERALL].mean for control, each in zip(sets, measure(sets), strict=True)}
    best = max(sorted(gain), key=lambda control: gain[control], default=None)
    return best if best is not None and gain[best] > 0 else None


def choose_skips(branch: str, singles: Sequence[Control], measure: Measure, most_loss: float) -> Control | None:
    """The longest list of blocks whose joint loss of the overall score is at most `most_loss` points.

    Blocks join in the order of their own loss, up to half of those measured; the first list that loses more ends it.
    Returns: None if even one block costs more.
    """
    own = [control for control in singles if control.action == "skip" and control.branch == branch]
    gain = {control: each[OVERALL].mean for control, each in zip(own, measure(own), strict=True)}
    order = [control.blocks[0] for control in sorted(own, key=lambda control: (-gain[control], control))]
    best = None
    for size in range(1, max(1, len(order) // 2) + 1):
        control = Control("skip", tuple(sorted(order[:size])), branch)
        (found,) = measure([control])
        if found[OVERALL].mean < -most_loss:
            break
        best = control
    return best


def random_sets(chosen: Control, blocks: Sequence[int], number: int) -> list[Control]:
    """Controls of the same kind and size on other blocks, at most `number`, drawn from the choice's name."""
    size = len(chosen.blocks)
    rng = random.Random(f"random block sets for {chosen.name}")
    if math.comb(len(blocks), size) <= 4 * number:
        every = [each for each in combinations(sorted(blocks), size) if each != chosen.blocks]
        drawn = rng.sample(every, min(number, len(every)))
    else:
        found: dict[tuple[int, ...], None] = {}
        while len(found) < number:
            each = tuple(sorted(rng.sample(sorted(blocks), size)))
            if each != chosen.blocks:
                found[each] = None
        drawn = list(found)
    return [Control(chosen.action, each, chosen.branch, chosen.mode, chosen.strength) for each in sorted(drawn)]
