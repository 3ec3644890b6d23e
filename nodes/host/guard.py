"""Where a value that is not finite came from: the model call that gave it is made once more, watched at every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from . import controls

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
    """What a watched call showed first. block None: no block was seen to give it."""

    double: int
    block: str | None = None
    branch: int | None = None
    branches: list[int] = field(default_factory=list)

    def name(self, kind: str, index: int) -> str:
        number = index if kind == "double_block" else self.double + index
        return f"block {number}"


def explain(
    calls: list[Call], again: Callable[[Call, dict[str, Any]], Any], model_options: dict[str, Any], base
) -> str:
    """Which branch and block gave the first value that is not finite, in words.

    Args: calls, those of the step, in order; again(call, model_options) makes one once more; base, the host's model.
    """
    call = next((call for call in calls if not is_finite(call.velocity)), None)
    if call is None:
        return "the solver's own arithmetic left the range of numbers, the predictions were finite"
    counts = controls.counts_of(base.diffusion_model)
    seen = _Seen(double=counts[0] if counts else 0)
    again(call, _watched(model_options, counts, seen))
    return _words(seen, watched=counts is not None)


def _words(seen: _Seen, watched: bool) -> str:
    branch = seen.branch if seen.branch is not None else next(iter(seen.branches), None)
    if branch is None:
        return "the predictions were finite: guidance, or another node's patch after the model, made it"
    who = f"the {BRANCHES.get(branch, 'extra')} prediction"
    if seen.block is not None:
        return f"{who}: {seen.block}"
    if not watched:
        return f"{who}; this model's blocks cannot be watched"
    return f"{who}: after its last block"


def _watched(model_options: dict[str, Any], counts: tuple[int, int] | None, seen: _Seen) -> dict[str, Any]:
    """A copy of a run's options in which every block and both predictions are looked at."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    inner = options.setdefault("transformer_options", {})
    replaced = inner.setdefault("patches_replace", {})
    hooks = replaced["dit"] = dict(replaced.get("dit", {}))
    for kind, count in zip(("double_block", "single_block"), counts or (0, 0), strict=True):
        for index in range(count):
            hooks[kind, index] = _hook(seen, seen.name(kind, index), hooks.get((kind, index)))

    def around_conditions(executor, model, conds, *args):
        out = executor(model, conds, *args)
        seen.branches += [
            branch for branch, value in enumerate(out) if conds[branch] is not None and not is_finite(value)
        ]
        return out

    comfy.patcher_extension.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, KEY, around_conditions, options, is_model_options=True
    )
    return options


def _hook(seen: _Seen, name: str, previous):
    """A block hook that notes the first block whose streams are not finite, and whose rows they are."""

    def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # Before the block: some of the host's blocks write into what they are given.
        ill = None if seen.block else _branch_of(args, ("img", "txt", "vec"), args)
        out = extra["original_block"](args) if previous is None else previous(args, extra)
        if seen.block is None and ill is not None:
            # Its text, its latent, or a control that scales them.
            seen.block, seen.branch = f"what enters {name} already holds it", ill
        if seen.block is None and (ill := _branch_of(out, ("img", "txt"), args)) is not None:
            seen.block, seen.branch = f"{name} gives it", ill
        return out

    return hook


def _branch_of(streams: dict[str, Any], names: tuple[str, ...], args: dict[str, Any]) -> int | None:
    """The branch of the first rows that are not finite; None where all are."""
    branches = args["transformer_options"].get("cond_or_uncond") or [0]
    for name in names:
        stream = streams.get(name)
        if isinstance(stream, Tensor) and not is_finite(stream):
            if stream.shape[0] % len(branches):
                return branches[0]
            chunks = stream.chunk(len(branches))
            return next(branch for branch, rows in zip(branches, chunks, strict=True) if not is_finite(rows))
    return None
