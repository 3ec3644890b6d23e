"""Modulation and embedded text prepared ahead in each sampling run of a MODEL with our core, whatever node samples."""

from __future__ import annotations

from collections.abc import Collection

import comfy.patcher_extension

from ....mmdit_core.models.adaln import LIMIT, READ_AHEAD, RUN
from ....mmdit_core.models.sd3 import MMDiT

KEY = "mmdit_prepared"  # of our wrapper
USUAL_ROWS = 80  # 40 steps of two prompts: what memory is asked for ahead of a run


def add_to(patcher) -> None:
    """Prepare in every run of this MODEL and its clones; `patcher.remove_wrappers_with_key` takes it away again."""
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, _around_run)


def may_change(patcher, names: Collection[str]) -> bool:
    """Whether weights with one of these in their names may have other values later in the same run.

    That is so under LoRA hooks, which conditionings and their keyframes turn on and off, and under another pack's
    function of a weight. The host writes such values where torch does not count the changes.
    """
    hooked = (key for patches in patcher.hook_patches.values() for key in patches)
    return any(name in key for key in (*hooked, *patcher.weight_wrapper_patches) for name in names)


def bytes_of(width: int, itemsize: int) -> int:
    """Memory that a usual run's table takes; width, of a row (`layout_of`); itemsize, of an element."""
    return min(LIMIT, USUAL_ROWS * width * itemsize)


def _around_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    guider = executor.class_obj
    patcher = guider.model_patcher
    core = patcher.get_model_object("diffusion_model")
    if not isinstance(core, MMDiT) or may_change(patcher, READ_AHEAD):
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    # The last level is where the run ends: there nothing is asked. Not the model's own model_sampling: a shift node's.
    timesteps = patcher.get_model_object("model_sampling").timestep(sigmas[:-1].float())
    # The guider's options are a copy that the host made for this run alone.
    options = guider.model_options["transformer_options"]
    with core.prepared(timesteps) as prepared:
        options.update(prepared)
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            options.pop(RUN, None)
