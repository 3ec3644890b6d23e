"""A block control as a value: its action, its blocks, and its strength at a sigma, faded over its window.

Source of skip, disable and boost: arXiv 2601.02211, where they are called remove, disable and enhance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from ..flow.sigma import PercentToSigma
from ..flow.window import Window

# Branches of guidance. OTHER is a third prompt that some guiders have, such as PerpNeg's empty one.
POSITIVE, NEGATIVE, OTHER = 0, 1, 2
BRANCHES = {"both": (POSITIVE, NEGATIVE, OTHER), "positive": (POSITIVE,), "negative": (NEGATIVE,)}
MOST_STRENGTH = 10.0  # of a boost that a user sets
REPORT_NAMES = {"start": "start_percent", "end": "end_percent", "fade": "fade"}  # of a window's fields
CHOICES: dict[str, tuple[str, ...]] = {
    "action": ("skip", "disable", "boost", "prompt"),
    "mode": ("residual", "attention", "value"),
    "scope": ("onward", "block"),
    "part": ("all", "clip", "t5"),
    "branch": tuple(BRANCHES),
}


class ControlValueError(ValueError):
    """A field of a control is out of range. Attributes: field, its name; value, as given; right, what it must be."""

    def __init__(self, field: str, value: object, right: str):
        self.field, self.value, self.right = field, value, right
        super().__init__(f"{field} is {value!r}; it must be {right}")


@dataclass(frozen=True)
class BlockControl:
    """One operation on some blocks, in some steps, for some of the text.

    Fields:
        action: "skip" (the block is not run), "disable" (its text input is zero), "boost" (its text input is scaled),
            "prompt" (image queries attend to another prompt's text stream).
        blocks: global numbers from 0, double blocks before single ones.
        strength: of a boost, finite, >= 0.
        mode: of a boost. "residual" scales the text stream, which stays scaled in later blocks (as in the paper);
            "attention" gives text keys `strength` times the weight before normalisation, "value" scales text values.
            The last two act on image queries alone and within the block.
        scope: of a disable. "onward" zeroes the text stream, and later blocks build on that (as in the paper);
            "block" hides the text from image queries within the block.
        phrases, part: the text tokens that a boost acts on; all if empty and "all". A phrase is of the positive prompt.
        branch: the rows of a batch that the control acts on; "both" means all. A prompt acts on the positive branch.
        window: the part of the sampling in which the control acts; its fade is of a boost.
        context: of a prompt, [1, L, W], as the text encoders give it. Two controls with different contexts are equal.
        context_inputs: of a prompt, what else belongs to its text, such as a mask; the core does not read it.
    Raises: ControlValueError.
    """

    action: str
    blocks: tuple[int, ...]
    strength: float = 1.0
    mode: str = "residual"
    scope: str = "onward"
    phrases: tuple[str, ...] = ()
    part: str = "all"
    branch: str = "both"
    window: Window = Window()
    context: Tensor | None = field(default=None, compare=False, repr=False)
    context_inputs: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(sorted(set(self.blocks))))
        object.__setattr__(self, "phrases", tuple(self.phrases))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ControlValueError(name, getattr(self, name), f"one of {', '.join(choices)}")
        if any(block < 0 for block in self.blocks):
            raise ControlValueError("blocks", self.blocks, "at least 0")
        if not 0 <= self.strength < math.inf:
            raise ControlValueError("strength", self.strength, "finite and at least 0")
        if (self.context is not None) != (self.action == "prompt"):
            raise ControlValueError("context", self.context, "given for a prompt, and for a prompt alone")

    @property
    def does_nothing(self) -> bool:
        """True if the control has no effect on any model at any sigma."""
        return not self.blocks or (self.action == "boost" and self.strength == 1) or self.window.is_empty

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches of guidance that the control acts on, of POSITIVE, NEGATIVE and OTHER."""
        return (POSITIVE,) if self.phrases or self.action == "prompt" else BRANCHES[self.branch]

    @property
    def is_selective(self) -> bool:
        """True if the control acts on phrases or on a part of the text, which a token map finds."""
        return bool(self.phrases) or self.part != "all"

    @property
    def effect(self) -> str:
        """What changes in a block: "skip", "prompt", or what is scaled: "residual", "attention" or "value"."""
        if self.action == "disable":
            return "residual" if self.scope == "onward" else "attention"
        return self.mode if self.action == "boost" else self.action

    @property
    def factor(self) -> float:
        """What text tokens are scaled by."""
        return 0.0 if self.action == "disable" else self.strength

    def at(self, sigma: float, percent_to_sigma: PercentToSigma) -> BlockControl | None:
        """The control as it acts at a sigma: without its window, a boost with its faded strength; None outside it."""
        if not self.window.holds(sigma, percent_to_sigma):
            return None
        strength = self.strength
        if self.action == "boost":
            strength = 1 + self.window.strength_at(sigma, percent_to_sigma) * (strength - 1)
        return replace(self, strength=strength, window=Window())

    def to_dict(self) -> dict[str, Any]:
        """The control as plain data for a report: action, blocks, and the fields that are not at their defaults."""
        given = _given(self)
        window = {REPORT_NAMES[name]: value for name, value in _given(given.pop("window", Window())).items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in {**given, **window}.items()}


def _given(values: Any) -> dict[str, Any]:
    """The compared fields of a dataclass that are not at their defaults."""
    own = {f.name: (getattr(values, f.name), f.default) for f in fields(values) if f.compare}
    return {name: value for name, (value, default) in own.items() if value != default}
