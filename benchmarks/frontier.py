"""`python -m benchmarks.frontier`: the cost of each way to compute less, on the small model, and of mixtures.

Held-out prompts, 28 steps of euler, cfg 4.5, sampled by the pack's nodes in ComfyUI: uncond reused, cfg in a part of
the sampling, whole steps extrapolated, blocks skipped, ComfyUI's EasyCache, both together, and fewer steps. For each
point: the FLOPs executed, counted, as a fraction of the full run's; the images right in every attribute, with Wilson's
interval; the paired difference to the full run; and the distance of the latents to the full run's.

Results are written after every point of a round of 32 images; a run that was cancelled continues there. Blocks are
skipped in the order of docs/block-map.json, least effect first. The plans of the node SpeedPlan have their measured
costs from here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attributes.judge import COLUMNS, score, summarise, wilson
from benchmarks.attributes.prompts import SETS, Prompt, read_prompts
from benchmarks.flops import flop_counter
from mmdit_core.caching.plans import PLANS
from mmdit_core.caching.step_cache import StepCache
from scripts import in_process

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "models" / "mmdit-small.safetensors"
MAP = ROOT / "docs" / "block-map.json"
FULL_RUNS = ROOT / ".test-output"  # the full run's latents, for a run that continues
STEPS, CFG, BATCH = 28, 4.5, 16
ROUND = 32  # images of every point before there are more of any
FULL = "everything"


@dataclass(frozen=True)
class Point:
    """One way to compute less.

    Fields: curve, its line in the plot; name; steps; step_cache; window, where in the sampling cfg acts; both and
    negative, how many blocks are skipped on both branches and on the negative one, least effect first; cache,
    EasyCache's threshold, 0 for none.
    """

    curve: str
    name: str
    steps: int = STEPS
    step_cache: StepCache = StepCache()
    window: tuple[float, float] = (0.0, 1.0)
    both: int = 0
    negative: int = 0
    cache: float = 0.0


def cached(curve: str, settings: Sequence[tuple[str, StepCache]]) -> tuple[Point, ...]:
    """One curve of points with step caches. Args: settings, names and step caches."""
    return tuple(Point(curve, name, step_cache=step_cache) for name, step_cache in settings)


def other_order(step_cache: StepCache) -> StepCache:
    """Repeats the last prediction where the step cache draws a line, and the other way round."""
    return replace(step_cache, order=1 - step_cache.order)


# "blocks and EasyCache" combines the methods as the paper (arXiv 2601.02211) does, and is harsher: 1 of 8 blocks on the
# positive and 3 on the negative branch at cfg 4.5. The paper's lists have 3 and 11 of FLUX's 57 (its script skips 1 and
# 10) at true CFG 1.5. The most useful points come first: a run that is cancelled has those.
POINTS = (
    Point(FULL, FULL),
    *cached(
        "steps extrapolated",
        (*((f"plan {plan.speedup:g}x", plan.step_cache) for plan in PLANS),),
    ),
    *(Point("fewer steps", f"{steps} steps", steps) for steps in (14, 10, 20, 7)),
    *cached("every n-th step throughout", [(f"steps every {n}", StepCache(every=n)) for n in (2, 3)]),
    *cached("uncond reused", [(f"uncond every {n}", StepCache(uncond_every=n)) for n in (2, 3, 4)]),
    *(Point("EasyCache", f"EasyCache {cache:g}", cache=cache) for cache in (0.1, 0.2, 0.05)),
    *(Point("cfg window's end", f"cfg up to {at:.0%}", window=(0.0, at)) for at in (0.5, 0.75, 0.25)),
    *(
        Point("blocks and EasyCache", f"blocks and EasyCache {c:g}", both=1, negative=2, cache=c)
        for c in (0.1, 0.0, 0.05)
    ),
    *(Point("blocks, negative", f"{count} blocks, negative", negative=count) for count in (1, 2, 3, 4)),
    *(Point("blocks, both", f"{count} blocks, both", both=count) for count in (1, 2)),
    *(Point("cfg window's start", f"cfg from {at:.0%}", window=(at, 1.0)) for at in (0.1, 0.25)),
    *cached(
        "mixtures",
        (
            ("warmup, uncond every 2", StepCache(uncond_every=2, warmup=0.25)),
            ("steps and uncond every 2", StepCache(every=2, uncond_every=2)),
        ),
    ),
    Point("mixtures", "steps every 2, cfg up to 75%", step_cache=StepCache(every=2), window=(0.0, 0.75)),
    Point("mixtures", "uncond every 3, cfg up to 75%", step_cache=StepCache(uncond_every=3), window=(0.0, 0.75)),
    Point("mixtures", "steps every 2, EasyCache 0.1", step_cache=StepCache(every=2), cache=0.1),
    *cached(
        "last prediction repeated",
        (
            ("steps every 2, repeated", StepCache(every=2, order=0)),
            ("steps every 3, repeated", StepCache(every=3, order=0)),
            ("uncond every 2, repeated", StepCache(uncond_every=2, order=0)),
        ),
    ),
    *cached(
        "the plans, in the other order",
        [(f"{plan.speedup:g}x, order {1 - plan.step_cache.order}", other_order(plan.step_cache)) for plan in PLANS],
    ),
)


class Bench:
    """The nodes on one checkpoint, and the prompts as it reads them."""

    def __init__(self, checkpoint: Path, dtype: str, prompts: Sequence[Prompt], seeds: int):
        self.pack = in_process.load_pack()
        parts = self.module("comfyui.loading.clip_vae")
        self.model = self.module("comfyui.loading.model").load_model(str(checkpoint)).clone()
        self.model.set_model_compute_dtype(getattr(torch, dtype))
        clip, self.vae = parts.load_clip(str(checkpoint)), parts.load_vae(str(checkpoint))
        self.prompts, self.seeds = prompts, seeds
        starts = range(0, len(prompts), ROUND)
        self.rounds = [(seed, start) for seed in range(seeds) for start in starts]
        texts = [clip.encode_from_tokens(clip.tokenize(prompt.text), return_pooled=True) for prompt in prompts]
        context, pooled = (torch.cat(part) for part in zip(*texts, strict=True))
        self.context, self.pooled = context, pooled
        context, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
        self.nothing = [[context, {"pooled_output": pooled}]]
        losses = [entry["change"]["all"]["points"] for entry in json.loads(MAP.read_text())["operations"]["skip"]]
        self.order = sorted(range(len(losses)), key=lambda block: -losses[block])

    def module(self, name: str):
        return importlib.import_module(f"{self.pack.__name__}.nodes.{name}")

    def controlled(self, point: Point):
        """The model as a graph with the nodes of this point gives it to the sampler."""
        from comfy_extras.nodes_easycache import EasyCacheNode

        patching, model = self.module("comfyui.patching"), self.model
        for branch, count in (("both", point.both), ("negative", point.negative)):
            if count:
                blocks = ",".join(str(block) for block in self.order[:count])
                given = dict(blocks=blocks, branch=branch, start_percent=0.0, end_percent=1.0)
                model = self.module("control").BlockSkip().apply(model, **given)[0]
        if not point.step_cache.does_nothing:
            own = patching.StepCache(**asdict(point.step_cache))  # the pack's class is not the plain import's
            model = patching.attach(model, [own])
        if point.cache:
            model = EasyCacheNode.execute(model, point.cache, 0.15, 0.95, False).result[0]
        return model

    def run(self, point: Point, seed: int, first: int) -> tuple[Tensor, int]:
        """The latents [images, C, H, W] of one round, and the FLOPs executed for them."""
        sample, model = self.module("sampler.node").FlowMatchingSampler().sample, self.controlled(point)
        latents, flops = [], 0
        for start in range(first, min(first + ROUND, len(self.prompts)), BATCH):
            part = slice(start, min(start + BATCH, first + ROUND))
            positive = [[self.context[part], {"pooled_output": self.pooled[part]}]]
            empty = {"samples": torch.zeros(len(self.context[part]), 16, 16, 16)}
            window = dict(cfg_start=point.window[0], cfg_end=point.window[1])
            inputs = dict(seed=seed * 100_000 + start, steps=point.steps, cfg=CFG, **window)
            with flop_counter() as counter:
                made, *_ = sample(model, positive, self.nothing, empty, **inputs)
            flops += counter.get_total_flops()
            latents.append(made["samples"].float())
        return torch.cat(latents), flops

    def judge(self, latents: Tensor, first: int) -> list[dict[str, bool]]:
        images = torch.cat([self.vae.decode(part).clamp(0, 1) for part in latents.split(BATCH)]).float().numpy()
        prompts = self.prompts[first : first + ROUND]
        return [score(image, prompt.stated) for image, prompt in zip(images, prompts, strict=True)]


def paired(ours: Sequence[bool], full: Sequence[bool]) -> dict[str, float]:
    """The difference of two fractions of the same images in points, with its 95% interval.

    Not the normal interval, which has no width if no image changed.
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
    """[images]: RMS of the difference as a fraction of the full run's RMS."""
    return (latents - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)


def plain(step_cache: StepCache) -> dict[str, Any]:
    """The fields of a step cache that are not at their defaults, as plain data."""
    return {name: value for name, value in asdict(step_cache).items() if value != getattr(StepCache(), name)}


def begun(point: Point) -> dict[str, Any]:
    """The entry of a point before it has run; marks, of each image by column, "-" without one."""
    return {
        "curve": point.curve,
        "steps": point.steps,
        **({} if point.step_cache.does_nothing else {"step_cache": plain(point.step_cache)}),
        **({} if point.window == (0.0, 1.0) else {"window": list(point.window)}),
        **{name: getattr(point, name) for name in ("both", "negative", "cache") if getattr(point, name)},
        "marks": dict.fromkeys(COLUMNS, ""),
        "flops": [],
        "distances": [],
    }


def settings_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The settings of an entry, without its results."""
    names = ("curve", "steps", "step_cache", "window", "both", "negative", "cache")
    return {name: entry[name] for name in names if name in entry}


def lengthened(entry: dict, scores: list[dict[str, bool]], flops: int, distance: Tensor) -> None:
    """Add one round."""
    for column in COLUMNS:
        entry["marks"][column] += "".join("-" if column not in one else str(int(one[column])) for one in scores)
    entry["flops"].append(flops)
    entry["distances"] += [round(value, 5) for value in distance.tolist()]


def summed(entry: dict, full: dict) -> None:
    """Update a point's figures, against the full run of the images that the point has."""
    marks, number = entry["marks"], len(entry["distances"])
    right, theirs = ([mark == "1" for mark in found["marks"]["all"]][:number] for found in (entry, full))
    rows = [
        {column: marks[column][row] == "1" for column in COLUMNS if marks[column][row] != "-"} for row in range(number)
    ]
    spread = 1.96 * statistics.stdev(entry["distances"]) / number**0.5 if number > 1 else 0.0
    mean = statistics.mean(entry["distances"])
    entry["images"] = number
    entry["fraction"] = sum(entry["flops"]) / sum(full["flops"][: len(entry["flops"])])
    entry["scores"] = summarise(rows)
    entry["change"] = paired(right, theirs)
    entry["distance"] = {"mean": mean, "low": mean - spread, "high": mean + spread}


def line_of(name: str, entry: dict) -> str:
    right, change = entry["scores"]["all"], entry["change"]
    return (
        f"{name:32} {entry['fraction']:6.1%}  all {right['percent']:5.1f} [{right['low']:.1f}, {right['high']:.1f}]  "
        f"{change['points']:+5.1f} ({change['low']:+.1f} to {change['high']:+.1f}) of {entry['images']}  "
        f"distance {entry['distance']['mean']:.3f}"
    )


def cost_of(entry: dict) -> str:
    """A point as the core's table of plans has its cost."""
    change = entry["change"]
    rounded = (entry["fraction"], change["points"], change["low"], change["high"])
    digits = (3, 1, 1, 1)
    figures = ", ".join(f"{round(value, places):g}" for value, places in zip(rounded, digits, strict=True))
    return f"MeasuredCost({figures}, {entry['images']})"


def draw(points: dict[str, dict], target: Path) -> None:
    """Accuracy and distance against the fraction of FLOPs, a line for each curve, with 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(1, 2, figsize=(15, 7), layout="constrained")
    full = points[FULL]["scores"]["all"]
    above.axhspan(full["low"], full["high"], color="0.9")
    above.axhline(full["percent"], color="0.4", linestyle="--")
    colours = pyplot.get_cmap("tab20")
    curves = list(dict.fromkeys(entry["curve"] for entry in points.values() if entry["curve"] != FULL))
    for number, curve in enumerate(curves):
        found = sorted((e for e in points.values() if e["curve"] == curve), key=lambda e: -e["fraction"])
        percents = [100 * entry["fraction"] for entry in found]
        looks: dict[str, Any] = {
            "color": colours(number),
            "marker": "osv^D<>XphP"[number % 11],
            "markersize": 5,
            "linewidth": 1,
            "linestyle": "none" if curve == "mixtures" else "-",
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
            panel.errorbar(percents, middle, yerr=spread, elinewidth=0.7, capsize=2, **looks)
    step_caches = [plain(plan.step_cache) for plan in PLANS]
    chosen = [entry for entry in points.values() if not entry.get("cache") and entry.get("step_cache") in step_caches]
    percents = [100 * entry["fraction"] for entry in chosen]
    ring = {"s": 130, "facecolors": "none", "edgecolors": "black", "zorder": 5, "label": "plans of the node SpeedPlan"}
    above.scatter(percents, [entry["scores"]["all"]["percent"] for entry in chosen], **ring)
    below.scatter(percents, [100 * entry["distance"]["mean"] for entry in chosen], **ring)
    above.set(ylabel="all attributes right, %", ylim=(-3, 103))
    below.set(ylabel="distance of the latent to the full run's, % of its RMS", yscale="log")
    for panel in (above, below):
        panel.set(xlabel="FLOPs executed, % of the full run's", xlim=(102, 15))
        panel.axvline(50, color="0.7", linewidth=0.7)
        panel.grid(alpha=0.3)
    figure.legend(*above.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=5)
    figure.savefig(target, dpi=100)
    pyplot.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--prompts", choices=tuple(SETS), default="held_out")
    parser.add_argument("--number", type=int, default=128, help="prompts")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--points", nargs="+", help="only those with one of these texts in their name")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the transformer")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "frontier.json", help="written after every point")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "frontier.png")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    given = parse()
    if given.threads:
        torch.set_num_threads(given.threads)
    in_process.prepare("--cpu")
    bench = Bench(given.model, given.dtype, read_prompts(given.prompts, given.number), given.seeds)
    about = {
        "model": hashlib.sha256(given.model.read_bytes()).hexdigest()[:16],
        "setting": {"steps": STEPS, "cfg": CFG, "solver": "euler", "dtype": given.dtype},
        "prompts": {"set": given.prompts, "number": len(bench.prompts), "seeds": given.seeds},
        "blocks_least_missed_first": bench.order,
        "judged": list(COLUMNS),
    }
    figures: dict[str, Any] = {"about": about, "points": {}}
    full: dict[str, Tensor] = {}
    full_runs = FULL_RUNS / f"{given.json.stem}.safetensors"
    if given.json.exists() and full_runs.exists():
        found = json.loads(given.json.read_text())
        if found.get("about") == about:
            figures, full = found, load_file(full_runs)
    points = figures["points"]
    chosen = [point for point in POINTS if given.points is None or any(text in point.name for text in given.points)]
    for number, (seed, first) in enumerate(bench.rounds):
        for point in dict.fromkeys((POINTS[0], *chosen)):
            if settings_of(points.get(point.name, {})) != settings_of(begun(point)):
                points[point.name] = begun(point)  # new, or another one by the same name
            entry = points[point.name]
            if len(entry["flops"]) > number:
                continue  # of a run that was cancelled
            latents, flops = bench.run(point, seed, first)
            if point.name == FULL:
                full[str(number)] = latents
                FULL_RUNS.mkdir(exist_ok=True)
                save_file(full, full_runs)
            lengthened(entry, bench.judge(latents, first), flops, distances(latents, full[str(number)]))
            summed(entry, points[FULL])
            print(line_of(point.name, entry), flush=True)
            given.json.write_text(json.dumps(figures, indent=1) + "\n")
    for plan in PLANS:
        if (entry := points.get(f"plan {plan.speedup:g}x")) is not None:
            print(f"mmdit_core/caching/plans.py: {plan.speedup:g}x: {cost_of(entry)}")
    if given.plot and len(points) > 1:
        draw(points, given.plot)


if __name__ == "__main__":
    main()
