"""The shift and the sigmas that a sampler's inputs give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...mmdit_core.flow import schedules
from ...mmdit_core.flow.sigma import flux_mu, mu_to_shift, resolution_shift
from ..errors import InputError, require
from ..links import require_tensor
from ..widgets import MAX_STEPS
from .inputs import MIN_DENOISE, NODE, SamplerInputs

OWN = "the model's own"


def shift_for(
    inputs: SamplerInputs, own: float, tokens: Callable[[], int], pixels: Callable[[], int]
) -> tuple[float, str]:
    """The shift to sample with, and in words where it comes from.

    Args: own, the model's; tokens and pixels of the image.
    """
    if inputs.size_shift == "flux":
        count = tokens()
        return mu_to_shift(flux_mu(count)), f"FLUX's rule for {count} image tokens"
    base, source = (inputs.shift, "as set") if inputs.shift else (own, OWN)
    if inputs.size_shift == "off":
        return base, source
    scale = resolution_shift(pixels())
    return base * scale, f"{base:g} ({source}) at 1024 x 1024, scaled with the square root of the pixels"


def sigmas_for(inputs: SamplerInputs, shift: float) -> tuple[Tensor, str]:
    """All sigmas [steps + 1], and in words where they come from. Raises: InputError for sigmas that do not fall."""
    text, linked = inputs.custom_sigmas.strip(), inputs.sigmas
    if linked is not None:
        found = "the input sigmas is connected, too"
        require(not text, NODE, "custom_sigmas", found, "Disconnect it, or clear this text")
        right = "Connect the SIGMAS of a scheduler"
        require_tensor(NODE, "sigmas", linked, "SIGMAS", right)
        require(linked.ndim == 1, NODE, "sigmas", f"they are of shape {list(linked.shape)}", right)
        require(
            len(linked) <= MAX_STEPS + 1, NODE, "sigmas", f"there are {len(linked):,}", f"At most {MAX_STEPS + 1:,}"
        )
        if len(linked) < 2:  # what ComfyUI's nodes give for "nothing to do"
            return linked.double().cpu(), "the input sigmas"
        return _custom("sigmas", linked.tolist()), "the input sigmas"
    if text:
        return _custom("custom_sigmas", text), "custom_sigmas"
    denoise = inputs.denoise if inputs.denoise >= MIN_DENOISE else 1.0  # at 0 nothing is run
    require_length(NODE, inputs.steps, denoise)
    return schedules.sigmas(inputs.steps, inputs.schedule, shift, denoise=denoise), inputs.schedule


def require_length(node: str, steps: int, denoise: float) -> None:
    """Raises: InputError for steps and denoise that are the end of too long a schedule."""
    total = schedules.whole_steps(steps, denoise)
    found = f"{denoise:g} with {steps:,} steps is the end of a schedule of {total:,} steps"
    right = f"Set more denoise or fewer steps: at most {schedules.MOST_STEPS:,} in all"
    require(total <= schedules.MOST_STEPS, node, "denoise", found, right)


def _custom(name: str, sigmas: Any) -> Tensor:
    try:
        return schedules.parse_sigmas(sigmas)
    except (ValueError, TypeError) as error:
        raise InputError(NODE, name, str(error), "Give sigmas that fall from 1, such as 1, 0.9, 0.6, 0") from error
