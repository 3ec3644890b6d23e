"""Where a value that is not finite came from: the model call that gave it is made once more, watched at every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ..families import family_of

KEY = "mmdit_watch"
BRANCHES = {0: "positive", 1: "negative"}
REMEDY = (
    "Load the model with weight_dtype bf16, which has the range that fp16 lacks, and lower what is set high: cfg, the "
    "strength of a LoRA, of a TextBoost or of prompt weights"
)


class NotFiniteError(ValueError):
    """A run was stopped at its first value that is NaN or infinite."""


@dataclass(frozen=True)
class Call:
    """One prediction: x [B, ...] at noise level sigma and the velocity that was made of it."""

    x: Tensor
    sigma: Tensor
    velocity: Tensor


def is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


@dataclass
class _Seen:
    """What a watched call showed first. block: what a block did, in words; branches: whose rows those were."""

    block: str = ""
    branches: set[int] = field(default_factory=set)


def explain(
    calls: list[Call], again: Callable[[Call, dict[str, Any]], Any], model_options: dict[str, Any], base
) -> str:
    """Which branch and block gave the first value that is not finite, in words.

    Args: calls, those of the step, in order; again(call, model_options) makes one once more; base, the host's model.
    """
    call = next((call for call in calls if not is_finite(call.velocity)), None)
    if call is None:
        return "the solver's own arithmetic left the range of numbers, the predictions were finite"
    family = family_of(base.diffusion_model)
    counts = None if family is None else family.counts(base.diffusion_model)
    seen = _Seen()
    again(call, _watched(model_options, counts, seen))
    if not seen.branches:
        return "the predictions were finite: guidance, or another node's patch after the model, made it"
    names = " and the ".join(BRANCHES.get(branch, "extra") for branch in sorted(seen.branches))
    who = f"the {names} prediction"
    if counts is None:
        return f"{who}; this model's blocks cannot be watched"
    return f"{who}: {seen.block or 'after the last block'}"


def _watched(model_options: dict[str, Any], counts: tuple[int, int] | None, seen: _Seen) -> dict[str, Any]:
    """A copy of a run's options in which every block and both predictions are looked at."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    inner = options.setdefault("transformer_options", {})
    replaced = inner.setdefault("patches_replace", {})
    hooks = replaced["dit"] = dict(replaced.get("dit", {}))
    double, single = counts or (0, 0)
    keys = [("double_block", index) for index in range(double)] + [("single_block", index) for index in range(single)]
    for number, key in enumerate(keys):
        hooks[key] = _hook(seen, f"block {number}", hooks.get(key))

    def around_conditions(executor, model, conds, *args):
        out = executor(model, conds, *args)
        if not seen.branches:
            asked = [branch for branch, cond in enumerate(conds) if cond is not None]
            seen.branches.update(branch for branch in asked if not is_finite(out[branch]))
        return out

    comfy.patcher_extension.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, KEY, around_conditions, options, is_model_options=True
    )
    return options


def _hook(seen: _Seen, name: str, previous):
    """A block hook that notes the first block whose streams are not finite, and whose rows they are."""

    def note(branches: set[int], words: str) -> None:
        if branches and not seen.block:
            seen.block, seen.branches = words, branches

    def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # Its text, its latent, or a control that scales them; some of the host's blocks write into what they are given.
        note(_ill(args, ("img", "txt", "vec"), args), f"what enters {name} already holds it")
        out = extra["original_block"](args) if previous is None else previous(args, extra)
        note(_ill(out, ("img", "txt"), args), f"{name} gives it")
        return out

    return hook


def _ill(streams: dict[str, Any], names: tuple[str, ...], args: dict[str, Any]) -> set[int]:
    """The branches of the rows that are not finite."""
    branches = args["transformer_options"].get("cond_or_uncond") or [0]
    ill: set[int] = set()
    for name in names:
        stream = streams.get(name)
        if isinstance(stream, Tensor) and not is_finite(stream):
            rows = stream.chunk(len(branches)) if stream.shape[0] % len(branches) == 0 else [stream] * len(branches)
            ill.update(branch for branch, part in zip(branches, rows, strict=True) if not is_finite(part))
    return ill
