"""Block controls as values: skip a block, disable the text that enters it, boost that text. And block lists as text.

Source of the three operations: arXiv 2601.02211, where they are called remove, disable and enhance. How they are
carried out is in hooks.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "action": ("skip", "disable", "boost"),
    "mode": ("residual", "attention", "value"),
    "scope": ("onward", "block"),
    "part": ("all", "clip", "t5"),
    "branch": ("both", "positive", "negative"),
    "fade": ("constant", "in", "out", "cosine"),
}

# Share of a fading boost that acts at a place u in [0, 1] of its window.
FADES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "in": lambda u: u,
    "out": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 - 0.5 * math.cos(2 * math.pi * u),
}


class BlockTextError(ValueError):
    """A list of blocks that this model does not have, or that cannot be read."""


@dataclass(frozen=True)
class BlockControl:
    """One operation on some blocks, in some steps, for some of the text.

    Fields: action "skip" (the block is not run), "disable" (its text input is zero) or "boost" (scaled by strength);
    blocks, global numbers; strength >= 0, of a boost; mode of a boost: "residual" (the paper's: the text stream is
    scaled and stays so), "attention" (image queries give text keys `strength` times the weight before normalisation)
    or "value" (the text values that image queries read are scaled), both within the block only; scope of a disable:
    "onward" (the paper's: the stream is zeroed and later blocks build on that) or "block" (image queries do not see
    the text there, the text stream goes on untouched); phrases and part, the text that is meant, all where empty and
    "all"; branch, whose rows of a batch; start_percent and end_percent of the sampling, in [0, 1]; fade of a boost
    over that window.
    Raises: ValueError that names the field, what was found and what would be right.
    """

    action: str
    blocks: tuple[int, ...]
    strength: float = 1.0
    mode: str = "residual"
    scope: str = "onward"
    phrases: tuple[str, ...] = ()
    part: str = "all"
    branch: str = "both"
    start_percent: float = 0.0
    end_percent: float = 1.0
    fade: str = "constant"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(sorted(set(self.blocks))))
        object.__setattr__(self, "phrases", tuple(self.phrases))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"BlockControl: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if any(block < 0 for block in self.blocks):
            raise ValueError(f"BlockControl: blocks are {list(self.blocks)}; they count from 0")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"BlockControl: strength is {self.strength}; it must be finite and at least 0")
        if not 0 <= self.start_percent <= 1 or not 0 <= self.end_percent <= 1:
            raise ValueError(
                f"BlockControl: the window is {self.start_percent} to {self.end_percent}; both ends lie between 0 and 1"
            )

    @property
    def does_nothing(self) -> bool:
        """Whether no model and no step could show an effect."""
        boost_of_one = self.action == "boost" and self.strength == 1
        return not self.blocks or boost_of_one or self.start_percent >= self.end_percent

    def to_json(self) -> str:
        """One line that `from_json` takes back; fields at their defaults are left out."""
        defaults = {f.name: f.default for f in fields(self)}
        return json.dumps({k: v for k, v in asdict(self).items() if k in ("action", "blocks") or v != defaults[k]})

    @classmethod
    def from_json(cls, text: str) -> BlockControl:
        """Raises: ValueError for what is no JSON object, or has other fields."""
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"BlockControl: not JSON: {error}") from error
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not {"action", "blocks"} <= set(values) <= names:
            raise ValueError(
                f"BlockControl: expected a JSON object with action and blocks, and of {', '.join(sorted(names))}"
            )
        return cls(**values)

    def share_at(self, place: float) -> float:
        """How much of a fading boost acts at a place in [0, 1] of the whole sampling: strength 1 + share * (s - 1)."""
        width = self.end_percent - self.start_percent
        u = (place - self.start_percent) / width if width > 0 else 0.0
        return FADES[self.fade](min(1.0, max(0.0, u)))


@dataclass(frozen=True)
class _Range:
    """The blocks a model has: double (joint) ones first, then single ones, numbered through."""

    double: int
    single: int

    @property
    def total(self) -> int:
        return self.double + self.single

    def describe(self) -> str:
        if not self.single:
            return f"this model has blocks 0 to {self.total - 1}"
        return (
            f"this model has blocks 0 to {self.total - 1}: double d0 to d{self.double - 1} (0 to {self.double - 1}) "
            f"and single s0 to s{self.single - 1} ({self.double} to {self.total - 1})"
        )


_WORDS: dict[str, Callable[[_Range], range]] = {
    "all": lambda r: range(r.total),
    "none": lambda r: range(0),
    "even": lambda r: range(0, r.total, 2),
    "odd": lambda r: range(1, r.total, 2),
    "first": lambda r: range(min(1, r.total)),
    "last": lambda r: range(r.total - 1, r.total),
    "early": lambda r: range(round(r.total / 3)),
    "middle": lambda r: range(round(r.total / 3), round(2 * r.total / 3)),
    "late": lambda r: range(round(2 * r.total / 3), r.total),
    "double": lambda r: range(r.double),
    "single": lambda r: range(r.double, r.total),
}
_SHARES: dict[str, Callable[[_Range, int], range]] = {
    "first": lambda r, n: range(n),
    "last": lambda r, n: range(r.total - n, r.total),
    "middle": lambda r, n: range((r.total - n) // 2, (r.total - n) // 2 + n),
}
_SPAN = re.compile(r"([ds]?)(\d+)(?:\s*(-)\s*(?:([ds]?)(\d+))?)?")
_SHARE = re.compile(r"(first|last|middle)\s*(\d+(?:\.\d+)?)\s*%")
_GRAMMAR = (
    "Write numbers and ranges (0-5, 9, 12-), all, even, odd, first, last, early, middle, late, first 25%, "
    "!3 for all but 3, d3 and s7 for FLUX's double and single blocks"
)


def parse_blocks(text: str, double: int, single: int = 0) -> tuple[int, ...]:
    """The blocks that a text names.

    Args: text, parts between commas, semicolons or line ends: "0-5, 9, 12-", "last", "first 25%", "all", "even",
        "!3" (all but 3), "d3" and "s7"; double and single, how many blocks of each kind the model has.
    Returns: global numbers, sorted, each once; () for an empty text.
    Raises: BlockTextError that names the part and the model's blocks. Nothing is ignored.
    """
    return tuple(parse_block_strengths(text, double, single, None))


def parse_block_strengths(
    text: str, double: int, single: int = 0, default: float | None = 1.0
) -> dict[int, float | None]:
    """Like `parse_blocks`, with a strength for each block: "3:1.5, 7-9:2" and `default` where none is written.

    Args: default None refuses strengths. Returns: block -> strength, sorted by block; the last one written counts.
    """
    have = _Range(double, single)
    parts = [part.strip().lower() for part in re.split(r"[,;\n]", text)]
    parts = [part for part in parts if part]
    chosen: dict[int, float | None] = {}
    if parts and all(part.startswith("!") for part in parts):
        chosen = dict.fromkeys(range(have.total), default)
    for part in parts:
        body, colon, number = part.partition(":")
        if part.startswith("!"):
            for block in _blocks_of(part[1:].strip(), part, have):
                chosen.pop(block, None)
            continue
        strength = default
        if colon:
            strength = _strength(number, part, default is not None)
        chosen.update(dict.fromkeys(_blocks_of(body.strip(), part, have), strength))
    return dict(sorted(chosen.items()))


def _strength(number: str, part: str, allowed: bool) -> float:
    if not allowed:
        raise BlockTextError(f"{part!r}: a strength cannot be given here; write the block alone")
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not 0 <= strength < math.inf:
        raise BlockTextError(f"{part!r}: the strength after the colon must be a number of at least 0, as in 3:1.5")
    return strength


def _blocks_of(body: str, part: str, have: _Range) -> range:
    """The blocks of one part, without its sign and strength."""
    if body in _WORDS:
        return _WORDS[body](have)
    share = _SHARE.fullmatch(body)
    if share:
        percent = float(share[2])
        if percent > 100:
            raise BlockTextError(f"{part!r}: {share[2]}% is more than all blocks")
        return _SHARES[share[1]](have, round(have.total * percent / 100))
    span = _SPAN.fullmatch(body)
    if span is None:
        raise BlockTextError(f"{part!r} cannot be read as blocks; {have.describe()}. {_GRAMMAR}")
    kind, start, dash, end_kind, end = span.groups()
    if kind == "s" and not have.single or (end_kind == "s" and not have.single):
        raise BlockTextError(f"{part!r}: this model has no single blocks; {have.describe()}")
    first = _number(kind, start, part, have)
    if not dash:
        return range(first, first + 1)
    if end is None:
        return range(first, have.double if kind == "d" else have.total)
    last = _number(end_kind or kind, end, part, have)
    if last < first:
        raise BlockTextError(f"{part!r} runs backwards; write the smaller block first")
    return range(first, last + 1)


def _number(kind: str, digits: str, part: str, have: _Range) -> int:
    """A block's global number."""
    most = {"d": have.double, "s": have.single, "": have.total}[kind]
    if int(digits) >= most:
        where = "" if part == kind + digits else f" (in {part!r})"
        raise BlockTextError(f"block {kind}{int(digits)} does not exist{where}: {have.describe()}")
    return int(digits) + (have.double if kind == "s" else 0)
