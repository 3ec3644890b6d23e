"""Preset files: settings of block controls that were measured in a study or saved by a user, as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from .grammar import BlockTextError, parse_block_strengths, parse_blocks
from .spec import CHOICES, MOST_STRENGTH

FORMAT, VERSION = "mmdit-presets", 1
ACTIONS = ("skip", "boost")
MAX_FILE = 256_000  # characters of a file
MAX_PRESETS = 200  # in a file
MAX_BLOCKS = 1000  # of a model
MAX_TEXT = 500  # characters of a block list, and of a `made_for`
MAX_NAME = 255  # characters of any other text

_MADE_FOR = re.compile(r"(?P<family>.+?) (?P<double>\d{1,4})\+(?P<single>\d{1,4}): (?P<about>.+)")


class PresetError(ValueError):
    """A preset cannot be used. Attributes: field, as "presets[0].widgets.blocks"; found; right, what to write."""

    def __init__(self, field: str, found: str, right: str):
        self.field, self.found, self.right = field, found, right
        super().__init__(f"{field}: {found}. {right}")


@dataclass(frozen=True)
class Evidence:
    """What a study measured for a preset.

    Fields: date, YYYY-MM-DD; set and prompts, the prompt set and how many prompts; judge; attribute, that was judged;
    gain, low, high: change of the score, in percentage points, with its 95% interval; random: mean gain of random block
    sets of equal size, None if not measured; steps and cfg, None if the workflow has none; saved: fraction of block
    calls that a skip saves, None if not measured.
    """

    date: str
    set: str
    prompts: int
    judge: str
    attribute: str
    gain: float
    low: float
    high: float
    random: float | None
    steps: int | None
    cfg: float | None
    saved: float | None = None


@dataclass(frozen=True)
class MeasuredPreset:
    """A setting of BlockSkip or TextBoost for one model.

    Fields: name, that users see; action, "skip" or "boost"; family, the model's name for people, as "SD3, SD3.5";
    double and single, its numbers of blocks; file, its checkpoint, without folders; blocks, as text, and branch;
    strength and mode, of a boost alone; evidence, None for a preset that a user saved.
    """

    name: str
    action: str
    family: str
    double: int
    single: int
    file: str
    blocks: str
    branch: str
    strength: float | None = None
    mode: str | None = None
    evidence: Evidence | None = None

    @property
    def model(self) -> MadeFor:
        """The model that the preset is for."""
        return MadeFor(self.family, self.double, self.single)

    @property
    def made_for(self) -> str:
        """The model and the evidence in one line, as `read_made_for` reads it back.

        "SD3, SD3.5 8+0: mmdit-small.safetensors, 2026-11-30, 128 shapes prompts, all +3.1 (0.4 to 5.8)".
        """
        parts = [self.file]
        if (found := self.evidence) is not None:
            gain = f"{found.attribute} {found.gain:+.1f} ({found.low:.1f} to {found.high:.1f})"
            parts += [found.date, f"{found.prompts} {found.set} prompts", gain]
        return f"{self.model}: {', '.join(parts)}"


@dataclass(frozen=True)
class MadeFor:
    """The model that a setting is for. Fields: family, double, single, as in MeasuredPreset."""

    family: str
    double: int
    single: int

    def __str__(self) -> str:
        return f"{self.family} {self.double}+{self.single}"


def read_made_for(text: str) -> MadeFor:
    """The model that a line of `MeasuredPreset.made_for` names. Raises: PresetError."""
    match = _MADE_FOR.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None:
        right = 'Write the family, its numbers of blocks and a note, as "SD3, SD3.5 24+0: my model", or empty it'
        raise PresetError("made_for", f"{text[:60]!r} names no model", right)
    return MadeFor(match["family"], int(match["double"]), int(match["single"]))


def read_presets(text: str) -> tuple[MeasuredPreset, ...]:
    """The presets of a file's text. Raises: PresetError for anything that is not exactly the format."""
    if len(text) > MAX_FILE:
        raise PresetError("file", f"{len(text)} characters", f"A file has at most {MAX_FILE}")
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PresetError(
            "file", f"not JSON: {error!s:.100}", "Take a file that a study or Save as preset wrote"
        ) from None
    _keys("file", content, ("format", "version", "presets"), ("made_by",))
    _maybe(_text())("made_by", content.get("made_by"))
    if content["format"] != FORMAT:
        raise PresetError("format", _shown(content["format"]), f"It must be {FORMAT!r}")
    if type(content["version"]) is not int or content["version"] != VERSION:
        raise PresetError("version", _shown(content["version"]), f"This version of the pack reads version {VERSION}")
    presets = content["presets"]
    if not isinstance(presets, list) or len(presets) > MAX_PRESETS:
        found = f"{len(presets)} presets" if isinstance(presets, list) else _shown(presets)
        raise PresetError("presets", found, f"It must be a list of at most {MAX_PRESETS}")
    made = tuple(_preset(f"presets[{index}]", each) for index, each in enumerate(presets))
    names = [(preset.action, preset.name) for preset in made]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise PresetError(f"presets[{index}].name", f"{name[1]!r} is taken", "Each preset needs its own name")
    return made


def write_presets(presets: Sequence[MeasuredPreset], made_by: str = "") -> str:
    """A file's text with these presets; `read_presets` gives them back.

    Args: made_by, the program that may replace the file; "" for none.
    Raises: PresetError for values out of range.
    """
    try:
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **({"made_by": made_by} if made_by else {})}
        content["presets"] = [_as_json(preset) for preset in presets]
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise PresetError("presets", f"{error!s:.100}", "Each value must be a text or a finite number") from error
    read_presets(text)
    return text


def _as_json(preset: MeasuredPreset) -> dict[str, Any]:
    widgets: dict[str, Any] = {"blocks": preset.blocks, "branch": preset.branch}
    widgets |= {name: value for name in BOOST if (value := getattr(preset, name)) is not None}
    found = preset.evidence
    evidence = None if found is None else {each.name: getattr(found, each.name) for each in fields(found)}
    if evidence is not None and evidence["saved"] is None:
        del evidence["saved"]
    model = {name: getattr(preset, name) for name in ("family", "double", "single", "file")}
    return {"name": preset.name, "action": preset.action, "model": model, "widgets": widgets, "evidence": evidence}


Check = Callable[[str, Any], Any]  # (where, value) -> the value; raises PresetError


def _text(longest: int = MAX_NAME, *, empty: bool = False) -> Check:
    def check(where: str, value: Any) -> str:
        if (
            not isinstance(value, str)
            or not value.isprintable()
            or len(value) > longest
            or not (empty or value.strip())
        ):
            least = "" if empty else ", not empty"
            raise PresetError(where, _shown(value), f"It must be one line of at most {longest} characters{least}")
        return value

    return check


def _choice(choices: Sequence[str]) -> Check:
    def check(where: str, value: Any) -> str:
        if not (isinstance(value, str) and value in choices):
            raise PresetError(where, _shown(value), f"It must be one of {', '.join(choices)}")
        return value

    return check


def _whole(low: int, high: int) -> Check:
    def check(where: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise PresetError(where, _shown(value), f"It must be a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(where: str, value: Any) -> float:
        # The range comes before the conversion: an int can be too large for a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise PresetError(where, _shown(value), f"It must be a number from {low:g} to {high:g}")
        return float(value)

    return check


def _maybe(check: Check) -> Check:
    return lambda where, value: None if value is None else check(where, value)


def _day(where: str, value: Any) -> str:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        pass
    raise PresetError(where, _shown(value), "It must be a date, as 2026-11-30")


def _file(where: str, value: Any) -> str:
    name = _text()(where, value)
    if re.search(r"[\\/]", name):
        raise PresetError(where, _shown(value), "It must be a file's name without folders")
    return name


MODEL: dict[str, Check] = {
    "family": _text(),
    "double": _whole(0, MAX_BLOCKS),
    "single": _whole(0, MAX_BLOCKS),
    "file": _file,
}
WIDGETS: dict[str, Check] = {"blocks": _text(MAX_TEXT, empty=True), "branch": _choice(CHOICES["branch"])}
BOOST: dict[str, Check] = {"strength": _number(0, MOST_STRENGTH), "mode": _choice(CHOICES["mode"])}
_POINTS = _number(-100, 100)
EVIDENCE: dict[str, Check] = {
    "date": _day,
    "set": _text(),
    "prompts": _whole(1, 1_000_000),
    "judge": _text(),
    "attribute": _text(),
    "gain": _POINTS,
    "low": _POINTS,
    "high": _POINTS,
    "random": _maybe(_POINTS),
    "steps": _maybe(_whole(1, 10_000)),
    "cfg": _maybe(_number(0, 100)),
}
SAVED: dict[str, Check] = {"saved": _maybe(_number(0, 1))}


def _preset(where: str, value: Any) -> MeasuredPreset:
    _keys(where, value, ("name", "action", "model", "widgets", "evidence"))
    name = _text()(f"{where}.name", value["name"])
    action = _choice(ACTIONS)(f"{where}.action", value["action"])
    model = _checked(f"{where}.model", value["model"], MODEL)
    widgets = _checked(f"{where}.widgets", value["widgets"], WIDGETS | (BOOST if action == "boost" else {}))
    _blocks(f"{where}.widgets.blocks", action, widgets["blocks"], model["double"], model["single"])
    evidence = None if value["evidence"] is None else _evidence(f"{where}.evidence", action, value["evidence"])
    made = MeasuredPreset(name=name, action=action, **model, **widgets, evidence=evidence)
    if len(made.made_for) > MAX_TEXT or read_made_for(made.made_for) != made.model:
        raise PresetError(f"{where}.model.family", _shown(model["family"]), "It must be a family's name and no numbers")
    return made


def _evidence(where: str, action: str, value: Any) -> Evidence:
    found = Evidence(**_checked(where, value, EVIDENCE, SAVED if action == "skip" else {}))
    if not found.low <= found.gain <= found.high:
        interval = f"{found.gain:g} is not in {found.low:g} to {found.high:g}"
        raise PresetError(f"{where}.gain", interval, "The gain must be inside its interval")
    return found


def _blocks(where: str, action: str, text: str, double: int, single: int) -> None:
    """Raises: PresetError for a block list that names no block of the model."""
    try:
        if action == "boost":
            strengths = parse_block_strengths(text, double, single)
            strongest = max(strengths.values(), default=0)
            if strongest > MOST_STRENGTH:
                raise PresetError(where, f"a strength of {strongest:g}", f"It must be at most {MOST_STRENGTH:g}")
            named = bool(strengths)
        else:
            named = bool(parse_blocks(text, double, single))
    except BlockTextError as error:
        raise PresetError(where, error.found, error.right) from error
    if not named:
        raise PresetError(where, "no block is named", "Name at least one block")


def _checked(
    where: str, value: Any, checks: Mapping[str, Check], optional: Mapping[str, Check] | None = None
) -> dict[str, Any]:
    """The values of an object that has these keys and no others, checked."""
    optional = optional or {}
    _keys(where, value, tuple(checks), tuple(optional))
    every = {**checks, **optional}
    return {name: every[name](f"{where}.{name}", each) for name, each in value.items()}


def _keys(where: str, value: Any, names: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(value, dict):
        raise PresetError(where, _shown(value), f"It must be an object with {', '.join(names)}")
    for name in names:
        if name not in value:
            raise PresetError(f"{where}.{name}", "missing", f"It needs {', '.join(names)}")
    for name in value:
        if name not in (*names, *optional):
            raise PresetError(f"{where}.{name:.40}", "unknown", f"There are {', '.join((*names, *optional))}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _shown(value: Any) -> str:
    """A value for people, at most 60 characters long."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    if isinstance(value, int) and abs(value) > 10**15:
        return "a number too large"
    return repr(value)[:60]
