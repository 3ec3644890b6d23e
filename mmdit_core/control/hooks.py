"""Block controls carried out: compiled, once a model call, to block hooks and attention overrides.

The hooks go into `transformer_options["patches_replace"]["dit"]`, which our core and most MMDiT models call.

Order in a block: skip over disable over boost; boosts multiply. A hook or override that is already there is chained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..text.tokens import NoTokenMap, PhraseError, Positions
from .attention import attention_override, cross_attention_override
from .block_prompt import add_block_prompt
from .model_call import BlockCallCount, ControlError, Hook, Key, ModelCall, rows_of, text_length, with_rows
from .spec import POSITIVE, BlockControl


def compile_controls(
    controls: Sequence[BlockControl],
    call: ModelCall,
    existing: Mapping[Key, Hook] | None = None,
    count: BlockCallCount | None = None,
) -> dict[Key, Hook]:
    """Block hooks that carry out controls in one model call; {} if no control acts.

    Args: controls, as they act at the call's sigma (`BlockControl.at`); existing, hooks that are already there: the
        returned hooks call them in place of the block; count, to which the call's block calls are added.
    Raises: ControlError, by this function or a hook, for a phrase, part or prompt that does not fit the call.
    """
    count = BlockCallCount() if count is None else count
    count.total += len(call.blocks) * len(call.branches)
    active = [control for control in controls if not control.does_nothing]
    acting: dict[int, list[BlockControl]] = {}
    for block in call.blocks:
        if own := [control for control in active if control.action != "prompt" and block in control.blocks]:
            acting[block] = own
    residuals = _residual_terms(acting, call)
    for block in residuals:
        acting.setdefault(block, [])
    if call.double and any(block >= call.double for block in acting):
        acting.setdefault(call.double - 1, [])  # its hook notes the text's length, which few models give single blocks
    existing, made = existing or {}, _CallHooks(call, count)
    hooks: dict[Key, Hook] = {}
    for block, own in acting.items():
        key = call.key_of(block)
        hooks[key] = made.hook(key, own, residuals.get(block, ()), existing.get(key))
    skips = [control for control in active if control.action == "skip" and POSITIVE in control.branches]
    skipped = {block for control in skips for block in control.blocks}
    for control in active:
        if control.action == "prompt":
            add_block_prompt(control, call, hooks, existing, count, skipped)
    _require_phrases(active, call)
    return hooks


# A control, the chunks whose text it scales, and whether it scales only the tokens that a block is given again.
Term = tuple[BlockControl, frozenset[int], bool]


def _residual_terms(acting: Mapping[int, Sequence[BlockControl]], call: ModelCall) -> dict[int, tuple[Term, ...]]:
    """What scales the text stream before each block.

    With joint attention the blocks hand the scaled text on. With cross-attention every block is given the same text,
    so that the controls of a block are carried to all later ones here; the same holds for tokens that each block is
    given again. A skipped block scales nothing.
    """
    terms: dict[int, tuple[Term, ...]] = {}
    carried: tuple[Term, ...] = ()
    for block in call.blocks:
        skipped = _skipped(acting.get(block, ()), call)
        own = [control for control in acting.get(block, ()) if control.effect == "residual"]
        added = tuple((control, frozenset(call.chunks_of(control)) - skipped, False) for control in own)
        if before := (*carried, *added):
            terms[block] = before
        if call.text.cross:
            carried = before
        elif call.renewed:
            carried = (*carried, *((control, chunks, True) for control, chunks, _ in added))
    return terms


def _skipped(controls: Sequence[BlockControl], call: ModelCall) -> frozenset[int]:
    """The chunks for which a block is skipped."""
    return frozenset(chunk for control in controls if control.action == "skip" for chunk in call.chunks_of(control))


def _require_phrases(controls: Sequence[BlockControl], call: ModelCall) -> None:
    """Raises: ControlError for a phrase that no prompt of the call has, and for a part that one of them lacks."""
    for control in controls:
        if not control.is_selective:
            continue
        chunks = call.chunks_of(control)
        errors = [error for chunk in chunks if (error := phrase_error(control, _map(call, chunk))) is not None]
        enough = len(errors) < len(chunks) if control.phrases else not errors
        if errors and not (enough or call.phrases_known):
            raise ControlError(control, "phrases", str(errors[0])) from errors[0]


def phrase_error(control: BlockControl, tokens: Positions | None) -> PhraseError | None:
    """Why a control's phrases or part cannot be found in a prompt; None if they can."""
    try:
        if tokens is None:
            raise NoTokenMap
        tokens.positions(control.phrases, control.part)
    except PhraseError as error:
        return error
    return None


def _map(call: ModelCall, chunk: int) -> Positions | None:
    return call.maps[chunk] if chunk < len(call.maps) else None


class _Factors:
    """What some controls multiply the text tokens of some chunks by: one tensor for all blocks of a model call."""

    def __init__(self, terms: tuple[Term, ...], chunks: tuple[int, ...], call: ModelCall):
        self.terms, self.chunks, self.call = terms, chunks, call
        self.made: Tensor | None = None

    def __call__(self, tokens: int, like: Tensor) -> Tensor:
        """[rows of the chunks, tokens], in the dtype and on the device of `like`."""
        if self.made is None or self.made.shape[1] != tokens:
            by_chunk = {chunk: self._of_chunk(chunk, tokens) for chunk in self.chunks}
            table = [by_chunk[chunk] for chunk in self.call.chunk_of_row if chunk in by_chunk]
            # One transfer for the whole table, which need not wait for the device.
            self.made = torch.tensor(table, dtype=like.dtype).to(like.device, non_blocking=True)
        return self.made

    def _of_chunk(self, chunk: int, tokens: int) -> list[float]:
        """What each text token of a chunk is multiplied by."""
        factors = [1.0] * tokens
        for control, chunks, only_renewed in self.terms:
            if chunk in chunks:
                first = tokens - self.call.renewed if only_renewed else 0
                for position in _positions(control, self.call, chunk, tokens):
                    factors[position] *= control.factor if position >= first else 1.0
        return factors


def _positions(control: BlockControl, call: ModelCall, chunk: int, tokens: int) -> Sequence[int]:
    """The tokens of a chunk's text stream that a control acts on; none if its prompt lacks the phrase."""
    if not control.is_selective:
        return range(tokens)
    known = _map(call, chunk)
    if known is None or phrase_error(control, known) is not None:
        return ()
    before = tokens - call.lengths[chunk] if call.text.prompt_last and call.lengths else 0
    # A context that was cut after it was encoded has fewer tokens than its map.
    found = (position + before for position in known.positions(control.phrases, control.part))
    return [position for position in found if 0 <= position < tokens]


class _CallHooks:
    """The hooks of the blocks of one model call, and what they share.

    Attributes: tokens, of the text. Double blocks note them for single blocks of models that do not give them.
    """

    def __init__(self, call: ModelCall, count: BlockCallCount):
        self.call, self.count = call, count
        self.tokens: int | None = None
        self.factors: dict[Any, _Factors] = {}

    def hook(
        self, key: Key, controls: Sequence[BlockControl], residual: tuple[Term, ...], previous: Hook | None
    ) -> Hook:
        """The hook of one block. Args: residual, what scales its text; previous, the hook that is already there."""
        call, count = self.call, self.count
        skipped = _skipped(controls, call)
        running = tuple(chunk for chunk in call.chunks if chunk not in skipped)
        terms = {"residual": residual}
        for effect in ("attention", "value"):
            own = [control for control in controls if control.effect == effect]
            terms[effect] = tuple((control, frozenset(call.chunks_of(control)), False) for control in own)
        scaled = {
            effect: self.factors.setdefault((each, running), _Factors(each, running, call))
            for effect, each in terms.items()
            if each
        }

        def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            call.called.add(key)
            block = extra["original_block"] if previous is None else lambda given: previous(given, extra)
            streams = {name: args[name] for name in ("img", "txt") if args.get(name) is not None}
            self.tokens = text_length(args, self.tokens)
            if not running:
                count.skipped += len(skipped)
                return streams
            if not skipped:
                return block(self._with_factors(args, scaled))
            if call.text.whole_batch:  # the block runs on all rows, so nothing is saved
                before = {name: _rows_of(value, call.rows(skipped)) for name, value in streams.items()}
                out = block(args)
                return {**out, **{name: _put_back(out[name], before[name], call.rows(skipped)) for name in before}}
            count.skipped += len(skipped)
            given = self._with_factors(call.args_of(args, running), scaled)
            return _merged(block(given), args, call.rows(running))

        return hook

    def _with_factors(self, args: dict[str, Any], scaled: Mapping[str, _Factors]) -> dict[str, Any]:
        """A block's arguments with the text stream scaled and an attention override where needed."""
        if not scaled:
            return args
        options, layout = args["transformer_options"], self.call.text
        single = args.get("txt") is None  # a single block has one stream, [text; image]
        stream: Tensor = args["img"] if single else args["txt"]
        tokens = text_length(args, self.tokens)
        if tokens is None:
            raise ValueError("this model does not say where the text ends in its single blocks")
        by_effect = {effect: factors(tokens, stream) for effect, factors in scaled.items()}
        changed = dict(args)
        if "residual" in by_effect:
            txt = stream[:, :tokens] * by_effect.pop("residual")[:, :, None]
            changed["img" if single else "txt"] = torch.cat((txt, stream[:, tokens:]), dim=1) if single else txt
        if by_effect:
            previous = options.get("optimized_attention_override")
            # Cosmos-Predict2's image is [B, frames, rows, columns, channels].
            image = math.prod(args["img"].shape[1:-1]) - (tokens if single else 0)
            if layout.cross:
                override = cross_attention_override(tokens, image, previous=previous, **by_effect)
            else:
                override = attention_override(
                    tokens, tokens + image, image_first=layout.image_first, previous=previous, **by_effect
                )
            changed["transformer_options"] = {**options, "optimized_attention_override": override}
        return changed


def _rows_of(stream: Any, rows: Sequence[int]) -> Any:
    """Copies of some rows of a stream. Args: stream, a tensor or several, as of video and sound."""
    return tuple(rows_of(each, rows) for each in stream) if isinstance(stream, tuple) else rows_of(stream, rows)


def _put_back(stream: Any, kept: Any, rows: Sequence[int]) -> Any:
    """A stream with the kept values in some rows."""
    if isinstance(stream, tuple):
        return tuple(with_rows(each, rows, own) for each, own in zip(stream, kept, strict=True))
    return with_rows(stream, rows, kept)


def _merged(out: dict[str, Any], before: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """A block's output for the rows that it ran on, and its input for the others."""
    done = {name: with_rows(before[name], rows, value) for name, value in out.items() if value is not None}
    return {**out, **done}
