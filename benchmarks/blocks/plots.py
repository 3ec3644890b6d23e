"""Plots of the measurements."""

from __future__ import annotations

from pathlib import Path

MAP_COLUMNS = ("background", "colour", "shape", "count", "spatial")
LINES = {"skip": "tab:blue", "disable": "tab:red", "boost": "tab:green"}
LABELS = {"skip": "skip", "disable": "disable text (onward)", "boost": "boost text x2 (residual)"}
BRANCH_LINES = {"both": "tab:blue", "negative": "tab:orange"}  # dashed: in the second half only


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_map(figures: dict, target: Path) -> None:
    """Plot the accuracy of each attribute by block, one line for each operation; the baseline is dashed."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, len(MAP_COLUMNS), figsize=(17, 3.4), layout="constrained", sharey=True)
    for panel, column in zip(panels, MAP_COLUMNS, strict=True):
        panel.axhline(figures["baseline"][column]["percent"], color="0.4", linestyle="--", label="baseline")
        for name, entries in figures["operations"].items():
            points = [entry["scores"][column] for entry in entries]
            middle = [point["percent"] for point in points]
            panel.plot(range(len(points)), middle, "o-", color=LINES[name], label=LABELS[name], markersize=3)
            lows, highs = ([point[end] for point in points] for end in ("low", "high"))
            panel.fill_between(range(len(points)), lows, highs, color=LINES[name], alpha=0.12, linewidth=0)
        panel.set(title=column, xlabel="block", ylim=(-3, 103), xticks=range(len(points)))
    panels[0].set_ylabel("correct images, %")
    panels[0].legend(fontsize=8)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def draw_skips(figures: dict, target: Path) -> None:
    """Plot the accuracy of all attributes against the fraction of saved block calls, one line for each curve."""
    pyplot = _pyplot()
    figure, panel = pyplot.subplots(figsize=(7, 4), layout="constrained")
    base = figures["baseline"]["all"]["percent"]
    panel.axhline(base, color="0.4", linestyle="--", label="baseline")
    for name, entries in figures["curves"].items():
        branch, _, late = name.partition(", ")
        style = dict(color=BRANCH_LINES[branch], linestyle="--" if late else "-")
        saved = [100 * entry["saved"] for entry in entries]
        points = [entry["scores"]["all"] for entry in entries]
        middle = [base, *(point["percent"] for point in points)]
        panel.plot([0, *saved], middle, marker="o", label=name, **style)
        lows, highs = ([point[end] for point in points] for end in ("low", "high"))
        panel.fill_between(saved, lows, highs, color=BRANCH_LINES[branch], alpha=0.15, linewidth=0)
    panel.set(xlabel="block calls saved, %", ylabel="all attributes correct, %", ylim=(-3, 103))
    panel.legend()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
