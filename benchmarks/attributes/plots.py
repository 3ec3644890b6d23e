"""Plots of sweeps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from attributes.judge import COLUMNS
from mmdit_core.solvers import SOLVERS

XLABELS = {"cfg": "cfg", "cfg_end": "where cfg stops", "dropped": "encoders dropped"}


def draw_sweep(name: str, points: list[dict], target: Path) -> None:
    """Plot accuracy against model calls by solver ("steps"), against cfg or its end, or by dropped encoders."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if name == "steps":
        figure, panels = pyplot.subplots(1, 3, figsize=(14, 4.2), layout="constrained", sharey=True)
        _solvers(panels, points)
    else:
        figure, panel = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for column in COLUMNS:
            values = [point["scores"][column]["percent"] for point in points]
            labels = [point[name] if name in point else "+".join(point["drop"]) for point in points]
            panel.plot(labels, values, "o-", label=column, linewidth=2 if column == "all" else 1)
        panel.set(xlabel=XLABELS[name], ylabel="correct images, %", ylim=(0, 102))
        panel.tick_params(axis="x", rotation=20 if name == "dropped" else 0)
        panel.legend(fontsize=8)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _solvers(panels, points: list[dict]) -> None:
    lines: dict[str, list[dict]] = defaultdict(list)
    for point in points:
        lines[point["solver"]].append(point)
    titles = ("one call per step", "several calls per step", "noise in each step")
    for solver, found in lines.items():
        method = SOLVERS[solver]
        noisy = any(option.name == "eta" for option in method.options)
        index = 2 if noisy else 0 if method.calls_per_step == 1 else 1
        calls = [point["calls"] for point in found]
        panels[index].plot(
            calls, [point["scores"]["all"]["percent"] for point in found], "o-", markersize=3, label=solver
        )
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="model calls", xscale="log", xticks=[4, 8, 16, 28, 50, 100, 200])
        panel.set_xticklabels([4, 8, 16, 28, 50, 100, 200])
        panel.minorticks_off()
        panel.legend(fontsize=7)
    panels[0].set_ylabel("all attributes correct, %")
