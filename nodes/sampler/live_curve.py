"""The curve on FlowMatchingSampler: sigmas and windows for inputs that are being changed, without model or latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...mmdit_core.flow.window import Window
from ...mmdit_core.solvers import SOLVERS
from ..comfyui.loading.sampling_of_file import read_sampling, shifted_sampling
from ..comfyui.run.sampling import shift_in
from ..errors import InputError
from .inputs import NODE, WIDGETS, SamplerInputs
from .report import strengths
from .schedule import shift_for, sigmas_for

INPUTS = (
    "steps", "cfg", "solver", "schedule", "shift", "denoise", "cfg_start", "cfg_end", "start_step", "end_step",
    "custom_sigmas", "cfg_curve", "size_shift",
)  # fmt: skip
PATCH = 16  # pixels of an image token's side: the VAE's 8 times the model's 2
MAX_POINTS = 200  # that are drawn
MAX_WINDOWS = 64


def live_curve(given: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """The data of the curve on the node.

    Args: given, as the frontend sends it: inputs, the node's values by name; model_shift of a shift node before the
    sampler, or null; width and height of the image, or null; windows, a list of {"start", "end", "fade"} of block
    controls; own_loader, whether MMDiTLoader loads the file; path of the model's file, where it is known.
    Returns: {"points": [[step, sigma], ...], "steps", "first", "last", "shift", "own", "adaptive", "cfg": strength in
    each point's step or null, "windows": the same for each}; {"missing": "shift" or "size"} where that is not known;
    {"error": words} for values that the node would refuse.
    Raises: KeyError, TypeError, ValueError for a malformed request.
    """
    windows = [
        Window(each["start"], each["end"], each.get("fade", "constant"))
        for each in given.get("windows", ())[:MAX_WINDOWS]
    ]
    size = _size(given)
    try:
        inputs = _inputs(given["inputs"])
        sampling = read_sampling(path, own_loader=bool(given.get("own_loader"))) if path else None
        if given.get("model_shift") is not None:
            sampling = shifted_sampling(float(given["model_shift"]), sampling)
        # Windows depend on the shift, even those over sigmas that are given as text.
        if inputs.size_shift != "off" and size is None:
            return {"missing": "size"}
        if sampling is None and not inputs.shift and inputs.size_shift != "flux":
            return {"missing": "shift"}
        own = shift_in(sampling) if sampling is not None else 1.0
        width, height = size or (0, 0)
        shift, _ = shift_for(inputs, own, lambda: -(-width // PATCH) * -(-height // PATCH), lambda: width * height)
        if shift != own or sampling is None:
            sampling = shifted_sampling(shift, sampling)
        sigmas, _ = sigmas_for(inputs, shift)
    except InputError as error:
        return {"error": str(error).removeprefix(f"{NODE}: ")}
    return _curve(inputs, sigmas.tolist(), shift, windows, sampling.percent_to_sigma)


def _curve(
    inputs: SamplerInputs, sigmas: Sequence[float], shift: float, windows: Sequence[Window], to_sigma
) -> dict[str, Any]:
    steps = len(sigmas) - 1
    first, last = inputs.part(steps)
    drawn = [*range(0, steps, -(-steps // MAX_POINTS)), steps]
    starts = [sigmas[step] for step in drawn[:-1]]

    def acting(what) -> list[float]:
        return [round(strength, 3) for strength in strengths(what, starts, to_sigma)]

    return {
        "points": [[step, round(sigmas[step], 5)] for step in drawn],
        "steps": steps,
        "first": first,
        "last": last,
        "shift": round(shift, 4),
        "own": not inputs.shift,
        "adaptive": SOLVERS[inputs.solver].adaptive,
        "cfg": None if inputs.cfg == 1 else acting(inputs.cfg_guidance),
        "windows": [acting(window) for window in windows],
    }


def _inputs(given: Mapping[str, Any]) -> SamplerInputs:
    values = {name: given[name] for name in INPUTS}
    for name, value in values.items():
        expected = {"INT": (int,), "FLOAT": (int, float)}.get(str(WIDGETS[name][0]), (str,))
        if isinstance(value, bool) or not isinstance(value, expected):
            raise TypeError(f"{name} is {value!r}")
    return SamplerInputs(**values)


def _size(given: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = given.get("width"), given.get("height")
    if width is None or height is None:
        return None
    if not 0 < int(width) <= 1_000_000 or not 0 < int(height) <= 1_000_000:
        raise ValueError(f"the image is {width} x {height}")
    return int(width), int(height)
