"""Write `workflows/*.json` from what they say: which nodes, which inputs, what the note explains.

    python -m scripts.make_workflows [name ...]

The files are what people open; this is where they are edited. Positions follow from the links: a node stands one
column to the right of the last that feeds it. Widget values are stored by position, in the order of the host's own
definitions. A file that was ever shipped keeps loading: its copy in `tests/workflows/` is never written again.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from scripts.console import say
from scripts.environment import ROOT
from scripts.server import temporary_server
from scripts.workflow import has_control, inputs_in_order, is_widget
from scripts.workflow_specs import WORKFLOWS, Node, WorkflowSpec

TARGET = ROOT / "workflows"
LEFT, TOP, GAP_X, GAP_Y = 40, 120, 60, 60
WIDTHS = {"TripleTextEncode": 420, "SaveImage": 340, "PreviewImage": 340, "PreviewAny": 340}
IMAGES = {"SaveImage", "PreviewImage", "LoadImage"}
TITLE, ROW, TEXT, PICTURE = 36, 24, 130, 320  # heights: of a title, a slot or widget, a long text, a shown picture
RARE_TEXT = 70  # height of a long text among the advanced inputs
# What a node shows besides its rows, in pixels: strip, curve, counts, and after a run its summary or its text.
SHOWN = {
    "TripleTextEncode": 50,
    "FlowMatchingSampler": 190,
    "FlowInvert": 70,
    "BlockSkip": 110,
    "TextBoost": 60,
    "TextDisable": 110,
    "BlockPrompt": 110,
    "SpeedPlan": 110,
    "BlockAnalysis": 70,
    "PreviewAny": 140,
}
# What a new node of the pack gets in the page (COLOURS in web/js/mmdit.js), by category and, within one, by type.
COLOURS = {"MMDiT": "#223", "MMDiT/blocks": "#323", "TripleTextEncode": "#232", "MMDiTLoader": "#233"}
NOTE_WIDTH, NOTE_COLUMNS = 360, 44


@dataclass
class Placed:
    """A node with its number, its column and the links into it."""

    node: Node
    number: int
    info: dict[str, Any]
    column: int = 0
    links: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return WIDTHS.get(self.node.type, 330)

    @property
    def colour(self) -> str | None:
        return COLOURS.get(self.node.type) or COLOURS.get(self.info["category"])

    @property
    def height(self) -> int:
        """In the classic page, which shows all inputs."""
        widgets = self.widgets
        slots = max(len(self.links), len(self.info["output"]))
        long = [options for _, _, options in widgets if options.get("multiline")]
        texts = sum(RARE_TEXT if options.get("advanced") else TEXT for options in long)
        seeds = sum(has_control(*widget) for widget in widgets)
        picture = PICTURE if self.node.type in IMAGES else 0
        rows = TITLE + ROW * (slots + len(widgets) - len(long) + seeds)
        return rows + texts + picture + SHOWN.get(self.node.type, 0)

    @property
    def stored_height(self) -> int:
        """Without the rare inputs, which Nodes 2.0 hides: the classic page grows a node to what it shows, that one does
        not shrink it. Long texts share what there is, so that a node with some keeps its height.
        """
        long = any(options.get("multiline") for _, _, options in self.widgets)
        rare = sum(bool(options.get("advanced")) for _, _, options in self.widgets)
        return self.height - (0 if long else ROW * rare)

    @property
    def widgets(self) -> list[tuple[str, Any, dict[str, Any]]]:
        return [(name, kind, options) for name, kind, options in self.inputs if is_widget(kind, options)]

    @property
    def inputs(self) -> list[tuple[str, Any, dict[str, Any]]]:
        return list(inputs_in_order(self.info))


def build(sheet: WorkflowSpec, info: dict[str, Any]) -> dict[str, Any]:
    """A workflow as the page stores it."""
    placed = {
        node.key: Placed(node, number, info[node.type], links=dict(node.links))
        for number, node in enumerate(sheet.nodes, start=1)
    }
    for one in placed.values():
        one.column = 1 + max((placed[source].column for source, _ in one.links.values()), default=-1)
    spots = _spots(list(placed.values()))
    links: list[list[Any]] = []
    outgoing: dict[tuple[str, int], list[int]] = defaultdict(list)
    nodes = []
    for one in placed.values():
        slots = []
        for slot, (name, kind, _) in enumerate(_slots(one)):
            link = None
            if name in one.links:
                source, output = one.links[name]
                link = len(links) + 1
                links.append([link, placed[source].number, output, one.number, slot, _kind(kind)])
                outgoing[source, output].append(link)
            slots.append({"name": name, "type": _kind(kind), "link": link})
        nodes.append(
            {
                "id": one.number,
                "type": one.node.type,
                "pos": spots[one.node.key],
                "size": [one.width, one.stored_height],
                "flags": {},
                "order": one.number - 1,
                "mode": 0,
                "inputs": slots,
                "outputs": [],
                "properties": {"Node name for S&R": one.node.type},
                **({"title": one.node.title} if one.node.title else {}),
                **({"color": one.colour} if one.colour else {}),
                "widgets_values": _values(one),
            }
        )
    for node, one in zip(nodes, placed.values(), strict=True):
        names = one.info.get("output_name") or one.info["output"]
        node["outputs"] = [
            {"name": name, "type": kind, "links": outgoing.get((one.node.key, slot)) or None}
            for slot, (name, kind) in enumerate(zip(names, one.info["output"], strict=True))
        ]
    nodes.append(_note(sheet, len(nodes) + 1, nodes))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"mmdit/workflows/{sheet.name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _slots(one: Placed) -> list[tuple[str, Any, dict[str, Any]]]:
    """The inputs that are drawn as slots: those that are no widgets, linked or not."""
    return [entry for entry in one.inputs if not is_widget(entry[1], entry[2])]


def _kind(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def _values(one: Placed) -> list[Any]:
    """The widgets' values by position."""
    values: list[Any] = []
    known = {name for name, _, _ in one.inputs}
    if unknown := set(one.node.values) - known:
        raise ValueError(f"{one.node.type} has no input {', '.join(sorted(unknown))}")
    for name, kind, options in one.inputs:
        if not is_widget(kind, options):
            continue
        first = kind[0] if isinstance(kind, list) and kind else None
        values.append(one.node.values.get(name, options.get("default", first)))
        if has_control(name, kind, options):
            values.append("fixed")
    return values


def _spots(placed: list[Placed]) -> dict[str, list[int]]:
    """Top left corners: columns side by side, the nodes of one column below each other."""
    columns: dict[int, list[Placed]] = defaultdict(list)
    for one in placed:
        columns[one.column].append(one)
    spots, x = {}, LEFT
    for column in sorted(columns):
        y = TOP
        for one in columns[column]:
            spots[one.node.key] = [x, y]
            y += one.height + GAP_Y
        x += max(one.width for one in columns[column]) + GAP_X
    return spots


def _note(sheet: WorkflowSpec, number: int, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The note, below the first column."""
    first = [node for node in nodes if node["pos"][0] == LEFT]
    below = max(node["pos"][1] + node["size"][1] for node in first) + GAP_Y
    lines = sum(1 + len(line) // NOTE_COLUMNS for line in sheet.note.splitlines())
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [LEFT, below],
        "size": [NOTE_WIDTH, 60 + 20 * lines],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": sheet.title,
        "properties": {},
        "widgets_values": [sheet.note],
    }


def main(names: list[str]) -> None:
    chosen = [sheet for sheet in WORKFLOWS if not names or sheet.name in names]
    with temporary_server("workflows") as server:
        info = server.client.object_info()
    for sheet in chosen:
        path = TARGET / f"{sheet.name}.json"
        path.write_text(json.dumps(build(sheet, info), indent=2) + "\n", encoding="utf-8")
        say(str(path))


if __name__ == "__main__":
    main(sys.argv[1:])
