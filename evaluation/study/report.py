"""The report of a study: one HTML page with the block map, the choices and their proof, and images."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmdit_core.files import write_whole

from ..controls import Control
from .run import KEPT, Proof, Result, Study, image_path
from .statistics import OVERALL, Interval, by_attribute

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 96em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px } th, td { padding: .25em .7em; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left } td { white-space: nowrap }
tr:nth-child(even) { background: #f4f4f4 } img.tile { width: 160px; image-rendering: auto; margin: 2px }
figure { display: inline-block; margin: 0 .4em .6em 0; vertical-align: top; width: 164px; font-size: 12px }
.good { color: #06682f; font-weight: 600 } .bad { color: #a11 } svg { max-width: 100%; height: auto }
"""
COLOURS = {"skip": "tab:blue", "disable": "tab:red", "boost": "tab:green"}


def write_report(result: Result, study: Study, path: Path) -> None:
    """Write the page; its images stay in the folder next to it."""
    title = f"Blocks of {result.plan.model}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        *_about(result, study),
        "<h2>Block map</h2>",
        "<p>The change of each attribute, in percentage points, with one operation on one block, on the prompts to "
        "choose on. The bands are 95% intervals over prompts: where many blocks are tried, some reach beyond 0 by "
        "chance.</p>",
        _map_plot(result),
        *_map_tables(result),
        "<h2>Choices and their proof</h2>",
        *_proofs(result),
        "<h2>Images</h2>",
        *_images(result, study),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    write_whole(path, head + "\n".join(parts) + "</html>\n")


def _about(result: Result, study: Study) -> Iterable[str]:
    plan, chosen = result.plan, result.plan.settings
    settings = ", ".join(f"{name} {value}" for name, value in plan.sampling.items() if value is not None)
    bad, asked = result.unreadable
    yield _table(
        ("", ""),
        [
            ("Model", f"{plan.model} ({plan.family}, {plan.double} + {plan.single} blocks)"),
            ("Sampling", settings),
            ("Prompts", f"{plan.set_name}: {chosen.choose} to choose on, {chosen.prove} others to prove on"),
            ("Seeds", ", ".join(map(str, chosen.seeds))),
            ("Judge", plan.judge),
            ("Answers", f"{asked:,}, of which {bad:,} could not be read"),
        ],
    )
    names = by_attribute(result.baseline_choose)
    rows = [
        (part, *(found[name].plain if name in found else "" for name in names))
        for part, found in (("to choose on", result.baseline_choose), ("to prove on", result.baseline_prove))
    ]
    yield "<h2>The model as it is</h2>" + _table(("prompts", *names), rows)
    yield f"<p>{OVERALL}: the mean of an image's attributes. all: every answer is yes.</p>"
    if study.dropped_images:
        yield "<p>The folder reached --max-disk-gb: some images are not kept. The cells are complete.</p>"


def _map_plot(result: Result) -> str:
    """The gains by block as SVG: one panel for each attribute, one line for each operation and branch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "mmdit"  # so that the same numbers give the same file
    names, blocks = by_attribute(result.baseline_choose), result.plan.settings.blocks
    across = min(3, len(names))
    down = -(-len(names) // across)
    size = (5 * across, 2.9 * down)
    figure, panels = pyplot.subplots(down, across, figsize=size, layout="constrained", squeeze=False, sharex=True)
    kinds = dict.fromkeys(_kind(control) for control in result.map)
    for panel, name in zip(panels.flat, names, strict=False):
        panel.axhline(0, color="0.5", linewidth=0.8)
        for style, kind in enumerate(kinds):
            found = {c.blocks[0]: gains[name] for c, gains in result.map.items() if _kind(c) == kind and name in gains}
            at = [block for block in blocks if block in found]
            colour, line = COLOURS[kind.split(",")[0].split()[0]], ("-", "--", ":", "-.")[style % 4]
            panel.plot(at, [found[b].mean for b in at], line, marker="o", markersize=3, color=colour, label=kind)
            lows, highs = [found[b].low for b in at], [found[b].high for b in at]
            panel.fill_between(at, lows, highs, color=colour, alpha=0.08, linewidth=0)
        panel.set_title(name, fontsize=10, parse_math=False)
        panel.set_xlabel("block")
        panel.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
        panel.tick_params(labelbottom=True)
    for panel in list(panels.flat)[len(names) :]:
        panel.set_visible(False)
    panels[0, 0].set_ylabel("percentage points")
    panels[0, 0].legend(fontsize=7)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _map_tables(result: Result) -> Iterable[str]:
    names = by_attribute(result.baseline_choose)
    for kind in dict.fromkeys(_kind(control) for control in result.map):
        rows = [
            (str(control.blocks[0]), *(_signed(found.get(name)) for name in names))
            for control, found in sorted(result.map.items())
            if _kind(control) == kind
        ]
        yield f"<details><summary>{_text(kind)}</summary>{_table(('block', *names), rows, plain=True)}</details>"


def _proofs(result: Result) -> Iterable[str]:
    yield (
        "<p>Chosen on one part of the prompts and measured on the other, at the same cfg and with the same noise. "
        "Random sets are of equal size, on the same prompts.</p>"
    )
    for proof in result.proofs:
        names = by_attribute(proof.gains)
        rows = [
            (part, *(_signed(found.get(name)) for name in names))
            for part, found in (("to choose on", proof.chosen), ("to prove on", proof.gains))
        ]
        yield f"<h3>{_text(proof.control.name)}</h3>" + _table(("prompts", *names), rows, plain=True)
        yield f"<p>{_text(verdict(proof))}</p>"
    yield from (f"<p>{_text(line)}.</p>" for line in result.unchosen)


def verdict(proof: Proof) -> str:
    """What a proof shows, in words."""
    gain, mean = proof.gains[OVERALL], proof.random_mean
    if proof.control.action == "skip":
        words = f"Skipping these changes the overall score by {gain} points"
    elif proof.helps:
        words = f"The boost gains {gain} points of the overall score"
    else:
        why = "the interval holds 0" if gain.low <= 0 else f"{gain.n} prompts are too few"
        words = f"The boost is not proven: {gain} points of the overall score, and {why}"
    if mean is None:
        return f"{words}; no random sets were measured."
    return f"{words}; it does better than {proof.beaten} of {len(proof.random)} random sets, whose mean is {mean}."


def _images(result: Result, study: Study) -> Iterable[str]:
    settings = result.plan.settings
    proven = range(settings.choose, settings.choose + min(KEPT, settings.prove))
    rows: list[tuple[str, Control | None]] = [("as it is", None)]
    rows += [(proof.control.name, proof.control) for proof in result.proofs]
    for label, control in rows:
        yield f"<h3>{_text(label)}</h3>" + _tiles(result, study, control, proven)
    chosen = range(min(KEPT, settings.choose))
    for label, control in [("as it is", None), *((each.name, each) for each in sorted(result.map))]:
        tiles = _tiles(result, study, control, chosen)
        yield f"<details><summary>{_text(label)}, prompts to choose on</summary>{tiles}</details>"


def _tiles(result: Result, study: Study, control: Control | None, prompts: Iterable[int]) -> str:
    tiles = []
    for number in prompts:
        path = image_path(study.images, control, number)
        if path.is_file():
            text = _text(result.plan.prompts[number].text)
            image = f'<img class="tile" src="{study.images.name}/{path.name}" alt="{text}">'
            tiles.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return "".join(tiles)


def _kind(control: Control) -> str:
    """A control without its blocks."""
    boost = f" {control.mode} x{control.strength:g}" if control.action == "boost" else ""
    return f"{control.action}{boost}, {control.branch}"


def _signed(found: Interval | None) -> str:
    if found is None:
        return ""
    kind = "good" if found.low > 0 else "bad" if found.high < 0 else ""
    return f'<span class="{kind}">{found}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], plain: bool = False) -> str:
    """A table. Args: plain, the cells are HTML already."""
    cell = str if plain else _text
    lines = ["<tr>" + "".join(f"<td>{cell(each)}</td>" for each in row) + "</tr>" for row in rows]
    return "<table><tr>" + "".join(f"<th>{_text(each)}</th>" for each in head) + "</tr>" + "".join(lines) + "</table>"


def _text(text: str) -> str:
    return html.escape(text)
