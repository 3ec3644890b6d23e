"""A run in several parts, as two samplers make it: what depends on the whole schedule gets the sigmas of all parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import patching, step_cache

if TYPE_CHECKING:
    from .solver import RunSteps


def begin(steps: RunSteps, model, options: dict[str, Any], counts: patching.Run | None, x: Tensor) -> None:
    """Give a part of a run the schedule of all parts, and its step cache the predictions of the part before.

    Args: model, ComfyUI's inpainting model around its guider; options, the run's model_options; x, on its device.
    """
    if len(steps.whole) == len(steps.sigmas):
        return
    sigmas = steps.whole.float().to(x.device)
    model.sigmas = sigmas  # for a mask that is a function of sigma, as differential diffusion makes it
    options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
    if counts is not None and counts.step_cache is not None:
        stored = {} if steps.start is None else steps.start.stored
        counts.step_cache = step_cache.within(counts.step_cache, sigmas.tolist(), stored, _conds(model.inner_model))


def stored(steps: RunSteps, model, counts: patching.Run | None) -> step_cache.Stored:
    """What the step cache of the next part needs; nothing after the last part."""
    if counts is None or counts.step_cache is None or float(steps.sigmas[-1]) == 0:
        return {}
    return step_cache.stored_of(counts.step_cache, _conds(model.inner_model))


def _conds(guider) -> list[list[dict[str, Any]]]:
    """The conditionings of a guider, by branch."""
    return [guider.conds.get(name) or [] for name in ("positive", "negative")]
