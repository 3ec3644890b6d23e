"""Block controls carried out: compiled, once per model call, to the host's block hooks and attention override.

One mechanism serves our own model and the host's SD3, FLUX, Qwen-Image, Chroma and AuraFlow models, because all of them
call `transformer_options["patches_replace"]["dit"]`. In a call where no control is active nothing is installed.

Order: skip over disable over boost; boosts multiply. A hook or an override that is there already is chained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.adaln import CACHE
from ..text.tokens import NoTokenMap, TokenMap
from .spec import BlockControl

POSITIVE, NEGATIVE = 0, 1
BRANCHES = {"both": (POSITIVE, NEGATIVE), "positive": (POSITIVE,), "negative": (NEGATIVE,)}
NEVER = -1e4  # a logit that softmax turns into zero in every dtype; minus infinity times zero would be NaN
WIDER = 8  # channels that carry the logits of an attention boost; kernels want a multiple of 8

Key = tuple[str, int]
Hook = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


@dataclass
class BlockCallCount:
    """Block calls of a run: one for each block, model call and chunk (prompt) of the batch."""

    total: int = 0
    skipped: int = 0
    extra: int = 0  # carrying a second text beside the first

    def __str__(self) -> str:
        share = 100 * self.skipped / self.total if self.total else 0.0
        more = f"; {self.extra:,} more for a second prompt" if self.extra else ""
        return f"skipped {self.skipped:,} of {self.total:,} block calls, {share:.1f}%{more}"


@dataclass(frozen=True)
class ModelCall:
    """One model call, as controls see it.

    Fields: double and single, the model's blocks of each kind; branches, POSITIVE or NEGATIVE for each equal chunk of
    the batch, in order; batch, its rows; place, how far the sampling is, in [0, 1]; maps, the token map of each chunk,
    None where there is none; partial_rows, whether a block can be run on some of the rows alone; registers, tokens that
    the model puts before the prompt's.
    """

    double: int
    single: int
    branches: tuple[int, ...]
    batch: int
    place: float
    maps: tuple[TokenMap | None, ...] = ()
    partial_rows: bool = True
    registers: int = 0

    @property
    def rows_per_chunk(self) -> int:
        return self.batch // len(self.branches)

    def chunks_of(self, control: BlockControl) -> tuple[int, ...]:
        """The chunks that a control means. A phrase is in the positive prompt, so it means no other."""
        wanted = (POSITIVE,) if control.phrases else BRANCHES[control.branch]
        return tuple(index for index, branch in enumerate(self.branches) if branch in wanted)


@dataclass
class _BlockPlan:
    """What happens to one block in one call. Factors: for each chunk, a control and its strength now."""

    skipped: set[int] = field(default_factory=set)
    residual: list[tuple[int, BlockControl, float]] = field(default_factory=list)
    attention: list[tuple[int, BlockControl, float]] = field(default_factory=list)
    value: list[tuple[int, BlockControl, float]] = field(default_factory=list)


def compile_controls(
    controls: Sequence[BlockControl],
    call: ModelCall,
    existing: Mapping[Key, Hook] | None = None,
    block_calls: BlockCallCount | None = None,
) -> dict[Key, Hook]:
    """Block hooks for the controls that are active in this call; {} where none is.

    Args: controls whose window holds the call's place (`hooks` does not look at windows, see `control.share_at` for
        fades); existing, hooks that are there already: the ones returned call them in place of the block.
    Raises: ValueError for a control that needs a token map where a chunk has none, or names a phrase that is not in it.
    """
    existing = existing or {}
    chunks = len(call.branches)
    if block_calls is not None:
        block_calls.total += (call.double + call.single) * chunks
    plans: dict[int, _BlockPlan] = {}
    for control in controls:
        if control.does_nothing:
            continue
        for block in control.blocks:
            if block < call.double + call.single:
                _add(plans.setdefault(block, _BlockPlan()), control, call)
    seen_text = _TextLength()
    hooks: dict[Key, Hook] = {}
    for block, plan in sorted(plans.items()):
        key = ("double_block", block) if block < call.double else ("single_block", block - call.double)
        hooks[key] = _hook(plan, call, existing.get(key), block_calls, seen_text)
    if call.single and any(key[0] == "single_block" for key in hooks):
        # A single block's hook must know where the text ends. Most models say so; the last double block always knows.
        key = ("double_block", call.double - 1)
        hooks.setdefault(key, _hook(_BlockPlan(), call, existing.get(key), block_calls, seen_text))
    return hooks


def _add(plan: _BlockPlan, control: BlockControl, call: ModelCall) -> None:
    chunks = call.chunks_of(control)
    if control.action == "skip":
        plan.skipped.update(chunks)
        return
    if control.action == "disable":
        target, strength = (plan.residual if control.scope == "onward" else plan.attention), 0.0
    else:
        target = getattr(plan, control.mode)
        strength = 1.0 + control.share_at(call.place) * (control.strength - 1.0)
    if strength != 1.0:
        target.extend((chunk, control, strength) for chunk in chunks)


class _TextLength:
    """Text tokens of this call, noted by double blocks for the single blocks of models that do not say it."""

    tokens: int | None = None


def _hook(
    plan: _BlockPlan, call: ModelCall, previous: Hook | None, block_calls: BlockCallCount | None, seen: _TextLength
) -> Hook:
    everything = set(range(len(call.branches)))
    running = tuple(sorted(everything - plan.skipped))

    def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        block = extra["original_block"] if previous is None else lambda given: previous(given, extra)
        joint = args.get("txt") is None
        if not joint:
            seen.tokens = args["txt"].shape[1]
        if not running:
            _count(block_calls, len(everything))
            return {"img": args["img"]} if joint else {"img": args["img"], "txt": args["txt"]}
        changed = _with_factors(args, plan, call, seen)
        if not plan.skipped:
            return block(changed)
        if not call.partial_rows:
            return _run_all_restore_some(block, args, changed, plan.skipped, call)
        _count(block_calls, len(plan.skipped))
        return _run_some(block, args, changed, running, call)

    return hook


def _count(block_calls: BlockCallCount | None, chunks: int) -> None:
    if block_calls is not None:
        block_calls.skipped += chunks


def chunk_rows(chunk: int, call: ModelCall) -> slice:
    """The rows of the batch that are one chunk."""
    size = call.rows_per_chunk
    return slice(chunk * size, (chunk + 1) * size)


def chunk_args(args: dict[str, Any], chunks: Sequence[int], call: ModelCall) -> dict[str, Any]:
    """A block's arguments for some chunks of the batch alone: copies of their rows, options that name them."""

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == call.batch:
            pieces = [value[chunk_rows(chunk, call)] for chunk in chunks]
            # A copy, always: some of the host's blocks change what they are given in place.
            return torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()
        if isinstance(value, tuple | list):
            items = [pick(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if is_dataclass(value) and not isinstance(value, type):  # the host's modulations, in Chroma
            return replace(value, **{f.name: pick(getattr(value, f.name)) for f in fields(value)})
        return value

    some = {name: value if name == "transformer_options" else pick(value) for name, value in args.items()}
    options = dict(args["transformer_options"])
    cache = options.get(CACHE)
    if cache is not None and isinstance(args.get("vec"), Tensor):
        rows = [row for chunk in chunks for row in range(call.batch)[chunk_rows(chunk, call)]]
        some["vec"] = cache.part(args["vec"], rows)
    for name in ("cond_or_uncond", "uuids"):
        if len(options.get(name) or ()) == len(call.branches):
            options[name] = [options[name][chunk] for chunk in chunks]
    return {**some, "transformer_options": options}


def _run_some(block, args: dict[str, Any], changed: dict[str, Any], running: tuple[int, ...], call: ModelCall):
    """Run a block on some chunks of the batch; the other rows pass through as they came."""
    out = block(chunk_args(changed, running, call))
    merged: dict[str, Tensor | None] = {}
    for name, value in out.items():
        if value is None:
            merged[name] = None
            continue
        done = dict(zip(running, value.chunk(len(running)), strict=True))
        merged[name] = torch.cat(
            [done.get(chunk, args[name][chunk_rows(chunk, call)]) for chunk in range(len(call.branches))]
        )
    return merged


def _run_all_restore_some(block, args: dict[str, Any], changed: dict[str, Any], skipped: set[int], call: ModelCall):
    """For blocks that cannot run on part of the rows: the same result, nothing saved."""
    kept = {name: args[name].clone() for name in ("img", "txt") if args.get(name) is not None}
    out = dict(block(changed))
    for name, before in kept.items():
        if out.get(name) is not None:
            out[name] = out[name].clone()
            for chunk in skipped:
                out[name][chunk_rows(chunk, call)] = before[chunk_rows(chunk, call)]
    return out


def _with_factors(args: dict[str, Any], plan: _BlockPlan, call: ModelCall, seen: _TextLength) -> dict[str, Any]:
    """The block's arguments with its text scaled, and with an attention override where one is needed."""
    if not (plan.residual or plan.attention or plan.value):
        return args
    options = args["transformer_options"]
    joint = args.get("txt") is None
    name = "img" if joint else "txt"
    stream: Tensor = args[name]
    tokens = stream.shape[1]
    if joint:
        said = options.get("img_slice")
        known = said[0] if said is not None else seen.tokens
        if known is None:
            raise ValueError("BlockControl: this model does not say where the text ends in its single blocks")
        tokens = known
    changed = dict(args)
    if plan.residual:
        factors = _factors(plan.residual, call, tokens, stream)
        scaled = stream[:, :tokens] * factors[:, :, None]
        changed[name] = torch.cat((scaled, stream[:, tokens:]), dim=1) if joint else scaled
    if plan.attention or plan.value:
        total = stream.shape[1] if joint else tokens + args["img"].shape[1]
        running = tuple(chunk for chunk in range(len(call.branches)) if chunk not in plan.skipped)
        partial = call.partial_rows and len(running) < len(call.branches)

        def factors_of(entries) -> Tensor | None:
            if not entries:
                return None
            made = _factors(entries, call, tokens, stream)
            return torch.cat([made[chunk_rows(chunk, call)] for chunk in running]) if partial else made

        override = attention_override(
            tokens,
            total,
            attention=factors_of(plan.attention),
            value=factors_of(plan.value),
            previous=options.get("optimized_attention_override"),
        )
        changed["transformer_options"] = {**options, "optimized_attention_override": override}
    return changed


def _factors(entries: list[tuple[int, BlockControl, float]], call: ModelCall, tokens: int, like: Tensor) -> Tensor:
    """[B, tokens] in `like`'s dtype and device: what each text token of each row is multiplied by."""
    table = [[1.0] * tokens for _ in call.branches]
    for chunk, control, strength in entries:
        for place in _positions(control, call.maps[chunk] if chunk < len(call.maps) else None, call.registers, tokens):
            table[chunk][place] *= strength
    # One transfer for the whole table, from memory that the device may read while we go on.
    made = torch.tensor(table, dtype=like.dtype).to(like.device, non_blocking=True)
    return made.repeat_interleave(call.rows_per_chunk, dim=0)


def _positions(control: BlockControl, tokens_of: TokenMap | None, registers: int, tokens: int) -> Sequence[int]:
    """Which tokens of the text stream a control means."""
    if not control.phrases and control.part == "all":
        return range(tokens)
    if tokens_of is None:
        raise NoTokenMap
    places = (place + registers for place in tokens_of.positions(control.phrases, control.part))
    return [place for place in places if place < tokens]


def attention_override(
    text: int,
    total: int,
    *,
    attention: Tensor | None = None,
    value: Tensor | None = None,
    previous: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """An attention in which image queries weigh text keys, or read text values, by factors; text queries do not.

    No mask is made: the call is split by queries (the same work), values are scaled, and keys get a few channels more
    that carry the logarithm of the factor.
    Args: text and total, tokens of the joint sequence [text; image]; other sequences pass through; attention and
        value [B, text], factors >= 0; previous, an override that is there already.
    Returns: a function for `transformer_options["optimized_attention_override"]`.
    """

    def override(func, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        run = func if previous is None else lambda *a, **kw: previous(func, *a, **kw)
        split = kwargs.get("skip_reshape", False)
        length = q.shape[2] if split else q.shape[1]
        if length != total or (k.shape[2] if split else k.shape[1]) != total:
            return run(q, k, v, heads, *args, **kwargs)  # such as SD3.5 Medium's attention over the image alone
        if not split:
            # The host's SD3 gives queries and keys as [B, L, heads * d], values as [B, L, heads, d].
            q, k, v = (s.reshape(s.shape[0], s.shape[1], heads, -1).transpose(1, 2) for s in (q, k, v))
        mask = args[0] if args else kwargs.pop("mask", None)
        as_heads = kwargs.pop("skip_output_reshape", False)
        kwargs.update(skip_reshape=True, skip_output_reshape=True)
        width = q.shape[-1]
        of_text = run(q[:, :, :text], k, v, heads, mask=_query_rows(mask, slice(0, text)), **kwargs)
        queries, keys, values = q[:, :, text:], k, v
        if value is not None:
            values = torch.cat((v[:, :, :text] * value[:, None, :, None].to(v.dtype), v[:, :, text:]), dim=2)
        if attention is not None:
            queries, keys, values = _with_logits(queries, keys, values, attention)
            kwargs["scale"] = 1.0 / math.sqrt(width)
            # The widened keys span more than a quantised kernel can tell apart; the host's take another one then.
            kwargs["low_precision_attention"] = False
        of_img = run(queries, keys, values, heads, mask=_query_rows(mask, slice(text, total)), **kwargs)[..., :width]
        out = torch.cat((of_text, of_img), dim=2)
        return out if as_heads else out.transpose(1, 2).flatten(2)

    return override


def _with_logits(q: Tensor, k: Tensor, v: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen each head so that q . k / sqrt(d) gains log(factor) at the text keys; v gains channels of zeros."""
    extra_q = q.new_zeros(*q.shape[:-1], WIDER)
    extra_q[..., 0] = 1.0
    logits = torch.where(factors > 0, factors.float().clamp_min(1e-30).log() * math.sqrt(q.shape[-1]), NEVER)
    extra_k = k.new_zeros(*k.shape[:-1], WIDER)
    extra_k[:, :, : factors.shape[1], 0] = logits[:, None, :].to(k.dtype)
    extra_v = v.new_zeros(*v.shape[:-1], WIDER)
    return torch.cat((q, extra_q), -1), torch.cat((k, extra_k), -1), torch.cat((v, extra_v), -1)


def _query_rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The part of an attention mask [..., Lq, Lk] for some queries; a mask for all queries alike stays."""
    if mask is None or mask.ndim < 2 or mask.shape[-2] == 1:
        return mask
    return mask[..., rows, :]
