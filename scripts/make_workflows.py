"""Write `workflows/*.json` from the specs of scripts/workflow_specs.py: their nodes, inputs and notes.

    python -m scripts.make_workflows [name ...]

Positions follow from the links: a node is right of all nodes that feed it. Widget values are stored in the order of the
node definitions. A file that was ever shipped must keep loading: its copy in `tests/workflows/` is never written again.
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
from scripts.workflow import UNSAVED, has_control, inputs_in_order, is_widget
from scripts.workflow_parts import Node, WorkflowSpec
from scripts.workflow_specs import WORKFLOWS

TARGET = ROOT / "workflows"
LEFT, TOP, GAP_X, GAP_Y = 40, 120, 60, 60
PREVIEW = 300  # below a node that shows previews while it runs, which stay on it
PREVIEWING = {"FlowMatchingSampler", "FlowEdit", "BlockAnalysis", "SweepXY"}
WIDTHS = {"TripleTextEncode": 420, "SaveImage": 340, "PreviewImage": 340, "PreviewAny": 340}
IMAGE_NODES = {"SaveImage", "PreviewImage", "LoadImage", "ImageCompare"}
TITLE, ROW, TEXT, IMAGE = 36, 24, 130, 320  # heights of a title, a slot or widget, a long text, an image
RARE_TEXT = 70  # height of a long text among the advanced inputs
# Height of what a node shows besides its rows: strip, curve, counts, and after a run its summary or its text.
SHOWN = {
    "TripleTextEncode": 50,
    "FlowMatchingSampler": 190,
    "FlowInvert": 70,
    "FlowEdit": 70,
    "BlockSkip": 110,
    "TextBoost": 60,
    "TextDisable": 110,
    "BlockPrompt": 110,
    "SpeedPlan": 110,
    "BlockAnalysis": 70,
    "SweepXY": 70,
    "PreviewAny": 140,
}
# The colours of new nodes (COLOURS in web/js/mmdit.js) by type or else by category.
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
        """The width in pixels."""
        return WIDTHS.get(self.node.type, 330)

    @property
    def colour(self) -> str | None:
        """The title's colour; None for ComfyUI's own."""
        return COLOURS.get(self.node.type) or COLOURS.get(self.info["category"])

    @property
    def height(self) -> int:
        """The height in the classic renderer, which shows all inputs."""
        widgets = self.widgets
        slots = max(len(self.links), len(self.info["output"]))
        long = [options for _, _, options in widgets if options.get("multiline")]
        texts = sum(RARE_TEXT if options.get("advanced") else TEXT for options in long)
        seeds = sum(has_control(*widget) for widget in widgets)
        image = IMAGE if self.node.type in IMAGE_NODES else 0
        rows = TITLE + ROW * (slots + len(widgets) - len(long) + seeds)
        return rows + texts + image + SHOWN.get(self.node.type, 0)

    @property
    def stored_height(self) -> int:
        """The height in the file: without the advanced inputs, which Nodes 2.0 hides.

        The classic renderer enlarges a node that is too small; Nodes 2.0 does not shrink one that is too large. A node
        with long texts keeps its height, because the texts share it.
        """
        long = any(options.get("multiline") for _, _, options in self.widgets)
        rare = sum(bool(options.get("advanced")) for _, _, options in self.widgets)
        return self.height - (0 if long else ROW * rare)

    @property
    def widgets(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """(name, type, options) of the inputs with a widget."""
        return [(name, kind, options) for name, kind, options in self.inputs if is_widget(kind, options)]

    @property
    def inputs(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """(name, type, options) of all inputs that a file holds."""
        return [entry for entry in inputs_in_order(self.info) if isinstance(entry[1], list) or entry[1] not in UNSAVED]


def build(spec: WorkflowSpec, info: dict[str, Any]) -> dict[str, Any]:
    """A workflow in the form that ComfyUI saves.

    Args: info, the node definitions of /object_info.
    Raises: ValueError for an input that a node does not have.
    """
    placed = {
        node.key: Placed(node, number, info[node.type], links=dict(node.links))
        for number, node in enumerate(spec.nodes, start=1)
    }
    for one in placed.values():
        one.column = 1 + max((placed[source].column for source, _ in one.links.values()), default=-1)
    spots = _spots(list(placed.values()))
    links: list[list[Any]] = []
    outgoing: dict[tuple[str, int], list[int]] = defaultdict(list)
    nodes = []
    for one in placed.values():
        slots = []
        for slot, (name, kind, options) in enumerate(_slots(one)):
            link = None
            if name in one.links:
                source, output = one.links[name]
                link = len(links) + 1
                links.append([link, placed[source].number, output, one.number, slot, _kind(kind)])
                outgoing[source, output].append(link)
            widget = {"widget": {"name": name}} if is_widget(kind, options) else {}
            slots.append({"name": name, "type": _kind(kind), "link": link, **widget})
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
    nodes.append(_note(spec, len(nodes) + 1, nodes))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"mmdit/workflows/{spec.name}")),
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
    """The inputs without a widget, linked or not, and then the linked ones of those with one."""
    own = [entry for entry in one.inputs if not is_widget(entry[1], entry[2])]
    return own + [entry for entry in one.inputs if entry not in own and entry[0] in one.links]


def _kind(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def _values(one: Placed) -> list[Any]:
    """The widgets' values in order."""
    values: list[Any] = []
    known = {name for name, _, _ in one.inputs}
    if unknown := set(one.node.values) - known:
        raise ValueError(f"{one.node.type} has no input {', '.join(sorted(unknown))}")
    for name, kind, options in one.inputs:
        if not is_widget(kind, options):
            continue
        first = kind[0] if isinstance(kind, list) and kind else "" if kind == "STRING" else None
        values.append(one.node.values.get(name, options.get("default", first)))
        if has_control(name, kind, options):
            values.append("fixed")
    return values


def _spots(placed: list[Placed]) -> dict[str, list[int]]:
    """Top left corners by key: the nodes of a column are stacked."""
    columns: dict[int, list[Placed]] = defaultdict(list)
    for one in placed:
        columns[one.column].append(one)
    spots, x = {}, LEFT
    for column in sorted(columns):
        y = TOP
        for one in columns[column]:
            spots[one.node.key] = [x, y]
            y += one.height + GAP_Y + (PREVIEW if one.node.type in PREVIEWING else 0)
        x += max(one.width for one in columns[column]) + GAP_X
    return spots


def _note(spec: WorkflowSpec, number: int, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The note, below the first column."""
    first = [node for node in nodes if node["pos"][0] == LEFT]
    below = max(node["pos"][1] + node["size"][1] for node in first) + GAP_Y
    lines = sum(1 + len(line) // NOTE_COLUMNS for line in spec.note.splitlines())
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
        "title": spec.title,
        "properties": {},
        "widgets_values": [spec.note],
    }


def main(names: list[str]) -> None:
    """Write the workflows with these names, or all."""
    chosen = [spec for spec in WORKFLOWS if not names or spec.name in names]
    with temporary_server("workflows") as server:
        info = server.client.object_info()
    for spec in chosen:
        path = TARGET / f"{spec.name}.json"
        path.write_text(json.dumps(build(spec, info), indent=2) + "\n", encoding="utf-8")
        say(str(path))


if __name__ == "__main__":
    main(sys.argv[1:])
