"""Block controls on a MODEL: what they do in a model call of a run, and what their nodes show after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...mmdit_core.control.hooks import compile_controls, phrase_error
from ...mmdit_core.control.model_call import BlockCallCount, ControlError, ModelCall
from ...mmdit_core.control.spec import POSITIVE, BlockControl
from ...mmdit_core.text.tokens import Positions
from .block_forward import hooked
from .families import Family, family_of, network_of, why_refused
from .frontend import messages
from .other_prompt import HostCall, first_args
from .rows import BRANCHES, CHANGED, Entry, Rows
from .run import adaln_cache
from .text.contexts import LazyTokenMap

if TYPE_CHECKING:
    from .patching import Attached
    from .run.state import Run


@dataclass
class Acting:
    """Block controls in one model call.

    Fields: options, of the call; check, to be called with the x and context that the network is given, where another
    node's wrapper next to the network may change them or the blocks; ran, whether the network ran, None if it cannot be
    known.
    """

    options: dict[str, Any]
    check: Callable[[Tensor, Any], None]
    ran: bool | None = True


@contextmanager
def acting(items: Sequence[Attached[BlockControl]], run: Run, host: HostCall, rows: Rows) -> Iterator[Acting]:
    """The controls act on the model while the body runs.

    Raises: ControlError for a control that cannot be carried out in this call.
    """
    controls = _at_sigma([item.value for item in items], host)
    base, options = host.base, host.options
    family = family_of(base)
    if family is None:
        raise ControlError(items[0].value, "model", why_refused(base))
    _check_blocks(items, family, base, run)
    by_branch = [control for control in controls if _needs_prompts(control)]
    if rows.unknown and by_branch:
        raise ControlError(by_branch[0], "branch", rows.unknown)
    _require_texts(items, run, {name for name in rows.names if name is not None})
    _require_places(controls, family, host)
    by_forward = family.by_forward(_is_masked(controls, host))
    call, count = _model_call(family, by_forward, run, host, rows), BlockCallCount()
    replaced = options.get("patches_replace", {})
    # Hooks of other nodes, which such a network never calls, stay without effect.
    existing = {} if by_forward else replaced.get("dit", {})
    hooks = compile_controls(controls, call, existing, count)

    def check(x: Tensor, context: Any) -> None:
        _check_blocks(items, family, base, run)
        if hooks and not _same_rows(host, x, context, by_branch):
            raise ControlError((by_branch or controls)[0], "branch", CHANGED)

    made = Acting(options, check)
    if not hooks:
        yield made
    elif by_forward:
        with hooked(network_of(base), family, hooks):
            yield made
    else:  # A copy: ComfyUI shares this dictionary between calls.
        made.options = {**options, "patches_replace": {**replaced, "dit": {**existing, **hooks}}}
        yield made
    if made.ran:
        # The first call cannot be answered by a cache of blocks, so each block has to come by.
        if not run.blocks_came_by and hooks.keys() - call.called:
            raise ControlError(controls[0], "blocks", "another node runs the model's blocks in its own way")
        run.blocks_came_by = run.blocks_came_by or bool(hooks)
    if made.ran or call.called:
        run.add_block_calls(count)


def _needs_prompts(control: BlockControl) -> bool:
    """Whether a control tells the prompts of a batch apart."""
    return control.branch != "both" or control.branches == (POSITIVE,) or control.is_selective


def _same_rows(host: HostCall, x: Tensor, context: Any, by_branch: Sequence[BlockControl]) -> bool:
    """Whether the network is given the rows of the call. Waits for the device if a control is of one branch."""
    given = host.c_crossattn
    if not by_branch or given is None:
        return len(x) == len(host.x)
    if not torch.is_tensor(context) or context.shape != given.shape:
        return False
    return len(x) == len(host.x) and torch.equal(context, given.to(context.device, context.dtype))


def _is_masked(controls: Sequence[BlockControl], host: HostCall) -> bool:
    """True if the text of the call, or of a block prompt, has a mask."""
    inputs = [control.context_inputs or {} for control in controls]
    return any(given.get("attention_mask") is not None for given in (host.inputs, *inputs))


def _model_call(family: Family, by_forward: bool, run: Run, host: HostCall, rows: Rows) -> ModelCall:
    double, single = family.counts(network_of(host.base))

    def first(prompt: BlockControl, of: Sequence[int]) -> dict[str, Any]:
        prompts = rows.names, tuple(host.options.get("uuids") or ())
        args = _first_args(prompt, (tuple(of), prompts), family, by_forward, call, run, host)
        _check_length(prompt, args["txt"].shape[1], family, host)
        return args

    call = ModelCall(
        double=double,
        single=single,
        branches=rows.branches,
        batch=host.x.shape[0],
        maps=tuple(_token_map(entry, run, family) for entry in rows.entries),
        lengths=tuple(map(_length, rows.entries)) if None not in rows.entries else (),
        groups=rows.groups,
        text=family.text,
        renewed=host.inputs[family.renews].shape[-2] if family.renews else 0,
        phrases_known=run.phrases_known,
        first_args=first,
    )
    return call


def _token_map(entry: Entry | None, run: Run, family: Family) -> Positions | None:
    """The token map of a conditioning, made once a run; None for one that is not known or has no text."""
    if entry is None or entry.get("cross_attn") is None:
        return None
    made = LazyTokenMap(entry, first=family.text.prompt_last, twice=bool(family.renews))
    return run.maps.setdefault(id(entry["cross_attn"]), made)  # the map holds the tensor


def _length(entry: Entry | None) -> int:
    """Tokens of a conditioning's text, as it was encoded."""
    context = None if entry is None else entry.get("cross_attn")
    return 0 if context is None else context.shape[1]


def require(items: Iterable[Attached[BlockControl]], run: Run) -> None:
    """Check all controls against the prompts of a run, before its first step.

    Raises: ControlError for a branch that the guider has under another name, and for a phrase or part that no positive
        prompt has.
    """
    conds = run.guider.conds
    for control in (item.value for item in items):
        name = _list_of(control)
        # A guider with a positive prompt alone has no negative one, and a control of it has nothing to act on.
        if name not in (None, *conds) and not (name == "negative" and set(conds) == {"positive"}):
            found = f"the guider has no prompt of the name {name}: it has {', '.join(conds)}"
            raise ControlError(control, "branch", found)
    _require_texts(items, run, {"positive"} & set(conds))


def _list_of(control: BlockControl) -> str | None:
    """The name of the guider's list that a control acts on; None for all of them."""
    if control.branches == (POSITIVE,):
        return "positive"
    return control.branch if control.branch in BRANCHES else None


def _require_texts(items: Iterable[Attached[BlockControl]], run: Run, names: Collection[str]) -> None:
    """Look for the phrases and parts of all controls in some of the guider's lists, each once a run.

    A list that is not computed, as the negative one at cfg 1, needs no part. Raises: ControlError.
    """
    new = set(names) - run.required if run.guider is not None else set()
    run.required.update(new)
    for control in (item.value for item in items if item.value.is_selective):
        own = _list_of(control)
        for name in new if own is None else new & {own}:
            errors = [phrase_error(control, LazyTokenMap(entry)) for entry in run.guider.conds[name]]
            if errors and None not in errors:
                raise ControlError(control, "phrases", str(errors[0])) from errors[0]


def _require_places(controls: Sequence[BlockControl], family: Family, host: HostCall) -> None:
    """Raises: ControlError for a phrase or part where the prompt's place in the text stream is not known."""
    moved = [name for name in family.moves_prompt if host.inputs.get(name) is not None]
    for control in controls:
        if moved and control.is_selective:
            reason = f"{family.label} puts other text before the prompt's here, because of {', '.join(moved)}"
            raise ControlError(control, "place", reason)


def _check_blocks(items: Sequence[Attached[BlockControl]], family: Family, base, run: Run) -> None:
    """Raises: ControlError if the model's lists of blocks are not those that the controls were made for."""
    found = family.counts(network_of(base))
    for item in items:
        if item.blocks is not None and item.blocks != found:
            kinds = sorted({type(block).__name__ for blocks in family.lists(network_of(base)) for block in blocks})
            blocks = f"{sum(found)} ({', '.join(kinds)})"
            reason = f"another node replaced the model's {sum(item.blocks)} blocks by {blocks}"
            if getattr(run.guider, "inner_model", base) is not base:
                reason = f"the guider has a second model of {blocks} blocks, the first has {sum(item.blocks)}"
            raise ControlError(item.value, "blocks", reason)


def _at_sigma(controls: Sequence[BlockControl], host: HostCall) -> Sequence[BlockControl]:
    """The controls that act at the sigma of a call, with their strengths there."""
    if all(control.window.is_whole for control in controls) or host.options.get("sigmas") is None:
        return controls
    sigma = float(host.options["sigmas"].max())  # waits for the device, so only if a window needs it
    # Read from the model now: a node that changes the shift may come after the control's.
    to_sigma = host.base.model_sampling.percent_to_sigma
    return [acting for control in controls if (acting := control.at(sigma, to_sigma)) is not None]


def _first_args(
    prompt: BlockControl,
    of: tuple[tuple[int, ...], Hashable],
    family: Family,
    by_forward: bool,
    call: ModelCall,
    run: Run,
    host: HostCall,
) -> dict[str, Any]:
    """`other_prompt.first_args`, once a run where it does not change. Args: of, the rows and their prompts."""
    patcher, options = host.base.current_patcher, host.options
    changes = family.text_changes or patcher is None or adaln_cache.may_change(patcher, ("",))
    # Positions may depend on more than the text, such as references or a video's frames.
    if changes or run.prompts is None or run.prompts.changeable or options.get("context_window") is not None:
        return first_args(family, by_forward, host, call, prompt, of[0])
    # The MODEL holds the context for as long as the run.
    key = id(prompt.context), id(host.base), tuple(host.x.shape), host.x.device, of, by_forward
    if key not in run.texts:
        run.texts[key] = first_args(family, by_forward, host, call, prompt, of[0])
    return run.texts[key]


def _check_length(prompt: BlockControl, own: int, family: Family, host: HostCall) -> None:
    """Raises: ControlError for a prompt of another length where the single blocks take texts of one length alone."""
    params = getattr(network_of(host.base), "params", None)
    method = host.inputs.get("ref_latents_method", getattr(params, "default_ref_method", ""))
    given = own if host.c_crossattn is None else host.c_crossattn.shape[1]
    kept = bool(family.keeps_length) and host.inputs.get("ref_latents") is not None and method == family.keeps_length
    if kept and given != own:
        reason = f"it has {own} tokens, the sampler's prompt {given}, and {method} takes one length alone"
        raise ControlError(prompt, "context", reason)


def show(run: Run, items: Iterable[Attached[BlockControl]]) -> None:
    """Show the block calls of a run on the nodes that skip blocks or add a prompt, and controls that had no effect."""
    count = run.block_calls
    for item in items:
        lines = []
        if item.value.action == "skip" and count.total:
            lines.append(str(BlockCallCount(count.total, count.skipped)))
        if item.value.action == "prompt" and count.total:
            lines.append(str(BlockCallCount(count.total, extra=count.extra)))
        if count.total and count.skipped == count.total:
            lines.append("all blocks were skipped: the image does not depend on the prompt")
        if why := _why_idle(item.value, run):
            lines = [why] if not count.skipped else [*lines, why]
        if lines:
            messages.show_text(item.node_id, "\n".join(lines))


def _why_idle(control: BlockControl, run: Run) -> str:
    """Why a control's branch had no prediction in a run that ran; "" if it had one."""
    name = _list_of(control)
    if name is None or not run.requested.calls or run.requested.rows[name]:
        return ""
    if name not in run.guider.conds:
        return f"the guider has no {name} prompt: there is nothing to act on"
    if name not in run.requested_lists:
        return f"cfg is 1: there is no {name} prediction" if name == "negative" else f"there is no {name} prediction"
    return f"the {name} prompt was left out of every step by its timestep range"
