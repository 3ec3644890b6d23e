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
    """Blocks as text, in the grammar of block lists, sentences about them, and their numbers."""

    blocks: str
    words: str
    numbers: tuple[int, ...] = ()

    def as_json(self) -> dict[str, str]:
        """The entry of the report."""
        return {"blocks": self.blocks, "words": self.words}


def skips(report: dict[str, Any]) -> Suggestion:
    """The report's skip list, by the judge if there is one."""
    found = report.get("skip_list_by_judge") or report["skip_list"]
    if found is None:
        return Suggestion("", NO_SKIP)
    if found["wanted_speedup"] == 1:
        return Suggestion("", "This speedup needs no skipped block.")
    chosen = found["blocks_least_effect_first"]
    if not chosen:
        return Suggestion("", f"skip_blocks is empty: no block is nearly free{_limits(found)}.{_closest(found)}")
    reached = (
        f"On both branches, about {found['reached_speedup']:.2f} times as fast, {found['block_calls_saved']:,} of "
        f"{found['block_calls']:,} block calls saved."
    )
    words = [f"For BlockSkip: {found['for_block_skip']}.", _why(found), reached]
    if found["reached_speedup"] < found["wanted_speedup"]:
        words.append(f"A speedup of {found['wanted_speedup']:g} needs more blocks than are nearly free.")
    if len(chosen) > 1:
        words.append("Measured one block at a time: check an image with the whole list skipped.")
    return Suggestion(found["for_block_skip"], " ".join(words), tuple(chosen))


def _why(found: dict[str, Any]) -> str:
    """Why these blocks: all that are nearly free, or the best of them."""
    chosen, free = found["blocks_least_effect_first"], found["nearly_free"]
    values = _values(found["latent_distance_alone"], found.get("loss_alone"))
    named = f"{_named(sorted(chosen))} {'is' if len(chosen) == 1 else 'are'}"
    if len(free) > len(chosen):
        least = "has" if len(chosen) == 1 else "have"
        what = f"Of {len(free)} blocks that are nearly free, {_named(sorted(chosen))} {least} the least effect"
    elif found["not_free"]:
        what = f"Only {named} nearly free"
    else:
        what = f"{named[0].upper()}{named[1:]} nearly free"
    return f"{what}{_limits(found)}: {values}.{_closest(found) if len(free) == len(chosen) else ''}"


def _limits(found: dict[str, Any]) -> str:
    """What nearly free means in a list, in brackets."""
    limits = found["limits"]
    words = [f"a latent distance of at most {limits['latent_distance']:g}"] if "latent_distance" in limits else []
    if "loss" in limits:
        words.insert(0, f"at most {limits['loss']:g} points fewer images right in everything")
    return f" ({' and '.join(words)})"


def _closest(found: dict[str, Any]) -> str:
    """The block that comes next, with its values; "" if all measured blocks are nearly free."""
    if not found["not_free"]:
        return ""
    first = found["not_free"][0]
    losses = [first["loss"]] if "loss" in first else None
    return f" Next comes block {first['block']}: {_values([first['latent_distance']], losses)}."


def _values(distances: Sequence[float], losses: Sequence[float] | None) -> str:
    words = f"latent distance {_listed([f'{value:.3f}' for value in distances])}"
    if losses is None:
        return words
    # A loss of -0.0 would be a gain in words only.
    return f"{_listed([f'{-value + 0.0:+.1f}' for value in losses])} points, {words}"


def _named(blocks: Sequence[int]) -> str:
    return f"block{'' if len(blocks) == 1 else 's'} {_listed(list(map(str, blocks)))}"


def _listed(words: Sequence[str]) -> str:
    """Words in a row: "4", "4 and 5", "2, 4 and 5"."""
    return " and ".join([*[", ".join(words[:-1])] * (len(words) > 1), words[-1]])


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
    return Suggestion(text, " ".join(words), chosen)


def of_whole_runs(cells: Iterable[Cell], operation: str) -> list[Cell]:
    """The cells of an operation over all steps."""
    return [cell for cell in cells if cell.operation == operation and cell.window == "whole"]


def _few(pairs: int, prompts: int) -> str:
    what = "prompts" if prompts > 1 else "seeds"
    return f"{pairs} {what} are too few to tell a gain from chance; use {MIN_PAIRS} or more, better 32."


def _gain(change: Change) -> str:
    return f"{change.mean:+.1f} points, {change.low:+.1f} to {change.high:+.1f}"
