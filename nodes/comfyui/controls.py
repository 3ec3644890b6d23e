"""Block controls on a MODEL: what they do in a model call of a run, and what their nodes show after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...mmdit_core.control.hooks import compile_controls, phrase_error
from ...mmdit_core.control.model_call import BlockCallCount, ControlError, ModelCall
from ...mmdit_core.control.spec import POSITIVE, BlockControl
from ...mmdit_core.text.tokens import Positions
from .block_forward import hooked
from .families import Family, family_of, network_of, why_refused
from .frontend import messages
from .other_prompt import HostCall, first_args
from .rows import Entry, rows_of_call
from .run import adaln_cache
from .text.contexts import LazyTokenMap

if TYPE_CHECKING:
    from .patching import Attached, Run


@contextmanager
def acting(items: Sequence[Attached[BlockControl]], run: Run, host: HostCall) -> Iterator[dict[str, Any]]:
    """The controls act on the model while the body runs. Gives the options of the model call.

    Raises: ControlError for a control that cannot be carried out in this call.
    """
    controls = _at_sigma([item.value for item in items], host)
    base, options = host.base, host.options
    family = family_of(base)
    if family is None:
        raise ControlError(items[0].value, "model", why_refused(base))
    _check_blocks(items, family, base)
    call = _model_call(controls, family, run, host)
    replaced = options.get("patches_replace", {})
    # Hooks of other nodes, which such a network never calls, stay without effect.
    existing = {} if family.arguments else replaced.get("dit", {})
    hooks = compile_controls(controls, call, existing, run.block_calls)
    if not hooks:
        yield options
    elif family.arguments:
        with hooked(network_of(base), family, hooks):
            yield options
    else:  # A copy: ComfyUI shares this dictionary between calls.
        yield {**options, "patches_replace": {**replaced, "dit": {**existing, **hooks}}}


def _model_call(controls: Sequence[BlockControl], family: Family, run: Run, host: HostCall) -> ModelCall:
    rows = rows_of_call(run.prompts, host.options, host.x.shape[0], host.c_crossattn)
    by_branch = [control for control in controls if control.branch != "both" or control.branches == (POSITIVE,)]
    if rows.unknown and by_branch:
        raise ControlError(by_branch[0], "branch", rows.unknown)
    double, single = family.counts(network_of(host.base))

    def first(prompt: BlockControl, of: Sequence[int]) -> dict[str, Any]:
        return _first_args(prompt, tuple(of), family, call, run, host)

    call = ModelCall(
        double=double,
        single=single,
        branches=rows.branches,
        batch=host.x.shape[0],
        maps=tuple(_token_map(entry, run) for entry in rows.entries),
        lengths=tuple(map(_length, rows.entries)) if None not in rows.entries else (),
        groups=rows.groups,
        partial_rows=family.partial_rows(host.inputs),
        text=family.text,
        phrases_known=run.phrases_known,
        first_args=first,
    )
    return call


def _token_map(entry: Entry | None, run: Run) -> Positions | None:
    """The token map of a conditioning, made once a run; None for one that is not known."""
    if entry is None:
        return None
    return run.maps.setdefault(id(entry["cross_attn"]), LazyTokenMap(entry))  # the map holds the tensor


def _length(entry: Entry | None) -> int:
    """Tokens of a conditioning's text, as it was encoded."""
    return entry["cross_attn"].shape[1] if entry is not None else 0


def require_phrases(items: Iterable[Attached[BlockControl]], positive: Sequence[Entry]) -> None:
    """Look for the phrases of all controls in the positive prompts of a run, before its first step.

    Raises: ControlError for a phrase that is in none of them.
    """
    for control in (item.value for item in items):
        if control.phrases:
            errors = [phrase_error(control, LazyTokenMap(entry)) for entry in positive]
            if errors and None not in errors:
                raise ControlError(control, "phrases", str(errors[0])) from errors[0]


def _check_blocks(items: Sequence[Attached[BlockControl]], family: Family, base) -> None:
    """Raises: ControlError if the model's lists of blocks are not those that the controls were made for."""
    found = family.counts(network_of(base))
    for item in items:
        if item.blocks is not None and item.blocks != found:
            kinds = sorted({type(block).__name__ for blocks in family.lists(network_of(base)) for block in blocks})
            reason = f"another node replaced the model's {sum(item.blocks)} blocks by {sum(found)} ({', '.join(kinds)})"
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
    prompt: BlockControl, rows: tuple[int, ...], family: Family, call: ModelCall, run: Run, host: HostCall
) -> dict[str, Any]:
    """`other_prompt.first_args`, once a run where it is the same in every step."""
    patcher = host.base.current_patcher
    # The MODEL holds the context for as long as the run.
    key = id(prompt.context), id(host.base), tuple(host.x.shape), host.x.device, rows
    if family.text_changes or patcher is None or adaln_cache.may_change(patcher, ("",)):
        run.texts.pop(key, None)
    if key not in run.texts:
        run.texts[key] = first_args(family, host, call, prompt, rows)
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
