"""The one attachment mechanism: values on a MODEL, one object a sampling run, four wrappers.

`attach` adds frozen values (block controls, a step cache) to a clone of a MODEL. The wrappers act on them while any
sampler runs: around the run, around ComfyUI's estimate of its memory, around the predictions of a step's
conditionings, and around each model call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from comfy.patcher_extension import WrappersMP

from ...mmdit_core.caching.step_cache import StepCache, StepCacheRun
from ...mmdit_core.control.model_call import ROW_NAMES, ControlError
from ...mmdit_core.control.spec import BlockControl
from ...mmdit_core.flow.window import Window
from ...mmdit_core.models.adaln import CACHE
from ...mmdit_core.models.sd3 import MMDiT
from . import controls, step_cache
from .families import block_counts
from .frontend import messages
from .loading.offloading import load_last
from .modulation import MEMORY_MB, PrecomputedModulation, layers_of, replaced
from .modulation import table as modulation_table
from .modulation.table import ModulationTable
from .other_prompt import HostCall
from .rows import Prompts, Rows, all_of, named, rows_of_call
from .run import adaln_cache
from .run.adaln_cache import KEY
from .run.state import RUN, Run, run_of

log = logging.getLogger(__name__)

Value = TypeVar("Value", bound="BlockControl | StepCache | PrecomputedModulation", covariant=True)


@dataclass(frozen=True)
class Attached(Generic[Value]):
    """A value on a MODEL, the id of the node that attached it, and how that node words a ControlError.

    Fields: blocks, the double and single blocks of the model when the value was attached; None if it has none; row, of
    a node whose boosts are rows, from 1; 0 for a node's own inputs.
    """

    value: Value
    node_id: str | None = None
    word_error: Callable[[ControlError], Exception] | None = None
    blocks: tuple[int, int] | None = None
    row: int = 0


def attach(
    model,
    values: Iterable[BlockControl | StepCache | PrecomputedModulation],
    node_id: str | None = None,
    word_error: Callable[[ControlError], Exception] | None = None,
    row: int = 0,
):
    """A clone of the MODEL with more values, in this order. Of step caches and PrecomputedModulations the last counts.

    Args: node_id, of the node that shows what the values did; word_error, turns a ControlError into the node's error;
        row, of the node, as in Attached.
    """
    blocks = block_counts(model.model)
    items = [Attached(value, node_id, word_error, blocks, row) for value in values]
    before = attached(model)
    for kind in (StepCache, PrecomputedModulation):
        if any(isinstance(item.value, kind) for item in items):
            before = tuple(item for item in before if not isinstance(item.value, kind))
    clone = model.clone()
    clone.model_options["transformer_options"][KEY] = (*before, *items)
    install(clone)
    return clone


def attached(model) -> tuple[Attached, ...]:
    """What is attached to a MODEL, in order."""
    return model.model_options["transformer_options"].get(KEY, ())


def controls_of(model) -> tuple[BlockControl, ...]:
    """The block controls on a MODEL that have an effect, in order."""
    return tuple(item.value for item in _of_type(BlockControl, model.model_options["transformer_options"]))


def last_controls(model) -> tuple[Attached[BlockControl], ...]:
    """The block controls of the last block node on a MODEL, also those without an effect; () without a block node.

    A node may attach several: one for each strength in its block list, those of a preset, those of its rows.
    """
    start, stop = _last_node(attached(model))
    return attached(model)[start:stop]


def with_last_controls(model, controls: Iterable[Attached[BlockControl]]):
    """A clone of the MODEL with other block controls in place of those of its last block node."""
    items = attached(model)
    start, stop = _last_node(items)
    clone = model.clone()
    clone.model_options["transformer_options"][KEY] = (*items[:start], *controls, *items[stop:])
    return clone


def other_values(model) -> list[StepCache | PrecomputedModulation]:
    """What is attached to a MODEL besides block controls, in order."""
    return [item.value for item in attached(model) if not isinstance(item.value, BlockControl)]


def _last_node(items: Sequence[Attached]) -> tuple[int, int]:
    """The first of the items that the last block node attached, and the item after them; (0, 0) without any."""
    places = [index for index, item in enumerate(items) if isinstance(item.value, BlockControl)]
    if not places:
        return 0, 0
    start, own = places[-1], items[places[-1]].node_id
    # Without a node's id each control counts as a node's own.
    while own is not None and start - 1 in places and items[start - 1].node_id == own:
        start -= 1
    return start, places[-1] + 1


def step_cache_of(model) -> StepCache | None:
    """The step cache on a MODEL; None without one that has an effect."""
    item = _step_cache(model.model_options["transformer_options"])
    return None if item is None else item.value


def install(patcher) -> None:
    """Put our wrappers on a MODEL, once; its clones keep them."""
    for kind, wrapper in WRAPPERS.items():
        if not patcher.get_wrappers(kind, KEY):
            patcher.add_wrapper_with_key(kind, KEY, wrapper)


def prepare(patcher) -> None:
    """Put our wrappers on a MODEL, and let ComfyUI load last what a run reads once. It is changed."""
    install(patcher)  # only a MODEL from MMDiTLoader, or with controls, has them already
    if layers_of(patcher.model):
        load_last(patcher)


def _step_cache(options: Mapping[str, Any]) -> Attached[StepCache] | None:
    return next(iter(_of_type(StepCache, options)), None)


def _of_type(kind: type[Value], options: Mapping[str, Any]) -> list[Attached[Value]]:
    """The attached values of a type that have an effect."""
    return [item for item in options.get(KEY, ()) if isinstance(item.value, kind) and not item.value.does_nothing]


def _around_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    with running(executor.class_obj, sampler, sigmas):
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


@contextmanager
def running(guider, sampler, sigmas) -> Iterator[Run]:
    """A sampling run of a guider while the body runs; its counts are shown at the end.

    Args: guider, its model_options a copy of this run alone; sampler, of ComfyUI's; sigmas [steps + 1].
    """
    options = guider.model_options["transformer_options"]
    cache, levels = _step_cache(options), tuple(sigmas.tolist())
    items = _of_type(BlockControl, options)
    ours = getattr(sampler, "sampler_function", sampler)
    run = Run(
        sigmas=levels,
        evaluated=getattr(ours, "evaluated", None),
        step_cache=None if cache is None else StepCacheRun(cache.value, levels),
        guider=guider,
    )
    with _worded(items):
        controls.require(items, run)
    options[RUN] = run
    _put_innermost(options)
    precomputed = next(iter(_of_type(PrecomputedModulation, options)), None)
    adaln = run.adaln = _modulation(run, precomputed, hasattr(ours, "evaluated"))
    if isinstance(adaln, adaln_cache.RunAdaLNCache):
        options[CACHE] = adaln
    try:
        yield run
        if cache is not None and run.step_cache is not None:
            messages.show_text(cache.node_id, step_cache.summary(run.step_cache.count))
        if run.modulation is not None:
            log.info("%s", run.modulation)
            messages.show_text(None if precomputed is None else precomputed.node_id, str(run.modulation))
    finally:
        options.pop(RUN, None)
        options.pop(CACHE, None)
        if adaln is not None:
            adaln.close()
        controls.show(run, items)


def _modulation(
    run: Run, precomputed: Attached[PrecomputedModulation] | None, ours: bool
) -> adaln_cache.RunAdaLNCache | ModulationTable | None:
    """The modulation computed ahead: of our core always, of another network by our samplers or by a node."""
    sigmas, patcher = run.evaluated or run.sigmas[:-1], run.guider.model_patcher
    core = adaln_cache.make(run.guider, sigmas)
    wanted = core is None and (ours or precomputed is not None)
    if not wanted or not layers_of(patcher.model) or isinstance(patcher.model.diffusion_model, MMDiT):
        return core
    limit = MEMORY_MB if precomputed is None else precomputed.value.memory_limit_mb
    table = modulation_table.make(patcher, sigmas, limit, adaln_cache.identify_of(run.guider))
    run.modulation = table.count
    return table


def _around_prepare(executor, model, noise_shape, conds, *args, **kwargs):
    """ComfyUI's estimate of a run's memory, with the table of its modulation."""
    run = run_of((kwargs.get("model_options") or {}).get("transformer_options", {}))
    if run is None or not isinstance(run.adaln, ModulationTable):
        return executor(model, noise_shape, conds, *args, **kwargs)
    extra = run.adaln.most_bytes(noise_shape[0] * len(conds))

    def more(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: original(*given, **named) + extra

    with replaced(model.model, more, "memory_required"):
        return executor(model, noise_shape, conds, *args, **kwargs)


def _put_innermost(options: dict[str, Any]) -> None:
    """Move our APPLY_MODEL wrapper within those of other nodes: the rows that it finds are those that the model runs.

    torch.compile's stays where it is: it changes no rows. Args: options, of this run alone.
    """
    wrappers = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    keys = list(wrappers)
    last = max((index for index, key in enumerate(keys) if _is_foreign(key)), default=-1)
    if KEY in keys and keys.index(KEY) < last:
        keys.insert(last, keys.pop(keys.index(KEY)))
        options["wrappers"][WrappersMP.APPLY_MODEL] = {key: wrappers[key] for key in keys}


def _is_foreign(key: str | None) -> bool:
    """Whether a wrapper's key is of a node that may change the rows of a batch."""
    return key not in (KEY, "torch.compile") and not str(key).startswith(f"{KEY}_")


def _around_conditionings(executor, model, conds, x_in, timestep, model_options):
    options = model_options["transformer_options"]
    run = run_of(options)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    with _known_prompts(run, conds, model_options) as prompts:
        if run.adaln is not None:
            run.adaln.add_conditionings(prompts)
        if run.step_cache is None:
            return executor(model, conds, x_in, timestep, model_options)
        windows = [item.value.window for item in _of_type(BlockControl, options)]
        return step_cache.predict(
            run.step_cache, windows, prompts.names, executor, model, conds, x_in, timestep, model_options
        )


@contextmanager
def _known_prompts(run: Run, conds, model_options) -> Iterator[Prompts]:
    """The run knows the conditionings of the running `calc_cond_batch`."""
    wrappers = model_options["transformer_options"].get("wrappers", {})
    kinds = WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL
    others = any(found and _is_foreign(key) for kind in kinds for key, found in wrappers.get(kind, {}).items())
    changeable = others or "model_function_wrapper" in model_options
    # A guider's lists are processed after its run begins, so they are looked up here.
    before, run.prompts = run.prompts, named(run.guider.conds, conds, changeable)
    run.requested_lists.update(name for name in run.prompts.names if name is not None)
    try:
        yield run.prompts
    finally:
        run.prompts = before


def _rows(run: Run, host: HostCall, exact: bool) -> Rows:
    """The rows of a model call."""
    wrappers, prompts = host.options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}), run.prompts
    if prompts is None and run.guider is not None:
        prompts = all_of(run.guider.conds)
    elif prompts is not None and any(found and _is_foreign(key) for key, found in wrappers.items()):
        prompts = replace(prompts, changeable=True)  # a conditioning's hooks may add a wrapper
    inputs = {**host.inputs, "c_crossattn": host.c_crossattn}
    return rows_of_call(prompts, host.options, host.x.shape[0], inputs, exact)


def _around_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    options = transformer_options or {}
    run = run_of(options) or Run()
    items = _of_type(BlockControl, options)
    host = HostCall(executor.class_obj, x, t, c_concat, c_crossattn, options, kwargs)
    rows = _rows(run, host, exact=bool(items) or ROW_NAMES in options)
    run.add_call(run.requested, rows)
    if ROW_NAMES in options:
        options = {**options, ROW_NAMES: rows.of_rows}
        host = replace(host, options=options)
    with _worded(items), controls.acting(items, run, host, rows) if items else nullcontext() as acting:
        options = options if acting is None else acting.options
        table = run.adaln
        with nullcontext(options) if table is None else table.calling(host, options, run.sigma, run.prompts) as given:
            options = _counting(given, run, rows, acting)
            if _is_compiled(executor.class_obj.diffusion_model, options):
                kwargs["options"] = options
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


@contextmanager
def _worded(items: Sequence[Attached[BlockControl]]) -> Iterator[None]:
    """Errors that are found while sampling, but are of an input of another node, become that node's."""
    try:
        yield
    except ControlError as error:
        found, control = [item for item in items if item.word_error is not None], error.control
        own = [item for item in found if _always(item.value) == _always(control)]
        for item in own or [item for item in found if item.value.action == control.action]:
            raise item.word_error(error) from error  # type: ignore[misc]
        raise


def _always(control: BlockControl) -> BlockControl:
    """A control without what differs by step: its window, and its strength at a sigma."""
    return replace(control, strength=1.0, window=Window())


def _is_compiled(core, options: Mapping[str, Any]) -> bool:
    """True if the call runs under torch.compile, and the model takes its options under a name of their own.

    ComfyUI's TorchCompileModel makes torch assume that transformer_options never change. Hooks come and go within a
    run, so they need another name, on which torch guards.
    """
    wrapped = "torch.compile" in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, ())
    return getattr(core, "takes_options", False) and (wrapped or hasattr(core, "_orig_mod"))


def _counting(options: dict[str, Any], run: Run, rows: Rows, acting: controls.Acting | None) -> dict[str, Any]:
    """Options that note the calls which other nodes' wrappers next to the model, such as EasyCache's, let through.

    What these wrappers give the network is checked. Some of ComfyUI's models do not call them.
    """
    wrappers = options.get("wrappers", {})
    inner = wrappers.get(WrappersMP.DIFFUSION_MODEL)
    if not inner:
        return options
    if acting is not None:
        acting.ran = None

    def counted(executor, x, timestep, *args, **kwargs):
        run.add_call(run.computed, rows)
        if acting is not None:
            acting.ran = True
            acting.check(x, args[0] if args else kwargs.get("context"))
        return executor(x, timestep, *args, **kwargs)

    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: {**inner, KEY: [counted]}}}


WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: _around_run,
    WrappersMP.PREPARE_SAMPLING: _around_prepare,
    WrappersMP.CALC_COND_BATCH: _around_conditionings,
    WrappersMP.APPLY_MODEL: _around_call,
}
