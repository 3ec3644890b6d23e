"""Tables of the figures, and the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from PIL import Image, ImageDraw

from attributes.judge import wilson

from .edits import KINDS, Edit
from .measures import KEPT, NEAR, SAME

ALL, WIDE = "all kinds", f"background, kept within {NEAR}/255 instead of {SAME}/255"
LINE, HEAD, GAP = 13, 18, 4  # pixels of a text line, of the column names, between images


def figures(rows: Sequence[dict], fraction: str = "kept") -> dict:
    """The figures of some edits: percents with Wilson's 95% interval (percent, low, high), and the medians.

    Args: fraction, "kept" or "near" of `measure`.
    """
    kept = [row[fraction] >= KEPT for row in rows]
    objects = [row["objects"] for row in rows if row["objects"] is not None]
    right = [row["right"] for row in rows]
    return {
        "edits": len(rows),
        "right": _percent(right),
        "kept": _percent(kept),
        "both": _percent([a and b for a, b in zip(kept, right, strict=True)]),
        "median kept": round(100 * median(row[fraction] for row in rows), 1),
        "median objects": round(100 * median(objects), 1) if objects else None,
    }


def _percent(values: Sequence[bool]) -> list[float]:
    low, high = wilson(sum(values), len(values))
    return [round(100 * value, 1) for value in (sum(values) / len(values), low, high)]


def by_kind(rows: Sequence[dict]) -> dict[str, dict]:
    """The figures of each kind, of background edits with the wider limit, and of all. Args: rows, the kinds in turn."""
    parts = {kind: rows[index :: len(KINDS)] for index, kind in enumerate(KINDS)}
    found = {kind: figures(part) for kind, part in (*parts.items(), (ALL, rows))}
    return {**found, WIDE: figures(parts["background"], "near") | {"median objects": None}}


def tables(results: Mapping[str, Mapping[str, dict]]) -> str:
    """Markdown, a table for each kind. Args: results, `by_kind` by the method's label."""
    parts = []
    for kind in (*KINDS, WIDE, ALL):
        lines = [
            f"**{kind}**",
            "",
            "| method | edits | right | kept, median | objects kept, median | kept >= 95% | right and kept |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for label, found in results.items():
            one = found[kind]
            medians = ("-" if one[name] is None else one[name] for name in ("median kept", "median objects"))
            cells = (one["edits"], _cell(one["right"]), *medians, _cell(one["kept"]), _cell(one["both"]))
            lines.append(f"| {label} | {' | '.join(map(str, cells))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(values: Sequence[float]) -> str:
    percent, low, high = values
    return f"{percent:.0f} ({low:.0f} to {high:.0f})"


def contact_sheet(
    edits: Sequence[Edit], before: np.ndarray, after: Mapping[str, tuple[np.ndarray, Sequence[dict]]]
) -> Image.Image:
    """The images to edit, and what each method made of them, a row for each edit.

    Args: before [N, H, W, 3], uint8; after, by label the images and their measures.
    """
    _, height, width, _ = before.shape
    step = height + 2 * LINE + GAP
    sheet = Image.new("RGB", ((1 + len(after)) * (width + GAP), HEAD + len(edits) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(("image to edit", *after)):
        pen.text((column * (width + GAP) + 2, 3), label, "black")
    for index, edit in enumerate(edits):
        top = HEAD + index * step
        source, target = edit.texts
        pen.text((2, top), f"{edit.kind}: {source}  ->  {target}", "black")
        sheet.paste(Image.fromarray(before[index]), (0, top + LINE))
        for column, (images, rows) in enumerate(after.values(), start=1):
            left, row = column * (width + GAP), rows[index]
            sheet.paste(Image.fromarray(images[index]), (left, top + LINE))
            verdict = "right" if row["right"] else f"{row['wrong'][0]} wrong"
            pen.text((left + 2, top + LINE + height), f"{verdict}, {100 * row['kept']:.0f}%", "black")
    return sheet


def overlay(image: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """An image [H, W, 3], uint8, with magenta where an edit may change it."""
    tint = np.array((255, 0, 255), float)
    return np.where(rest[..., None], image, 0.5 * image + 0.5 * tint).astype(np.uint8)
