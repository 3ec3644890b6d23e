"""`python -m benchmarks.blocks map|boost|skip`: the effect of block controls on the small model, by attribute.

    map    each block skipped, with its text disabled, and boosted at 2.0: the paper's figure for this model
    boost  the three modes of the boost on the best blocks of other prompts, and random sets of equal size
    skip   accuracy against the fraction of saved block calls, on both branches and on the negative one, in all steps
           and in their second half

The setting is fixed in advance (SETTING). Blocks are chosen on prompts with combinations of the training, effects are
measured on held-out prompts with other seeds. Intervals are 95%, paired with the baseline images of the same prompts
and seeds. `skip` reads the file of `map`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from attributes.judge import COLUMNS, summarise
from benchmarks.attributes.prompts import Prompt, read_prompts
from benchmarks.attributes.scoring import score_prompts
from mmdit_core.control.spec import CHOICES, BlockControl
from mmdit_core.flow.window import Window
from training.render import Renderer, Sampling

from .controlled import Controlled
from .plots import draw_map, draw_skips

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "mmdit-small.safetensors"
SETTING = Sampling(steps=12, cfg=4.5)
CHOOSE_SEED, TEST_SEED = 50, 90
SET_SIZES, RANDOM_SETS = (1, 2, 3, 5), 4
STRENGTHS = (0.5, 1.5, 2.0, 3.0)
TRIED = (1.5, 3.0)  # strengths for the choice of a set
# Curve of `skip` -> branch, start of the window.
SKIPPED = {
    "both": ("both", 0.0),
    "negative": ("negative", 0.0),
    "both, second half": ("both", 0.5),
    "negative, second half": ("negative", 0.5),
}
Scores = list[dict[str, bool]]


class Bench:
    """One model with its prompts and the baseline's scores."""

    def __init__(self, renderer: Renderer, prompts: Sequence[Prompt], seed: int):
        self.renderer, self.prompts = renderer, prompts
        self.sampling = Sampling(steps=SETTING.steps, cfg=SETTING.cfg, seed=seed)
        self.blocks = renderer.model.config.depth
        self.baseline = self.scores(())

    def scores(self, controls: Sequence[BlockControl]) -> Scores:
        """Score all prompts under controls."""
        controlled = Controlled(self.renderer.model, controls, self.renderer.shift)
        label = "; ".join(f"{c.action} {list(c.blocks)} x{c.strength:g} {c.mode} {c.branch}" for c in controls)
        return score_prompts(self.renderer, self.sampling, self.prompts, model=controlled, label=label or "baseline")[0]

    def entry(self, controls: Sequence[BlockControl]) -> dict:
        """The controls, their summary and their paired differences to the baseline."""
        scores = self.scores(controls)
        return {
            "controls": [control.to_dict() for control in controls],
            "scores": summarise(scores),
            "change": paired(scores, self.baseline),
        }


def paired(scores: Scores, baseline: Scores) -> dict[str, dict[str, float]]:
    """Mean difference by column in percentage points, with a normal 95% interval of the paired differences."""
    out = {}
    for column in COLUMNS:
        both = [(a[column], b[column]) for a, b in zip(scores, baseline, strict=True) if column in b]
        if both:
            change = 100 * np.array([float(a) - float(b) for a, b in both])
            half = 1.96 * change.std(ddof=1) / len(change) ** 0.5
            out[column] = {"points": change.mean(), "low": change.mean() - half, "high": change.mean() + half}
    return out


def block_map(renderer: Renderer, number: int) -> dict:
    """Measure each block under each of the paper's operations."""
    bench = Bench(renderer, read_prompts("seen", number), CHOOSE_SEED)
    made = {
        "skip": lambda block: BlockControl("skip", (block,)),
        "disable": lambda block: BlockControl("disable", (block,)),
        "boost": lambda block: BlockControl("boost", (block,), 2.0),
    }
    cells = {name: [bench.entry([control(block)]) for block in range(bench.blocks)] for name, control in made.items()}
    return {"baseline": summarise(bench.baseline), "operations": cells}


def boosts(renderer: Renderer, number: int) -> dict:
    """Choose blocks and a strength for each mode on prompts of the training, measure them on held-out ones.

    Sets of several sizes are made of the blocks that are best alone at 2.0. "Best" is the largest sum of the gains of
    all attributes. Random sets of equal size are measured, too.
    """
    chooser = Bench(renderer, read_prompts("seen", max(1, number // 4)), CHOOSE_SEED)
    found = {mode: choose_boost(chooser, mode) for mode in CHOICES["mode"]}
    bench = Bench(renderer, read_prompts("held_out", number), TEST_SEED)
    rng = random.Random("random sets")
    for mode, choice in found.items():
        blocks, best = choice["blocks"], choice["strength"]
        choice["strengths"] = [bench.entry([BlockControl("boost", blocks, each, mode=mode)]) for each in STRENGTHS]
        sets = [tuple(sorted(rng.sample(range(bench.blocks), len(blocks)))) for _ in range(RANDOM_SETS)]
        choice["random"] = [bench.entry([BlockControl("boost", each, best, mode=mode)]) for each in sets]
    return {"baseline": summarise(bench.baseline), "modes": found}


def choose_boost(bench: Bench, mode: str) -> dict:
    """Choose the blocks and the strength of a mode with the largest gain on the bench's prompts."""

    def gain(blocks: tuple[int, ...], strength: float) -> float:
        entry = bench.entry([BlockControl("boost", blocks, strength, mode=mode)])
        return sum(change["points"] for change in entry["change"].values())

    single = [gain((block,), 2.0) for block in range(bench.blocks)]
    order = sorted(range(bench.blocks), key=lambda block: -single[block])
    tried = [(tuple(sorted(order[:size])), strength) for size in SET_SIZES for strength in TRIED]
    gains = [gain(*each) for each in tried]
    blocks, strength = tried[gains.index(max(gains))]
    return {"gain_of_single_blocks": single, "gain_of_sets": gains, "blocks": blocks, "strength": strength}


def skips(renderer: Renderer, number: int, mapped: dict) -> dict:
    """Skip more and more blocks, those with the smallest loss in the map first, for each curve of SKIPPED."""
    losses = [entry["change"]["all"]["points"] for entry in mapped["operations"]["skip"]]
    order = sorted(range(len(losses)), key=lambda block: -losses[block])
    bench = Bench(renderer, read_prompts("held_out", number), TEST_SEED)
    curves: dict[str, list[dict]] = {}
    for name, (branch, start) in SKIPPED.items():
        fraction = (1 if branch == "both" else 0.5) * (1 - start)
        curves[name] = [
            {
                "saved": fraction * count / bench.blocks,
                **bench.entry([BlockControl("skip", tuple(order[:count]), branch=branch, window=Window(start))]),
            }
            for count in range(1, bench.blocks // 2 + 1)
        ]
    return {"baseline": summarise(bench.baseline), "least_missed_first": order, "curves": curves}


def print_entries(title: str, entries: Sequence[dict]) -> None:
    """Print entries as a table."""
    print(f"\n{title}")
    for entry in entries:
        control = entry["controls"][0]
        name = (
            f"{control['action']} {control['blocks']} x{control.get('strength', 1):g} {control.get('branch', 'both')}"
        )
        cells = [
            f"{column} {entry['scores'][column]['percent']:.1f} ({change['points']:+.1f}, {change['low']:+.1f} to "
            f"{change['high']:+.1f})"
            for column, change in entry["change"].items()
        ]
        print(f"  {name:40} " + "  ".join(cells))


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("map", "boost", "skip"))
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="for its tokenizers")
    parser.add_argument("--number", type=int, default=0, help="prompts; 0 = 128 for the map, 256 else")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the transformer")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="folder of the figures")
    parser.add_argument("--name", default="", help="suffix of the files, for another checkpoint")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    renderer = Renderer(options.model, options.comfyui, getattr(torch, options.dtype))
    number = options.number or (128 if options.what == "map" else 256)

    def target(what: str, kind: str) -> Path:
        return options.folder / f"block-{what}{'-' + options.name if options.name else ''}.{kind}"

    if options.what == "map":
        figures = block_map(renderer, number)
        for name, entries in figures["operations"].items():
            print_entries(name, entries)
        draw_map(figures, target("map", "png"))
    elif options.what == "boost":
        figures = boosts(renderer, number)
        for mode, found in figures["modes"].items():
            print_entries(f"{mode}, chosen blocks {list(found['blocks'])}", found["strengths"])
            print_entries(f"{mode}, random sets", found["random"])
    else:
        figures = skips(renderer, number, json.loads(target("map", "json").read_text()))
        for branch, entries in figures["curves"].items():
            print_entries(branch, entries)
        draw_skips(figures, target("skip", "png"))
    about = {
        "steps": json.loads(renderer.metadata["mmdit.training"])["steps"],
        "setting": {"steps": SETTING.steps, "cfg": SETTING.cfg, "solver": SETTING.solver, "dtype": options.dtype},
        "prompts": number,
    }
    target(options.what, "json").write_text(json.dumps({"about": about, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
