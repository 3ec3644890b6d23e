"""`python -m benchmarks.frontier`: what each way to compute less costs the small model, and what mixtures cost.

Held-out prompts, 28 steps of euler, cfg 4.5, sampled by the pack's own nodes in the host: negative predictions carried
over or left out, whole steps carried over, blocks skipped, the host's EasyCache, the paper's recipe, and plainly fewer
steps. For each point the FLOPs that were executed, counted, as a share of the full run's; how many pictures are right
in everything, with Wilson's interval; the paired difference to the full run; and how far the latents are from its own.

Results are written after every point, and a run that was cut goes on where it stopped. Blocks are skipped in the order
of docs/block-map.json, least effect first. The plans of the node SpeedPlan take their prices from here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attributes.judge import score, summarise, wilson  # noqa: E402
from benchmarks.attributes.prompts import SETS, Prompt, read_prompts  # noqa: E402
from mmdit_core.economy import Economy  # noqa: E402
from mmdit_core.speed_plans import PLANS  # noqa: E402
from scripts import inprocess  # noqa: E402

SMALL = ROOT / "models" / "mmdit-small.safetensors"
MAP = ROOT / "docs" / "block-map.json"
KEPT = ROOT / ".test-output" / "frontier.safetensors"  # the full run's latents, for a run that goes on
STEPS, CFG, BATCH = 28, 4.5, 16
FULL = "everything"


@dataclass(frozen=True)
class Point:
    """One way to compute less.

    Fields: curve, its line in the plot; name; steps; economy; both and negative, how many blocks are skipped on both
    branches and on the negative one, least missed first; cache, EasyCache's threshold, 0 for none.
    """

    curve: str
    name: str
    steps: int = STEPS
    economy: Economy = Economy()
    both: int = 0
    negative: int = 0
    cache: float = 0.0


# The paper (arXiv 2601.02211) skips 3 of 57 blocks on both branches and 14 on the negative one, over step caching: of 8
# blocks the nearest are 1 and 2.
POINTS = (
    Point(FULL, FULL),
    *(Point("the node's plans", f"plan {plan.speedup:g}x", economy=plan.economy) for plan in PLANS),
    *(Point("fewer steps", f"{steps} steps", steps) for steps in (20, 14, 10, 7)),
    *(
        Point("negative, every n-th step", f"negative every {every}", economy=Economy(negative_every=every))
        for every in (2, 3, 6)
    ),
    *(Point("whole steps, every n-th", f"steps every {every}", economy=Economy(every=every)) for every in (3, 4)),
    *(Point("cfg window's end", f"cfg up to {end:.0%}", economy=Economy(end=end)) for end in (0.25, 0.5, 0.75)),
    *(Point("cfg window's start", f"cfg from {start:.0%}", economy=Economy(start=start)) for start in (0.1, 0.25)),
    *(Point("EasyCache", f"EasyCache {cache:g}", cache=cache) for cache in (0.05, 0.1, 0.2)),
    *(Point("paper's recipe", f"paper's recipe, cache {c:g}", both=1, negative=2, cache=c) for c in (0.0, 0.05, 0.1)),
    *(Point("blocks, negative", f"{count} blocks, negative", negative=count) for count in (1, 2, 3, 4)),
    *(Point("blocks, both", f"{count} blocks, both", both=count) for count in (1, 2)),
    *(
        Point("as it is, no line", f"{name}, as it is", economy=economy)
        for name, economy in (
            ("negative every 2", Economy(negative_every=2, order=0)),
            ("negative every 4", Economy(negative_every=4, order=0)),
            ("steps every 2", Economy(every=2, order=0)),
        )
    ),
    Point("mixtures", "negative every 3, cfg up to 75%", economy=Economy(negative_every=3, end=0.75)),
    Point("mixtures", "plan 1.5x, EasyCache 0.1", economy=Economy(negative_every=4), cache=0.1),
)


class Bench:
    """The nodes on one checkpoint, and the prompts as it reads them."""

    def __init__(self, checkpoint: Path, dtype: str, prompts: Sequence[Prompt], seeds: int):
        self.pack = inprocess.load_pack()
        parts = self.module("host.parts")
        self.model = self.module("host.models").load_model(str(checkpoint)).clone()
        self.model.set_model_compute_dtype(getattr(torch, dtype))
        clip, self.vae = parts.load_clip(str(checkpoint)), parts.load_vae(str(checkpoint))
        self.prompts, self.seeds = prompts, seeds
        texts = [clip.encode_from_tokens(clip.tokenize(prompt.text), return_pooled=True) for prompt in prompts]
        context, pooled = (torch.cat(part) for part in zip(*texts, strict=True))
        self.batches = [
            [[context[start : start + BATCH], {"pooled_output": pooled[start : start + BATCH]}]]
            for start in range(0, len(prompts), BATCH)
        ]
        context, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
        self.nothing = [[context, {"pooled_output": pooled}]]
        losses = [entry["change"]["all"]["points"] for entry in json.loads(MAP.read_text())["operations"]["skip"]]
        self.order = sorted(range(len(losses)), key=lambda block: -losses[block])

    def module(self, name: str):
        return importlib.import_module(f"{self.pack.__name__}.nodes.{name}")

    def controlled(self, point: Point):
        """The model as a graph with the nodes for this point would hand it to the sampler."""
        from comfy_extras.nodes_easycache import EasyCacheNode

        economy, model = self.module("host.economy"), self.model
        for branch, count in (("both", point.both), ("negative", point.negative)):
            if count:
                blocks = ",".join(str(block) for block in self.order[:count])
                model = self.module("blocks").BlockSkip().apply(model, blocks, branch, 0.0, 1.0)[0]
        if not point.economy.does_nothing:
            model = economy.attach(model, economy.Economy.from_json(point.economy.to_json()), None)
        if point.cache:
            model = EasyCacheNode.execute(model, point.cache, 0.15, 0.95, False).result[0]
        return model

    def run(self, point: Point) -> tuple[Tensor, int]:
        """The latents [pictures, C, H, W], seed after seed, and the FLOPs that were executed for them."""
        sample, model = self.module("sampling").FlowMatchingSampler().sample, self.controlled(point)
        latents, flops = [], 0
        for seed in range(self.seeds):
            for number, batch in enumerate(self.batches):
                empty = {"samples": torch.zeros(len(batch[0][0]), 16, 16, 16)}
                noise = seed * 100_000 + number * BATCH
                with FlopCounterMode(display=False) as counter:
                    made, *_ = sample(
                        model, batch, self.nothing, empty, noise, point.steps, CFG, "euler", "linear", 0.0, 1.0
                    )
                flops += counter.get_total_flops()
                latents.append(made["samples"].float())
        return torch.cat(latents), flops

    def judge(self, latents: Tensor) -> list[dict[str, bool]]:
        pictures = torch.cat([self.vae.decode(part).clamp(0, 1) for part in latents.split(BATCH)]).float().numpy()
        scenes = [prompt.scene for prompt in self.prompts] * self.seeds
        return [score(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]


def paired(ours: Sequence[bool], full: Sequence[bool]) -> dict[str, float]:
    """The difference of two shares of the same pictures in points, with its 95% interval.

    Not the normal interval, which has no width where no picture changed.
    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
        paired data", method 10.
    """
    number = len(ours)
    p, q = sum(ours) / number, sum(full) / number
    both = sum(a and b for a, b in zip(ours, full, strict=True))
    neither = sum(not a and not b for a, b in zip(ours, full, strict=True))
    lost, won = sum(full) - both, sum(ours) - both
    product = math.prod((both + won, lost + neither, both + lost, won + neither))
    raw = both * neither - won * lost
    raw = raw if raw < 0 else max(0.0, raw - number / 2)
    phi = raw / math.sqrt(product) if product else 0.0
    (p_low, p_high), (q_low, q_high) = wilson(sum(ours), number), wilson(sum(full), number)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    low, high = p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)
    return {"points": 100 * (p - q), "low": 100 * low, "high": 100 * high, "lost": lost, "won": won}


def distances(latents: Tensor, full: Tensor) -> Tensor:
    """[pictures]: RMS of the difference as a share of the full run's RMS."""
    return (latents - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)


def entry_of(point: Point, latents: Tensor, flops: int, scores: list[dict[str, bool]], seconds: float) -> dict:
    return {
        "curve": point.curve,
        "steps": point.steps,
        **({} if point.economy.does_nothing else {"economy": json.loads(point.economy.to_json())}),
        **{name: getattr(point, name) for name in ("both", "negative", "cache") if getattr(point, name)},
        "flops": flops,
        "seconds": round(seconds, 1),
        "scores": summarise(scores),
        "right": "".join(str(int(entry["all"])) for entry in scores),
    }


def compared(entry: dict, full: dict, distance: Tensor) -> dict:
    """An entry with what it is beside the full run."""
    ours, theirs = ([mark == "1" for mark in found["right"]] for found in (entry, full))
    half = 1.96 * float(distance.std()) / len(distance) ** 0.5 if len(distance) > 1 else 0.0
    return {
        **entry,
        "share": entry["flops"] / full["flops"],
        "change": paired(ours, theirs),
        "distance": {
            "mean": float(distance.mean()),
            "low": float(distance.mean()) - half,
            "high": distance.mean().item() + half,
        },
    }


def line_of(name: str, entry: dict) -> str:
    right, change = entry["scores"]["all"], entry["change"]
    return (
        f"{name:34} {entry['share']:6.1%}  all {right['percent']:5.1f} [{right['low']:.1f}, {right['high']:.1f}]  "
        f"{change['points']:+5.1f} ({change['low']:+.1f} to {change['high']:+.1f})  "
        f"distance {entry['distance']['mean']:.3f}  {entry['seconds']:.0f} s"
    )


def draw(points: dict[str, dict], target: Path) -> None:
    """Accuracy and distance against the share of FLOPs, a line for each dial, with 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(1, 2, figsize=(15, 6), layout="constrained")
    full = points[FULL]["scores"]["all"]
    above.axhspan(full["low"], full["high"], color="0.9")
    above.axhline(full["percent"], color="0.4", linestyle="--")
    curves = list(dict.fromkeys(entry["curve"] for entry in points.values() if entry["curve"] != FULL))
    for number, curve in enumerate(curves):
        found = sorted((e for e in points.values() if e["curve"] == curve), key=lambda e: -e["share"])
        shares = [100 * entry["share"] for entry in found]
        main = curve == "the node's plans"
        looks: dict[str, Any] = {
            "color": "black" if main else f"C{number % 10}",
            "marker": "o*sv^D<>Xph"[number % 11],
            "markersize": 10 if main else 5,
            "linewidth": 2 if main else 1,
            "linestyle": "none" if curve == "mixtures" else "-",
            "zorder": 5 if main else 2,
            "label": curve,
        }
        for panel, values, scale in (
            (above, [entry["scores"]["all"] for entry in found], 1),
            (below, [entry["distance"] for entry in found], 100),
        ):
            middle = [scale * value.get("percent", value.get("mean")) for value in values]
            spread = [
                [m - scale * v["low"] for m, v in zip(middle, values, strict=True)],
                [scale * v["high"] - m for m, v in zip(middle, values, strict=True)],
            ]
            panel.errorbar(shares, middle, yerr=spread, elinewidth=0.7, capsize=2, **looks)
    above.set(ylabel="all attributes right, %", ylim=(-3, 103))
    below.set(ylabel="distance of the latent to the full run's, % of its RMS", yscale="log")
    for panel in (above, below):
        panel.set(xlabel="FLOPs executed, % of the full run's", xlim=(102, 15))
        panel.axvline(50, color="0.7", linewidth=0.7)
        panel.grid(alpha=0.3)
    above.legend(fontsize=8, loc="lower left")
    figure.savefig(target, dpi=100)
    pyplot.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--prompts", choices=tuple(SETS), default="held_out")
    parser.add_argument("--number", type=int, default=128, help="prompts")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--points", nargs="+", help="only those whose name or curve holds one of these texts")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the transformer")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "frontier.json", help="kept after every point")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "frontier.png")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    given = parse()
    if given.threads:
        torch.set_num_threads(given.threads)
    inprocess.prepare("--cpu")
    bench = Bench(given.model, given.dtype, read_prompts(given.prompts, given.number), given.seeds)
    about = {
        "model": hashlib.sha256(given.model.read_bytes()).hexdigest()[:16],
        "setting": {"steps": STEPS, "cfg": CFG, "solver": "euler", "dtype": given.dtype},
        "prompts": {"set": given.prompts, "number": len(bench.prompts), "seeds": given.seeds},
        "blocks_least_missed_first": bench.order,
    }
    figures: dict[str, Any] = {"about": about, "points": {}}
    if given.json.exists() and KEPT.exists() and (kept := json.loads(given.json.read_text())).get("about") == about:
        figures = kept
    points, full = figures["points"], load_file(KEPT)["full"] if FULL in figures["points"] else None
    for point in POINTS:
        wanted = given.points is None or any(text in f"{point.curve} {point.name}" for text in given.points)
        if point.name in points or not (wanted or point.name == FULL):
            continue
        start = time.monotonic()
        latents, flops = bench.run(point)
        seconds = time.monotonic() - start
        if point.name == FULL:
            full = latents
            KEPT.parent.mkdir(exist_ok=True)
            save_file({"full": full}, KEPT)
        entry = entry_of(point, latents, flops, bench.judge(latents), seconds)
        assert full is not None
        points[point.name] = compared(entry, points.get(FULL, entry), distances(latents, full))
        print(line_of(point.name, points[point.name]), flush=True)
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if given.plot and len(points) > 1:
        draw(points, given.plot)


if __name__ == "__main__":
    main()
