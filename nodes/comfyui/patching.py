"""The one attachment mechanism: values on a MODEL, one object a sampling run, three wrappers.

`attach` adds frozen values (block controls, a step cache) to a clone of a MODEL. The wrappers act on them while any
sampler runs: around the run, around the predictions of a step's conditionings, and around each model call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from comfy.patcher_extension import WrappersMP

from ...mmdit_core.caching.step_cache import StepCache, StepCacheRun
from ...mmdit_core.control.model_call import BlockCallCount, ControlError
from ...mmdit_core.control.spec import BlockControl
from ...mmdit_core.models.adaln import CACHE, CALL
from ...mmdit_core.text.tokens import Positions
from . import controls, step_cache
from .families import block_counts
from .frontend import messages
from .other_prompt import HostCall
from .rows import Prompts, named
from .run import adaln_cache
from .run.adaln_cache import KEY, RunAdaLNCache

RUN = "mmdit_run"  # of the Run in the transformer_options of a run


Value = TypeVar("Value", bound="BlockControl | StepCache", covariant=True)


@dataclass(frozen=True)
class Attached(Generic[Value]):
    """A value on a MODEL, the id of the node that attached it, and how that node words a ControlError.

    Fields: blocks, the double and single blocks of the model when the value was attached; None if it has none.
    """

    value: Value
    node_id: str | None = None
    word_error: Callable[[ControlError], Exception] | None = None
    blocks: tuple[int, int] | None = None


@dataclass
class CallCount:
    """Model calls of a run, and rows of their batches by branch (0 cond, 1 uncond)."""

    calls: int = 0
    rows: Counter[int] = field(default_factory=Counter)

    def add(self, batch: int, branches: Sequence[int]) -> None:
        """Count one call. Args: batch, its rows; branches, of its equal chunks."""
        self.calls += 1
        for branch in branches:
            self.rows[branch] += batch // len(branches)


@dataclass
class Run:
    """One sampling run. The run's wrapper makes it, puts it into transformer_options, and drops it at the end.

    Fields:
        sigmas: of the schedule, [steps + 1].
        evaluated: all sigmas at which the solver evaluates the model, None if the sampler is not ours or adaptive.
        block_calls: of the block controls; all zero without any.
        step_cache: the state of the step cache, None without one.
        adaln: the AdaLN cache, None for a model that is not our core.
        sigma: of the present model call, set by our solver; None if the sampler is ComfyUI's.
        requested, computed: calls of the model, and those that no other node's cache answered in its place.
        guider: whose run it is, None outside of one.
        prompts: the conditionings of the running `calc_cond_batch`.
        phrases_known: True if each control's phrase was found in a positive prompt of the run.
        maps: token maps, by the id of the text's tensor.
        texts: what the first block is given for block prompts.
    """

    sigmas: tuple[float, ...] = ()
    evaluated: tuple[float, ...] | None = None
    block_calls: BlockCallCount = field(default_factory=BlockCallCount)
    step_cache: StepCacheRun | None = None
    adaln: RunAdaLNCache | None = None
    sigma: float | None = None
    requested: CallCount = field(default_factory=CallCount)
    computed: CallCount = field(default_factory=CallCount)
    guider: Any = None
    prompts: Prompts | None = None
    phrases_known: bool = False
    maps: dict[int, Positions] = field(default_factory=dict)
    texts: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @property
    def calls(self) -> CallCount:
        """What the model computed. Some of ComfyUI's models do not report that a cache answered in their place."""
        return self.computed if self.computed.calls else self.requested


def attach(
    model,
    values: Iterable[BlockControl | StepCache],
    node_id: str | None = None,
    word_error: Callable[[ControlError], Exception] | None = None,
):
    """A clone of the MODEL with more values, in this order. A step cache replaces the one that was there.

    Args: node_id, of the node that shows what the values did; word_error, turns a ControlError into the node's error.
    """
    blocks = block_counts(model.model)
    items = [Attached(value, node_id, word_error, blocks) for value in values]
    before = attached(model)
    if any(isinstance(item.value, StepCache) for item in items):
        before = tuple(item for item in before if not isinstance(item.value, StepCache))
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


def step_cache_of(model) -> StepCache | None:
    """The step cache on a MODEL; None without one that has an effect."""
    item = _step_cache(model.model_options["transformer_options"])
    return None if item is None else item.value


def install(patcher) -> None:
    """Put our wrappers on a MODEL, once; its clones keep them."""
    for kind, wrapper in WRAPPERS.items():
        if not patcher.get_wrappers(kind, KEY):
            patcher.add_wrapper_with_key(kind, KEY, wrapper)


def run_of(transformer_options: Mapping[str, Any]) -> Run | None:
    """The run that these options are of; None outside of one."""
    return transformer_options.get(RUN)


def _step_cache(options: Mapping[str, Any]) -> Attached[StepCache] | None:
    return next(iter(_of_type(StepCache, options)), None)


def _of_type(kind: type[Value], options: Mapping[str, Any]) -> list[Attached[Value]]:
    """The attached values of a type that have an effect."""
    return [item for item in options.get(KEY, ()) if isinstance(item.value, kind) and not item.value.does_nothing]


def _around_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    # The guider's options are a copy that ComfyUI made for this run.
    options = executor.class_obj.model_options["transformer_options"]
    cache, levels = _step_cache(options), tuple(sigmas.tolist())
    guider = executor.class_obj
    items = _of_type(BlockControl, options)
    with _worded(items):
        controls.require_phrases(items, guider.conds.get("positive", ()))
    run = options[RUN] = Run(
        sigmas=levels,
        evaluated=getattr(getattr(sampler, "sampler_function", sampler), "evaluated", None),
        step_cache=None if cache is None else StepCacheRun(cache.value, levels),
        guider=guider,
        phrases_known="positive" in guider.conds,
    )
    adaln = run.adaln = adaln_cache.make(executor.class_obj, run.evaluated or run.sigmas[:-1])
    if adaln is not None:
        options[CACHE] = adaln
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        if cache is not None and run.step_cache is not None:
            messages.show_text(cache.node_id, step_cache.summary(run.step_cache.count))
        return samples
    finally:
        options.pop(RUN, None)
        options.pop(CACHE, None)
        if adaln is not None:
            adaln.close()
        controls.show(run.block_calls, _of_type(BlockControl, options))


def _around_conditionings(executor, model, conds, x_in, timestep, model_options):
    options = model_options["transformer_options"]
    run = run_of(options)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    with _known_prompts(run, conds, model_options):
        if run.adaln is not None:
            run.adaln.add_conditionings(conds)
        if run.step_cache is None:
            return executor(model, conds, x_in, timestep, model_options)
        windows = [item.value.window for item in _of_type(BlockControl, options)]
        return step_cache.predict(run.step_cache, windows, executor, model, conds, x_in, timestep, model_options)


@contextmanager
def _known_prompts(run: Run, conds, model_options) -> Iterator[None]:
    """The run knows the conditionings of the running `calc_cond_batch`."""
    wrappers = model_options["transformer_options"].get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    others = any(found and key != KEY for key, found in wrappers.items())
    changeable = others or "model_function_wrapper" in model_options
    # A guider's lists are processed after its run begins, so they are looked up here.
    before, run.prompts = run.prompts, named(run.guider.conds, conds, changeable)
    try:
        yield
    finally:
        run.prompts = before


def _around_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    options = transformer_options or {}
    run = run_of(options) or Run()
    branches = tuple(options.get("cond_or_uncond") or (0,))
    run.requested.add(x.shape[0], branches)
    items = _of_type(BlockControl, options)
    host = HostCall(executor.class_obj, x, t, c_concat, c_crossattn, options, kwargs)
    with _worded(items), controls.acting(items, run, host) if items else nullcontext(options) as options:
        if run.adaln is not None:
            options = {**options, CALL: run.adaln.identify(options, run.sigma)}
        options = _counting(options, run.computed, branches)
        if _is_compiled(executor.class_obj.diffusion_model, options):
            kwargs["options"] = options
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


@contextmanager
def _worded(items: Sequence[Attached[BlockControl]]) -> Iterator[None]:
    """Errors that are found while sampling, but are of an input of another node, become that node's."""
    try:
        yield
    except ControlError as error:
        for item in items:
            if item.value.action == error.control.action and item.word_error is not None:
                raise item.word_error(error) from error
        raise


def _is_compiled(core, options: Mapping[str, Any]) -> bool:
    """True if the call runs under torch.compile, and the model takes its options under a name of their own.

    ComfyUI's TorchCompileModel makes torch assume that transformer_options never change. Hooks come and go within a
    run, so they need another name, on which torch guards.
    """
    wrapped = "torch.compile" in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, ())
    return getattr(core, "takes_options", False) and (wrapped or hasattr(core, "_orig_mod"))


def _counting(options: dict[str, Any], count: CallCount, branches: Sequence[int]) -> dict[str, Any]:
    """Options that count the calls which other nodes' wrappers next to the model, such as EasyCache's, let through."""
    wrappers = options.get("wrappers", {})
    inner = wrappers.get(WrappersMP.DIFFUSION_MODEL)
    if not inner:
        return options

    def counted(executor, x, *args, **kwargs):
        count.add(x.shape[0], branches)
        return executor(x, *args, **kwargs)

    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: {**inner, KEY: [counted]}}}


WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: _around_run,
    WrappersMP.CALC_COND_BATCH: _around_conditionings,
    WrappersMP.APPLY_MODEL: _around_call,
}
