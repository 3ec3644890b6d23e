"""Block controls on a MODEL: what they do in a model call of a run, and what their nodes show after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...mmdit_core.control.hooks import compile_controls
from ...mmdit_core.control.model_call import BlockCallCount, ModelCall
from ...mmdit_core.control.spec import BlockControl
from .families import FAMILIES, Family, family_of
from .frontend import messages
from .run import adaln_cache

if TYPE_CHECKING:
    from .patching import Attached, Run


def with_hooks(
    controls: Sequence[BlockControl],
    run: Run,
    base,
    x: torch.Tensor,
    branches: tuple[int, ...],
    options: dict[str, Any],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of a model call with the hooks of the controls that act in it: a copy, or the same if none acts.

    Args: base, the model of the call; x, its batch; branches, of the batch's chunks; inputs, its keyword arguments.
    """
    core = base.diffusion_model
    family = family_of(core)
    if family is None:
        return options
    double, single = family.counts(core)
    uuids = options.get("uuids") or (None,) * len(branches)
    call = ModelCall(
        double=double,
        single=single,
        branches=branches,
        batch=x.shape[0],
        maps=tuple(run.maps.get(key) for key in zip(branches, uuids, strict=True)),
        partial_rows=family.partial_rows(inputs),
        registers=family.register_tokens(core),
        embed=lambda context: _embedded(context, family, run, base, x),
    )
    replaced = options.get("patches_replace", {})
    existing = replaced.get("dit", {})
    hooks = compile_controls(_acting(controls, options, base), call, existing, run.block_calls)
    if not hooks:
        return options
    # A copy: ComfyUI shares this dictionary between calls.
    return {**options, "patches_replace": {**replaced, "dit": {**existing, **hooks}}}


def _acting(controls: Sequence[BlockControl], options: Mapping[str, Any], base) -> Sequence[BlockControl]:
    """The controls that act at the sigma of a call, with their strengths there."""
    if all(control.window.is_whole for control in controls) or options.get("sigmas") is None:
        return controls
    sigma = float(options["sigmas"].max())  # waits for the device, so only if a window needs it
    # Read from the model now: a node that changes the shift may come after the control's.
    to_sigma = base.model_sampling.percent_to_sigma
    return [acting for control in controls if (acting := control.at(sigma, to_sigma)) is not None]


def _embedded(context: torch.Tensor, family: Family, run: Run, base, like: torch.Tensor) -> torch.Tensor:
    """[1, L, D]: a block prompt's context as the blocks take it, once a run unless its layers may change in the run."""
    dtype = base.get_dtype_inference()
    patcher, layers = base.current_patcher, [name for each in FAMILIES for name in each.text]
    key = id(context), id(base), like.device, dtype  # the MODEL holds the context for as long as the run
    if patcher is None or adaln_cache.may_change(patcher, layers):
        run.texts.pop(key, None)
    if key not in run.texts:
        run.texts[key] = family.embed(base.diffusion_model, context.to(device=like.device, dtype=dtype))
    return run.texts[key]


def show(count: BlockCallCount, items: Iterable[Attached[BlockControl]]) -> None:
    """Show the block calls of a run on the nodes that skip blocks or add a prompt."""
    texts = {
        "skip": str(count),
        "prompt": f"{count.extra:,} block calls more than {count.total:,}, for the block prompt",
    }
    for item in items:
        if count.total and item.value.action in texts:
            messages.show_text(item.node_id, texts[item.value.action])
