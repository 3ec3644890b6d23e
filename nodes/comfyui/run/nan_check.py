"""Finds where a value that is not finite comes from: its model call is repeated with every block checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ....mmdit_core.control.model_call import ROW_NAMES, Hook, Key
from ..block_forward import hooked
from ..families import Family, family_of, network_of
from .state import run_of

KEY = "mmdit_nan_check"
ORDER = ("positive", "negative")  # in which the guider's lists are named
REMEDY = (
    "Load the model with weight_dtype bf16, which has the range that fp16 lacks, and lower what is set high: cfg, the "
    "strength of a LoRA, of a TextBoost or of prompt weights"
)


class NotFiniteError(ValueError):
    """A run was stopped at its first value that is NaN or infinite."""


@dataclass(frozen=True)
class Call:
    """One prediction: x [B, ...] at sigma, and the velocity computed from it."""

    x: Tensor
    sigma: Tensor
    velocity: Tensor


def is_finite(values: Tensor) -> bool:
    """True if no value is NaN or infinite; waits for the device."""
    return bool(torch.isfinite(values).all())


def error(
    where: str,
    calls: list[Call],
    again: Callable[[Call, dict[str, Any]], Any],
    model_options: dict[str, Any],
    base,
    words: Mapping[str, str] | None = None,
) -> NotFiniteError:
    """The error for a step.

    Args: where, the node, step and sigma in words; calls of the step, in order; again(call, model_options) repeats one;
        base, ComfyUI's model; words, for the names of the guider's lists.
    """
    source = _source(calls, again, model_options, base, words or {})
    return NotFiniteError(f"{where} gives a value that is not finite: {source}. {REMEDY}")


@dataclass
class _Found:
    """The first bad value of a checked call.

    Fields: block, in words what the block did; prompts, the names of the guider's lists whose rows they are, "extra"
    for others.
    """

    block: str = ""
    prompts: set[str] = field(default_factory=set)


def _source(calls: list[Call], again, model_options: dict[str, Any], base, words: Mapping[str, str]) -> str:
    """The prompt and block of the first value that is not finite, in words."""
    call = next((call for call in calls if not is_finite(call.velocity)), None)
    if call is None:
        return "the solver's own arithmetic left the range of numbers, the predictions were finite"
    found, family = _Found(), family_of(base)
    options = comfy.model_patcher.create_model_options_clone(model_options)
    options.setdefault("transformer_options", {})[ROW_NAMES] = []
    replaced = options["transformer_options"].setdefault("patches_replace", {})
    existing = dict(replaced.get("dit", {}))
    if family is None:
        again(call, _checked(options, found))
    elif not family.hooks:
        with hooked(network_of(base), family, _hooks(family, base, found, {})):
            again(call, _checked(options, found))
    else:
        replaced["dit"] = existing | _hooks(family, base, found, existing)
        again(call, _checked(options, found))
    if not found.prompts:
        return "the predictions were finite: guidance, or another node's patch after the model, made it"
    rank = {name: index for index, name in enumerate(ORDER)}
    ordered = sorted(found.prompts, key=lambda name: (rank.get(name, len(ORDER)), name))
    names = " and the ".join(words.get(name, name) for name in ordered)
    who = f"the {names} prediction"
    if family is None:
        return f"{who}; this model's blocks cannot be checked"
    return f"{who}: {found.block or 'after the last block'}"


def _hooks(family: Family, base, found: _Found, existing: Mapping[Key, Hook]) -> dict[Key, Hook]:
    """Hooks that check every block, around those that are already there."""
    kinds = zip(("double_block", "single_block"), family.counts(network_of(base)), strict=True)
    keys = [(kind, index) for kind, count in kinds for index in range(count)]
    return {key: _hook(found, f"block {number}", existing.get(key)) for number, key in enumerate(keys)}


def _checked(options: dict[str, Any], found: _Found) -> dict[str, Any]:
    """A run's options, in which both predictions are checked, too."""

    def check_predictions(executor, model, conds, x, timestep, model_options):
        out = executor(model, conds, x, timestep, model_options)
        run = run_of(model_options["transformer_options"])
        names = run.prompts.names if run is not None and run.prompts is not None else [None] * len(conds)
        if not found.prompts:
            computed = [index for index, cond in enumerate(conds) if cond is not None]
            found.prompts.update(names[index] or "extra" for index in computed if not is_finite(out[index]))
        return out

    comfy.patcher_extension.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, KEY, check_predictions, options, is_model_options=True
    )
    return options


def _hook(found: _Found, name: str, previous):
    """A block hook that notes the first block whose streams are not finite, and whose rows they are."""

    def note(streams: dict[str, Any], names: tuple[str, ...], args: dict[str, Any], words: str) -> None:
        prompts = set() if found.block else _bad_prompts(streams, names, args)
        if prompts:
            found.block, found.prompts = words, prompts

    def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # Before the block: some of ComfyUI's blocks write into their inputs. The cause is then the text, the latent, or
        # a control that scales them.
        note(args, ("img", "txt", "vec"), args, f"what enters {name} already holds it")
        out = extra["original_block"](args) if previous is None else previous(args, extra)
        note(out, ("img", "txt"), args, f"{name} gives it")
        return out

    return hook


def _bad_prompts(streams: dict[str, Any], names: tuple[str, ...], args: dict[str, Any]) -> set[str]:
    """The names of the prompts of the rows that are not finite."""
    rows = args["transformer_options"].get(ROW_NAMES) or [None]
    bad: set[str] = set()
    for name in names:
        stream = streams.get(name)
        if isinstance(stream, Tensor) and not is_finite(stream):
            # A reference image has vectors of its own after those of the batch, in the same order of rows.
            finite = torch.isfinite(stream.flatten(1)).all(dim=1).tolist()
            if len(finite) % len(rows):
                finite = [False] * len(rows)
            bad.update(rows[row % len(rows)] or "extra" for row, is_good in enumerate(finite) if not is_good)
    return bad
