"""The axes of a sweep: their values, read from text, and the cells of the grid. All is checked before any sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...mmdit_core.control.spec import MOST_STRENGTH, BlockControl
from ...mmdit_core.solvers import SOLVERS
from ...mmdit_core.sweep import (
    BlockList,
    ValuesError,
    parse_block_lists,
    parse_names,
    parse_numbers,
    parse_windows,
)
from ..comfyui import patching
from ..control import counts, why_it_cancels
from ..errors import InputError, require
from ..sampler.inputs import WIDGETS as SAMPLER
from ..widgets import MAX_SEED

NODE = "SweepXY"
NONE = "none"
MOST_CELLS = 400
OF_CONTROL = ("strength", "blocks", "window")
Controls = tuple[patching.Attached[BlockControl], ...]
AXES = (NONE, *OF_CONTROL, "cfg", "steps", "solver", "shift", "seed")
OTHER_AXIS = "or choose another axis"


@dataclass(frozen=True)
class Value:
    """One value of an axis. Fields: axis, its name; text, for labels and the report; value, of the axis' own type."""

    axis: str
    text: str
    value: Any

    def __str__(self) -> str:
        return f"{self.axis} {self.text}"


@dataclass(frozen=True)
class Axis:
    """An axis. Fields: name, of AXES; values, in order; a single None for the axis none."""

    name: str
    values: tuple[Value | None, ...] = (None,)

    def report(self) -> dict[str, Any] | None:
        """The entry of the report."""
        return {"axis": self.name, "values": [each.text for each in self.values if each]} if self.values[0] else None


@dataclass(frozen=True)
class CellSettings:
    """The sampler's settings of a cell, named as its inputs."""

    seed: int
    steps: int
    cfg: float
    solver: str
    schedule: str
    shift: float
    denoise: float


@dataclass(frozen=True)
class Cell:
    """One image of a sweep.

    Fields: x and y, its values, None for the axis none; settings; controls, instead of those of the model's last block
    node, None to leave them as they are.
    """

    x: Value | None
    y: Value | None
    settings: CellSettings
    controls: Controls | None

    @property
    def words(self) -> str:
        """Its place in the grid."""
        return ", ".join(str(value) for value in (self.x, self.y) if value is not None)


def read_axis(model, name: str, axis: str, text: str) -> Axis:
    """The values of an axis. Args: name, of the input, x or y; axis, of AXES; text, its values. Raises: InputError."""
    if axis == NONE:
        return Axis(axis)
    if axis in OF_CONTROL:
        _require_control(model, name, axis)
    try:
        return Axis(axis, tuple(Value(axis, *pair) for pair in _read(model, axis, text)))
    except ValuesError as error:
        raise InputError(NODE, f"{name}_values", f"{axis}: {error.found}", error.right) from error


def _read(model, axis: str, text: str) -> Sequence[tuple[str, Any]]:
    """(text, value) of each value. Raises: ValuesError."""
    if axis == "solver":
        return [(name, name) for name in parse_names(text, tuple(SOLVERS))]
    if axis == "window":
        return [(f"{start:g}-{end:g}", (start, end)) for start, end in parse_windows(text)]
    if axis == "blocks":
        strengths = patching.last_controls(model)[-1].value.action == "boost"
        found = parse_block_lists(text, *counts(NODE, model), strengths=strengths)
        for each in found:
            _require_strengths(each)
        return [(each.text, each) for each in found]
    options: Mapping[str, Any]
    kind, options = ("FLOAT", {"min": 0.0, "max": MOST_STRENGTH}) if axis == "strength" else SAMPLER[axis]
    low = 0 if options.get("random") else options["min"]  # the page draws the node's own seed, not those of an axis
    numbers = parse_numbers(text, low, options["max"], whole=kind == "INT", most=MOST_CELLS)
    least = options.get("least", 0.0)
    for value in numbers:
        if 0 < value < least:
            raise ValuesError(f"{value:g} is out of range", f"Write 0, or numbers from {least:g} to {options['max']:g}")
    return [(str(value) if isinstance(value, int) else f"{value:.6g}", value) for value in numbers]


def _require_strengths(listed: BlockList) -> None:
    for blocks, strength in listed.groups:
        if strength is not None and strength > MOST_STRENGTH:
            right = f"Write one from 0 to {MOST_STRENGTH:g}, as {blocks[0]}:1.5"
            raise ValuesError(f"block {blocks[0]} has strength {strength:g}", right)


def _require_control(model, name: str, axis: str) -> None:
    """Raises: InputError if the last block node on a MODEL has nothing that the axis changes."""
    items = patching.last_controls(model)
    last = [item.value for item in _last_row(items)]
    found = f"{axis} acts on the last block control of the model, and the model has none"
    right = f"Put Text Boost, Block Skip or another block node before this one, {OTHER_AXIS}"
    require(last, NODE, name, found, right)
    action = last[-1].action
    found = f"the last block control of the model is a {action}, which has no strength"
    require(axis != "strength" or action == "boost", NODE, name, found, f"Make Text Boost the last one, {OTHER_AXIS}")
    row = f"row {items[-1].row} of " if items[-1].row else ""
    found = f"{row}the last block node put {len(last)} controls on the model, and {axis} acts on one"
    right = f"Set its preset to none and write its blocks without strengths of their own, {OTHER_AXIS}"
    require(axis == "window" or len(last) == 1, NODE, name, found, right)


def _last_row(items: Controls) -> Controls:
    """The controls of a node's last row that is on; all of them if it has no rows."""
    return tuple(item for item in items if item.row == items[-1].row)


def grid(model, x: Axis, y: Axis, base: CellSettings, seed_step: int) -> tuple[Cell, ...]:
    """The cells in the order of the rows. Raises: InputError for too many, and for a control without an effect."""
    count = len(x.values) * len(y.values)
    name = "x_values" if len(x.values) >= len(y.values) else "y_values"
    found = f"{len(x.values)} columns and {len(y.values)} rows are {count:,} cells"
    require(count <= MOST_CELLS, NODE, name, found, f"Write values for at most {MOST_CELLS} cells")
    last = patching.last_controls(model)
    cells: list[Cell] = []
    for row in y.values:
        for column in x.values:
            given = {value.axis: value.value for value in (column, row) if value is not None}
            controls = _changed(last, {axis: value for axis, value in given.items() if axis in OF_CONTROL})
            _require_effect(model, controls or (), "x" if x.name in OF_CONTROL else "y")
            settings = replace(base, **{axis: value for axis, value in given.items() if axis not in OF_CONTROL})
            seed = (settings.seed + seed_step * len(cells)) % (MAX_SEED + 1)
            cells.append(Cell(column, row, replace(settings, seed=seed), controls))
    return tuple(cells)


def _changed(last: Controls, given: Mapping[str, Any]) -> Controls | None:
    """The controls of the last block node with other values, as that node would make them; None without any.

    A window is of the whole node, strength and blocks are of its last row.
    """
    if not given:
        return None
    if "window" in given:
        start, end = given["window"]
        last = tuple(_with(each, window=replace(each.value.window, start=start, end=end)) for each in last)
    own = _last_row(last)
    others = last[: len(last) - len(own)]
    if "strength" in given:
        own = tuple(_with(each, strength=given["strength"]) for each in own)
    if "blocks" in given:
        (one,) = own
        groups = given["blocks"].groups
        own = tuple(_with(one, blocks=b, strength=one.value.strength if s is None else s) for b, s in groups)
    return (*others, *own)


def _with(item: patching.Attached[BlockControl], **fields: Any) -> patching.Attached[BlockControl]:
    return replace(item, value=replace(item.value, **fields))


def _require_effect(model, controls: Controls, name: str) -> None:
    for control in (item.value for item in controls):
        if control.action == "boost":
            found = why_it_cancels(model, control)
            right = f"Set the mode of Text Boost to residual or value, {OTHER_AXIS}"
            require(not found, NODE, name, found, right)
