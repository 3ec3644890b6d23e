"""FlowMatchingSampler's noise levels and windows for dials that are still being turned: no model, no latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...mmdit_core.flow.sigma import PercentToSigma
from ...mmdit_core.flow.window import Window
from ...mmdit_core.solvers import SOLVERS
from ..comfyui.loading import sampling_of_file as from_header
from ..comfyui.run.guider import Guidance
from ..comfyui.run.sampling import shift_in
from ..errors import InputError
from ..widgets import check_values
from .inputs import APPENDED
from .node import FlowMatchingSampler
from .plan import MIN_DENOISE, NODE, guidance_of, levels_of, part_of, shift_by

DIALS = (
    "steps", "cfg", "solver", "schedule", "shift", "denoise", "cfg_start", "cfg_end", "start_step", "end_step",
    "custom_sigmas", "cfg_curve", "size_shift",
)  # fmt: skip
PATCH = 16  # pixels that an image token is wide and high, of the VAE's 8 and the model's 2
MOST_POINTS = 200  # that are drawn
MOST_STEPS = 1_000_000  # of a whole schedule: more than anybody draws while turning dials
MOST_WINDOWS = 64


def live_curve(given: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """What the curve on the node shows.

    Args: given, as the page sends it: dials, the node's values by name; model_shift, of a shift node on the way, or
    null; width and height of the picture, or null; windows, a list of {"start", "end", "fade"} of block controls;
    own_loader, whether MMDiTLoader loads the file; path, of the model's file, where that is known.
    Returns: {"points": [[step, level], ...], "steps", "first", "last", "shift", "own", "adaptive", "cfg": shares of
    each point's step or null, "windows": the same for each}; {"missing": "shift" or "size"} where that is not known;
    {"error": words} for dials that the node would refuse.
    Raises: KeyError, TypeError, ValueError for what is no such question.
    """
    windows = [_window(each) for each in given.get("windows", ())[:MOST_WINDOWS]]
    size = _size(given)
    try:
        dials = _dials(given["dials"])
        guidance = guidance_of(dials)
        if dials.steps / max(dials.denoise, MIN_DENOISE) > MOST_STEPS:
            return {"missing": "room"}
        sampling = from_header.read_sampling(path, own_loader=bool(given.get("own_loader"))) if path else None
        if given.get("model_shift") is not None:
            sampling = from_header.shifted_sampling(float(given["model_shift"]), sampling)
        lacks = _lacking(dials, sampling, size)
        if lacks:
            return {"missing": lacks}
        own = shift_in(sampling) if sampling is not None else 1.0
        width, height = size or (0, 0)
        shift, _ = shift_by(dials, own, lambda: -(-width // PATCH) * -(-height // PATCH), lambda: width * height)
        if shift != own or sampling is None:
            sampling = from_header.shifted_sampling(shift, sampling)
        levels, _ = levels_of(dials, shift)
    except InputError as error:
        return {"error": str(error).removeprefix(f"{NODE}: ")}
    return _drawn(dials, guidance, levels.tolist(), part_of(dials, levels), shift, windows, sampling)


def _drawn(
    dials: SimpleNamespace,
    guidance: Guidance,
    levels: Sequence[float],
    part: tuple[int, int],
    shift: float,
    windows: Sequence[Window],
    sampling,
) -> dict[str, Any]:
    to_sigma: PercentToSigma = sampling.percent_to_sigma
    steps = len(levels) - 1
    every = -(-steps // MOST_POINTS)
    places = [*range(0, steps, every), steps]
    begun = [levels[place] for place in places[:-1]]
    return {
        "points": [[place, round(levels[place], 5)] for place in places],
        "steps": steps,
        "first": part[0],
        "last": part[1],
        "shift": round(shift, 4),
        "own": not dials.shift,
        "adaptive": SOLVERS[dials.solver].adaptive,
        "cfg": None if dials.cfg == 1 else _shares_of_cfg(guidance, begun, to_sigma),
        "windows": [_rounded([window.strength_at(level, to_sigma) for level in begun]) for window in windows],
    }


def _shares_of_cfg(guidance: Guidance, levels: Sequence[float], to_sigma: PercentToSigma) -> list[float]:
    return _rounded([(guidance.scale(level, to_sigma) - 1) / (guidance.cfg - 1) for level in levels])


def _rounded(shares: Sequence[float]) -> list[float]:
    return [round(share, 3) for share in shares]


def _dials(given: Mapping[str, Any]) -> SimpleNamespace:
    inputs = {**FlowMatchingSampler.INPUT_TYPES()["required"], **APPENDED}
    values = {name: given[name] for name in DIALS}
    for name, value in values.items():
        wanted = {"INT": (int,), "FLOAT": (int, float)}.get(str(inputs[name][0]), (str,))
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise TypeError(f"{name} is {value!r}")
    check_values(NODE, inputs, values)
    rest = {name: options.get("default") for name, (_, options) in APPENDED.items()}
    return SimpleNamespace(**rest | values)


def _window(given: Mapping[str, Any]) -> Window:
    return Window(given["start"], given["end"], given.get("fade", "constant"))


def _size(given: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = given.get("width"), given.get("height")
    if width is None or height is None:
        return None
    if not 0 < int(width) <= 1_000_000 or not 0 < int(height) <= 1_000_000:
        raise ValueError(f"the picture is {width} x {height}")
    return int(width), int(height)


def _lacking(dials: SimpleNamespace, sampling, size: tuple[int, int] | None) -> str | None:
    """What must be known for the curve, and is not: even where levels are written down, windows go by the shift."""
    if dials.size_shift != "off" and size is None:
        return "size"
    if sampling is None and not dials.shift and dials.size_shift != "flux":
        return "shift"
    return None
