"""Input widgets that several nodes share, and the check of the values that come in through them.

A widget is what ComfyUI's INPUT_TYPES holds for one input: (type or list of choices, options).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from numbers import Real
from typing import Any

import numpy

from .errors import InputError, require

Widget = tuple[Any, dict[str, Any]]

MAX_SEED = 2**64 - 1
RANDOM_SEED = -1
MAX_STEPS = 10_000
MAX_TEXT = 50_000  # characters of a text, where its widget has no `longest`
HIDDEN = {"unique_id": "UNIQUE_ID"}
BLOCKS_TOOLTIP = (
    "Blocks count from 0. Ranges (0-5), several (0-5, 9, 12-), all, even, odd, first, last, early, middle, late, "
    "first 25%, !3 for all but 3; d3 and s7 are FLUX's double and single blocks. Empty: no block."
)


def integer(default: int, low: int, high: int, tooltip: str, **options: Any) -> Widget:
    """A whole number from low to high."""
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip, **options})


def number(default: float, low: float, high: float, step: float, tooltip: str, **options: Any) -> Widget:
    """A number from low to high."""
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip, **options})


def fraction(default: float, tooltip: str, **options: Any) -> Widget:
    """A number in [0, 1]."""
    return number(default, 0.0, 1.0, 0.01, tooltip, **options)


def choice(choices: Sequence[str], default: str, tooltip: str, **options: Any) -> Widget:
    """One of a list of names."""
    return (list(choices), {"default": default, "tooltip": tooltip, **options})


def text(default: str, tooltip: str, **options: Any) -> Widget:
    """A line of text."""
    return ("STRING", {"default": default, "tooltip": tooltip, **options})


def switch(default: bool, tooltip: str, **options: Any) -> Widget:
    """On or off."""
    return ("BOOLEAN", {"default": default, "tooltip": tooltip, **options})


POSITIVE: Widget = ("CONDITIONING", {"tooltip": "The prompt: what the image should show."})
NEGATIVE: Widget = ("CONDITIONING", {"tooltip": "What the image should not show. Not computed at cfg 1."})
START = fraction(0.0, "Where in the sampling this begins to act. 0 is the first step, 1 the end.")
END = fraction(1.0, "Where in the sampling this stops acting. 0 is the first step, 1 the end.")

SHIFT = number(
    0.0,
    0.0,
    100.0,
    0.05,
    "0: the model's own. A higher shift spends more steps on the layout, a lower one on detail; larger images need a "
    "higher one. SD3 and SD3.5: 3.",
    least=0.01,  # below it neighbouring sigmas become equal
)


def seed_widget(tooltip: str, control: bool | str = True) -> Widget:
    """The seed of the noise; the frontend replaces RANDOM_SEED. Args: control, of ComfyUI's control_after_generate."""
    more = " -1: a random seed for each job, drawn when it is queued; the image stores the number."
    return integer(0, RANDOM_SEED, MAX_SEED, tooltip + more, control_after_generate=control, random=True)


def steps_widget(default: int) -> Widget:
    """The number of sampling steps."""
    return integer(default, 1, MAX_STEPS, "More steps follow the flow more exactly and take longer.")


def cfg_widget(default: float) -> Widget:
    """The scale of classifier-free guidance."""
    tooltip = (
        "How strongly the prompt is followed. 1 ignores the negative prompt and is twice as fast. SD3 and SD3.5: 3.5 "
        "to 5. Turbo models: 1. Too high a value gives harsh colours and artefacts."
    )
    return number(default, 0.0, 100.0, 0.1, tooltip, round=0.01)


def blocks_widget(default: str, more: str = "") -> Widget:
    """A list of blocks as text. Args: more, that the tooltip says."""
    return text(default, BLOCKS_TOOLTIP + more)


def branch_widget(default: str, more: str = "") -> Widget:
    """Which predictions a block control acts on. Args: more, that the tooltip says."""
    tooltip = "Which predictions: the positive prompt's, the negative prompt's, or both." + more
    return choice(("both", "positive", "negative"), default, tooltip)


def widget(made: Widget) -> Any:
    """A field of a dataclass with a widget; its default is the widget's, or None."""
    return field(default=made[1].get("default"), metadata={"widget": made})


def widgets_of(inputs: Any) -> dict[str, Widget]:
    """The widgets of a dataclass whose fields have them, by name."""
    return {each.name: each.metadata["widget"] for each in fields(inputs)}


def check_values(node: str, inputs: Mapping[str, Widget], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values, checked: a link can bring any value, also one that the widget would not allow.

    Args: inputs, as INPUT_TYPES has them; given, values by name.
    Returns: given, with numbers as int and float, also numpy's.
    Raises: InputError for an unknown choice, a number out of range or not a number, a text that is none or too long.
    """
    return {name: _checked(node, name, *inputs[name], value) for name, value in given.items()}


def check_fields(node: str, inputs: Any) -> None:
    """`check_values` of a frozen dataclass whose fields have widgets; they get the values that it returns."""
    for name, value in check_values(node, widgets_of(inputs), vars(inputs)).items():
        object.__setattr__(inputs, name, value)


def _checked(node: str, name: str, kind: Any, options: Mapping[str, Any], value: Any) -> Any:
    value = value.item() if isinstance(value, numpy.generic) else value
    if isinstance(kind, list) and not (isinstance(value, str) and value in kind):
        raise InputError(node, name, f"{_shown(value)} is unknown", f"Choose one of {', '.join(kind)}")
    if kind == "STRING":
        _check_text(node, name, value, options.get("longest", MAX_TEXT))
    if kind == "BOOLEAN":
        require(isinstance(value, int), node, name, f"{_shown(value)} is neither true nor false", "Connect a BOOLEAN")
        return bool(value)
    return _number(node, name, kind == "INT", options, value) if kind in ("INT", "FLOAT") else value


def _check_text(node: str, name: str, value: Any, longest: int) -> None:
    require(isinstance(value, str), node, name, f"{_shown(value)} is not a text", "Connect a text")
    require(len(value) <= longest, node, name, f"it has {len(value):,} characters", f"Write at most {longest:,}")
    half = re.search(r"[\ud800-\udfff]", value)
    require(half is None, node, name, "it holds half of a character", "Write it again, without the broken character")


def _number(node: str, name: str, whole: bool, options: Mapping[str, Any], value: Any) -> int | float:
    if options.get("random") and isinstance(value, Real) and value == RANDOM_SEED:
        found = "-1 is replaced by a random seed when ComfyUI's page queues a job, and this one came without it"
        raise InputError(node, name, found, f"Send a number from 0 to {MAX_SEED}")
    low, high = options["min"], options["max"]
    right = f"Set a number from {low:g} to {high:g}"
    require(isinstance(value, Real), node, name, f"{_shown(value)} is not a number", right)
    require(low <= value <= high, node, name, _shown(value), right)  # false for NaN, too
    least = options.get("least", low)  # of a number that is not 0
    require(value == 0 or value >= least, node, name, _shown(value), f"Set 0, or a number from {least:g} to {high:g}")
    require(not whole or value == int(value), node, name, f"{value} is not whole", right)
    return int(value) if whole else float(value)


def _shown(value: Any) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # an int that no float can hold
        return "a number too large"
    except (TypeError, ValueError):
        return repr(value)[:60]
