"""What BlockAnalysis suggests to connect: blocks for BlockSkip and TextBoost, and why, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...mmdit_core.analysis import MIN_PAIRS, Cell, Change, suggest_boosts
from .attributes import MEAN, Scores

NO_JUDGE = "boost_blocks is empty: a distance does not show what is better. Set judge to shapes."
NO_BOOST = "boost_blocks is empty: no boost was measured. Set operations to all or boost."
NO_GAIN = "boost_blocks is empty: no block's boost helped beyond chance. TextBoost then does nothing."
NO_SKIP = "skip_blocks is empty: no skip was measured. Set operations to all or skip."


@dataclass(frozen=True)
class Suggestion:
    """Blocks as text, in the grammar of block lists, and a sentence about them."""

    blocks: str
    words: str


def skips(report: dict[str, Any]) -> Suggestion:
    """The report's skip list, by the judge if there is one."""
    found = report.get("skip_list_by_judge") or report["skip_list"]
    if found is None:
        return Suggestion("", NO_SKIP)
    if not found["for_block_skip"]:
        return Suggestion("", "This speedup needs no skipped block.")
    words = (
        f"For BlockSkip: {found['for_block_skip']} (both branches, about {found['reached_speedup']:.2f} times as fast, "
        f"{found['block_calls_saved']:,} of {found['block_calls']:,} block calls saved). Measured one block at a time: "
        "check an image with the whole list skipped."
    )
    return Suggestion(found["for_block_skip"], words)


def boosts(scores: Scores | None, cells: Sequence[Cell]) -> Suggestion:
    """The blocks whose boost alone gets more attributes right, the largest gain first, with their strength."""
    if scores is None:
        return Suggestion("", NO_JUDGE)
    changes = {cell.block: scores.change(cell, MEAN) for cell in of_whole_runs(cells, "boost")}
    if not changes:
        return Suggestion("", NO_BOOST)
    pairs = next(iter(changes.values())).pairs
    if pairs < MIN_PAIRS:
        return Suggestion("", f"boost_blocks is empty: {_few(pairs, len(scores.scenes))}")
    chosen = suggest_boosts(changes)
    if not chosen:
        return Suggestion("", NO_GAIN)
    strengths = {cell.block: cell.strength for cell in of_whole_runs(cells, "boost")}
    text = ", ".join(f"{block}:{strengths[block]:g}" for block in chosen)
    words = [f"For TextBoost: {text} (attributes right: {'; '.join(map(_gain, (changes[b] for b in chosen)))})."]
    words.append(f"About {0.025 * len(changes):.1g} of {len(changes)} blocks without an effect would pass by chance.")
    if len(chosen) > 1:
        words.append("Residual boosts of several blocks multiply: compare an image with the first block alone.")
    return Suggestion(text, " ".join(words))


def of_whole_runs(cells: Iterable[Cell], operation: str) -> list[Cell]:
    """The cells of an operation over all steps."""
    return [cell for cell in cells if cell.operation == operation and cell.window == "whole"]


def _few(pairs: int, prompts: int) -> str:
    what = "prompts" if prompts > 1 else "seeds"
    return f"{pairs} {what} are too few to tell a gain from chance; use {MIN_PAIRS} or more, better 32."


def _gain(change: Change) -> str:
    return f"{change.mean:+.1f} points, {change.low:+.1f} to {change.high:+.1f}"
