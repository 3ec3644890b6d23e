"""The AdaLN cache of each sampling run of a MODEL with our core, whichever node samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.patcher_extension
import torch

from ....mmdit_core.models.adaln import CACHED_WEIGHTS, CALL, AdaLNCache, CallIdentity
from ....mmdit_core.models.sd3 import MMDiT
from ..other_prompt import HostCall
from ..rows import Prompts

log = logging.getLogger(__name__)

KEY = "mmdit"  # of the values on a MODEL and of our wrappers
KINDS = comfy.patcher_extension.WrappersMP
# Where another pack can change what reaches the model between our wrappers and the model.
OPEN_KINDS = (KINDS.CALC_COND_BATCH, KINDS.APPLY_MODEL, KINDS.DIFFUSION_MODEL)
OPEN_FUNCTIONS = ("model_function_wrapper", "sampler_calc_cond_batch_function")


class RunAdaLNCache(AdaLNCache):
    """The AdaLN cache of one run: its conditionings are known by the guider's list and ComfyUI's uuid."""

    def __init__(self, core: MMDiT, sampling, sigmas: torch.Tensor | Sequence[float], open_to_others: bool):
        super().__init__(core, sampling.timestep(torch.as_tensor(sigmas).float().cpu()))
        self._sampling, self._open = sampling, open_to_others

    def add_conditionings(self, prompts: Prompts) -> None:
        """The conditionings of a CALC_COND_BATCH call."""
        for name, entries in zip(prompts.names, prompts.lists, strict=True):
            for entry in entries:
                y = entry.get("model_conds", {}).get("y")
                if y is not None and "uuid" in entry:
                    self.add((name, entry["uuid"]), y.cond)

    @contextmanager
    def calling(
        self, host: HostCall, options: dict[str, Any], sigma: float | None, prompts: Prompts | None
    ) -> Iterator[dict[str, Any]]:
        """The options of an APPLY_MODEL call while the body runs. Args: as of `identity`."""
        yield {**options, CALL: identity(self._sampling, self._open, options, sigma, prompts)}


Identify = Callable[[Mapping[str, Any], float | None, Prompts | None], CallIdentity]


def identity(
    sampling, open_to_others: bool, options: Mapping[str, Any], sigma: float | None, prompts: Prompts | None
) -> CallIdentity:
    """What an APPLY_MODEL call is made of. Its value for `options[CALL]`.

    Args: options, of the call; sigma, at which our solver evaluates the model, None under another sampler; prompts, of
        the running CALC_COND_BATCH. Without a sigma or a prompt's list, and where another pack may change the call's
        inputs, the cache compares them, and waits for the device.
    """
    lists = prompts.names if prompts is not None else ()
    numbers = options.get("cond_or_uncond") or ()
    of = [lists[number] if number < len(lists) else None for number in numbers]
    names = tuple(zip(of, options.get("uuids") or (), strict=False))
    wrappers = options.get("wrappers", {})
    others = any(found and key != KEY for kind in OPEN_KINDS for key, found in wrappers.get(kind, {}).items())
    if sigma is None or others or open_to_others or None in of:
        return CallIdentity(names)
    return CallIdentity(names, sampling.timestep(torch.tensor(sigma, dtype=torch.float32)).item())


def identify_of(guider) -> Identify:
    """`identity` for the calls of a guider's run."""
    # From the patcher, because a shift node replaces model_sampling there.
    sampling = guider.model_patcher.get_model_object("model_sampling")
    return partial(identity, sampling, any(guider.model_options.get(name) for name in OPEN_FUNCTIONS))


def make(guider, sigmas: torch.Tensor | Sequence[float]) -> RunAdaLNCache | None:
    """The cache of one run, without conditionings yet; None if the run has to compute its modulation in every call.

    Args: guider, of the run; sigmas at which the run evaluates the model, in their order.
    """
    patcher = guider.model_patcher
    core = patcher.get_model_object("diffusion_model")
    if not isinstance(core, MMDiT):
        return None
    if may_change(patcher, CACHED_WEIGHTS):
        log.debug("AdaLN: computed in every call, because hooks may change its weights during the run")
        return None
    # From the patcher, because a shift node replaces model_sampling there.
    sampling = patcher.get_model_object("model_sampling")
    return RunAdaLNCache(core, sampling, sigmas, any(guider.model_options.get(name) for name in OPEN_FUNCTIONS))


def may_change(patcher, names: Collection[str]) -> bool:
    """True if weights with one of these in their names may change during the run.

    LoRA hooks, which conditionings and their keyframes turn on and off, change them, and so do weight functions of
    other packs. ComfyUI writes such values where torch does not count the changes.
    """
    hooked = (key for patches in patcher.hook_patches.values() for key in patches)
    return any(name in key for key in (*hooked, *patcher.weight_wrapper_patches) for name in names)
