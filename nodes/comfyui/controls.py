"""Block controls on a host MODEL: attached to a clone, carried out while it samples, gone afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import comfy.patcher_extension
import torch

from ...mmdit_core.control.block_prompt import SecondText, add_second_texts
from ...mmdit_core.control.hooks import BlockCallCount, ModelCall, compile_controls
from ...mmdit_core.control.spec import BlockControl
from ...mmdit_core.text.tokens import NoTokenMap, PhraseError, TokenMap
from . import patching as attaching
from .frontend import messages as ui
from .run import adaln_cache as prepared
from .text.conditioning import TOKEN_MAP
from .windows import ToSigma, holds, percent_at

KEY = "mmdit_controls"  # of the controls in transformer_options, and of our wrappers
RUN = "mmdit_run"

# Where the host's models keep their blocks: (double or joint, single).
BLOCK_LISTS = (
    ("joint_blocks", None),  # SD3, and our own core
    ("double_blocks", "single_blocks"),  # FLUX, Chroma
    ("transformer_blocks", None),  # Qwen-Image
    ("double_layers", "single_layers"),  # AuraFlow
)


# The layers between the encoders' text and the first block's, where they are all there is to it.
TEXT_LAYERS = (
    ("context_embedder",),  # SD3, and our own core
    ("txt_norm", "txt_in"),  # FLUX, Chroma, Qwen-Image
)


@dataclass(frozen=True)
class Attached:
    """A control and the node that set it."""

    control: BlockControl
    node_id: str | None


@dataclass(frozen=True)
class AttachedPrompt:
    """Another prompt for some blocks and steps, and the node that set it. context [1, L, W] as its encoders gave it."""

    context: torch.Tensor
    blocks: tuple[int, ...]
    start_percent: float
    end_percent: float
    node_id: str | None
    fade: str = "constant"


Timed = TypeVar("Timed", BlockControl, AttachedPrompt)


@dataclass
class _Run:
    """What one sampling run gathers. Made when it starts, and gone with it."""

    block_calls: BlockCallCount = field(default_factory=BlockCallCount)
    # The token map of each conditioning. An area gives the negative the positive's id, so the branch is in the key.
    maps: dict[tuple[int, Any], TokenMap | None] = field(default_factory=dict)
    # Embedded second prompts by what they were embedded from and for.
    texts: dict[Any, torch.Tensor] = field(default_factory=dict)


def block_counts(model) -> tuple[int, int] | None:
    """How many double (joint) and single blocks a MODEL has; None where no hook reaches it."""
    return counts_of(model.model.diffusion_model)


def counts_of(core) -> tuple[int, int] | None:
    for double, single in BLOCK_LISTS:
        if hasattr(core, double):
            return len(getattr(core, double)), len(getattr(core, single)) if single else 0
    return None


def attach(model, controls: Sequence[BlockControl], node_id: str | None):
    """A clone of the MODEL with more controls; the MODEL that came in stays as it is."""
    return _with(model, tuple(Attached(control, node_id) for control in controls))


def attach_prompt(model, prompt: AttachedPrompt):
    """A clone of the MODEL with another prompt in some blocks."""
    return _with(model, (prompt,))


def can_take_prompt(model) -> bool:
    """Whether the way of a text into this MODEL's blocks is known."""
    return _embedders(model.model.diffusion_model) is not None


def text_width(model) -> int | None:
    """Channels of the text that this MODEL takes; None where that is not known."""
    layers = _embedders(model.model.diffusion_model)
    return getattr(layers[-1], "in_features", None) if layers else None


def _with(model, items: tuple[Attached | AttachedPrompt, ...]):
    kinds = comfy.patcher_extension.WrappersMP
    wrappers = {
        kinds.OUTER_SAMPLE: _around_run,
        kinds.CALC_COND_BATCH: _around_conditions,
        kinds.APPLY_MODEL: _around_call,
    }
    before = model.model_options["transformer_options"].get(KEY, ())
    return attaching.attach(model, KEY, (*before, *items), wrappers)


def attached(model) -> tuple[BlockControl, ...]:
    """The controls that a MODEL carries."""
    return tuple(_controls(model.model_options["transformer_options"]))


def items_of(model) -> list[BlockControl | AttachedPrompt]:
    """The controls and second prompts that a MODEL carries and that have an effect."""
    items = model.model_options["transformer_options"].get(KEY, ())
    found = [item.control if isinstance(item, Attached) else item for item in items]
    return [i for i in found if not (i.does_nothing if isinstance(i, BlockControl) else not i.blocks)]


def shares_of(item: BlockControl | AttachedPrompt, levels: Sequence[float], to_sigma: ToSigma) -> tuple[float, ...]:
    """How much of a control acts at each noise level, in [0, 1]."""

    def share(level: float) -> float:
        if not holds(level, item.start_percent, item.end_percent, to_sigma):
            return 0.0
        fades = isinstance(item, BlockControl) and item.fade != "constant"
        return item.share_at(percent_at(level, to_sigma)) if fades else 1.0

    return tuple(share(level) for level in levels)


def _controls(options: Mapping[str, Any]) -> list[BlockControl]:
    return [item.control for item in options.get(KEY, ()) if isinstance(item, Attached)]


def _around_run(executor, *args, **kwargs):
    """One sampling run: counts its block calls, and tells them on the nodes that set the controls."""
    # The guider's options are a copy that the host made for this run alone.
    options = executor.class_obj.model_options["transformer_options"]
    run = options[RUN] = _Run()
    try:
        return executor(*args, **kwargs)
    finally:
        options.pop(RUN, None)
        if run.block_calls.total:
            for item in options.get(KEY, ()):
                if _has_a_count(item):
                    ui.show_text(item.node_id, _count_of(item, run.block_calls))


def _has_a_count(item: Attached | AttachedPrompt) -> bool:
    """Whether a node has something to tell after the run; one that does nothing has said so already."""
    if isinstance(item, AttachedPrompt):
        return bool(item.blocks) and item.start_percent < item.end_percent
    return item.control.action == "skip" and not item.control.does_nothing


def _count_of(item: Attached | AttachedPrompt, block_calls: BlockCallCount) -> str:
    if isinstance(item, AttachedPrompt):
        return f"{block_calls.extra:,} block calls more than {block_calls.total:,}, for the second prompt"
    return str(block_calls)


def _around_conditions(executor, model, conds, x_in, timestep, model_options):
    """Notes which conditioning has which token map, before the host takes the conditionings apart."""
    run = model_options["transformer_options"].get(RUN)
    if run is not None:
        for branch, entries in enumerate(conds):
            for entry in entries or ():
                run.maps[branch, entry.get("uuid")] = entry.get(TOKEN_MAP)
    return executor(model, conds, x_in, timestep, model_options)


def _around_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """One model call: the controls that are active at its noise level become block hooks."""
    options = transformer_options or {}
    base = executor.class_obj
    run = options.get(RUN) or _Run()
    # model_sampling is read here and now: a shift node may have come after the control's node.
    prompts = [item for item in options.get(KEY, ()) if isinstance(item, AttachedPrompt)]
    active, prompts, place = _active(_controls(options), prompts, options, base.model_sampling)
    counts = counts_of(base.diffusion_model)
    if counts is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    branches = tuple(options.get("cond_or_uncond") or (0,))
    uuids = options.get("uuids") or (None,) * len(branches)
    call = ModelCall(
        double=counts[0],
        single=counts[1],
        branches=branches,
        batch=x.shape[0],
        place=place,
        maps=tuple(run.maps.get(key) for key in zip(branches, uuids, strict=True)),
        partial_rows=not _mask_in_closure(base.diffusion_model, kwargs),
        registers=_registers(base.diffusion_model),
    )
    replaced = options.get("patches_replace", {})
    existing = replaced.get("dit", {})
    hooks = compile_controls(active, call, existing, run.block_calls)
    if prompts:
        texts = [SecondText(prompt.blocks, _embedded(run, base, prompt, x)) for prompt in prompts]
        hooks = add_second_texts(texts, call, hooks, existing, run.block_calls, active)
    if hooks:
        # A copy: the host shares this dictionary between calls, and nothing may stay in it.
        options = {**options, "patches_replace": {**replaced, "dit": {**existing, **hooks}}}
    try:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    except PhraseError as error:  # found out in the sampler, but the dial is another node's
        unknown = isinstance(error, NoTokenMap)
        right = "Encode the prompt with TripleTextEncode" if unknown else "Write whole words of the prompt, one a line"
        raise PhraseError(f"TextBoost: phrase: {error}. {right}") from error


def _mask_in_closure(core, kwargs: dict[str, Any]) -> bool:
    """Qwen-Image's blocks hold the text mask of the whole batch where no hook can reach it."""
    return hasattr(core, "transformer_blocks") and kwargs.get("attention_mask") is not None


def _registers(core) -> int:
    """Tokens before the prompt's in the text stream: AuraFlow has 8 of its own."""
    own = getattr(core, "register_tokens", None)
    return 0 if own is None else own.shape[1]


def _embedders(core) -> list[Any] | None:
    """The layers that a text passes on its way into the blocks."""
    for names in TEXT_LAYERS:
        if hasattr(core, names[-1]):
            return [layer for name in names if (layer := getattr(core, name, None)) is not None]
    return None


def _embedded(run: _Run, base, prompt: AttachedPrompt, like: torch.Tensor) -> torch.Tensor:
    """[1, L, D]: a second prompt as the blocks take it, embedded once a run unless the layers may change within it."""
    patcher, layers = base.current_patcher, [name for names in TEXT_LAYERS for name in names]
    if patcher is None or prepared.may_change(patcher, layers):
        return _embed(base, prompt.context, like)
    # The prompt stays alive in the options for as long as the run, so its id stays its own.
    key = id(prompt), id(base), like.device, base.get_dtype_inference()
    if key not in run.texts:
        run.texts[key] = _embed(base, prompt.context, like)
    return run.texts[key]


def _embed(base, context: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    txt = context.to(device=like.device, dtype=base.get_dtype_inference())
    for layer in _embedders(base.diffusion_model) or ():
        txt = layer(txt)
    return txt


def _active(
    controls: list[BlockControl], prompts: list[AttachedPrompt], options: dict[str, Any], model_sampling
) -> tuple[list[BlockControl], list[AttachedPrompt], float]:
    """Those whose window holds this call's noise level, and how far the sampling is, in [0, 1]."""
    timed = [c for c in (*controls, *prompts) if c.start_percent > 0 or c.end_percent < 1 or c.fade != "constant"]
    if not timed or options.get("sigmas") is None:
        return controls, prompts, 0.0
    sigma = float(options["sigmas"].max())  # the one wait for the device in a call, and only where a window asks
    to_sigma = model_sampling.percent_to_sigma
    place = percent_at(sigma, to_sigma) if any(c.fade != "constant" for c in timed) else 0.0

    def holding(items: list[Timed]) -> list[Timed]:
        return [item for item in items if holds(sigma, item.start_percent, item.end_percent, to_sigma)]

    return holding(controls), holding(prompts), place
