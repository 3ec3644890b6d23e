"""Block controls carried out: compiled, once a model call, to block hooks and attention overrides.

The hooks go into `transformer_options["patches_replace"]["dit"]`, which our core and most MMDiT models call.

Order in a block: skip over disable over boost; boosts multiply. A hook or override that is already there is chained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..text.tokens import NoTokenMap, PhraseError
from .attention import attention_override
from .block_prompt import add_block_prompt
from .model_call import BlockCallCount, ControlError, Hook, Key, ModelCall
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
    count.total += (call.double + call.single) * len(call.branches)
    active = [control for control in controls if not control.does_nothing]
    acting: dict[int, list[BlockControl]] = {}
    for block in range(call.double + call.single):
        if own := [control for control in active if control.action != "prompt" and block in control.blocks]:
            acting[block] = own
    if call.single and any(block >= call.double for block in acting):
        acting.setdefault(call.double - 1, [])  # its hook notes the text's length, which few models give single blocks
    existing, made = existing or {}, _CallHooks(call, count)
    hooks: dict[Key, Hook] = {}
    for block, own in acting.items():
        key = call.key_of(block)
        hooks[key] = made.hook(own, existing.get(key))
    skips = [control for control in active if control.action == "skip" and POSITIVE in control.branches]
    skipped = {block for control in skips for block in control.blocks}
    for control in active:
        if control.action == "prompt":
            add_block_prompt(control, call, hooks, existing, count, skipped)
    return hooks


class _Factors:
    """What some controls multiply the text tokens of some chunks by: one tensor for all blocks of a model call."""

    def __init__(self, controls: tuple[BlockControl, ...], chunks: tuple[int, ...], call: ModelCall):
        self.controls, self.chunks, self.call = controls, chunks, call
        self.made: Tensor | None = None

    def __call__(self, tokens: int, like: Tensor) -> Tensor:
        """[rows of the chunks, tokens], in the dtype and on the device of `like`."""
        if self.made is None or self.made.shape[1] != tokens:
            table = [self._of_chunk(chunk, tokens) for chunk in self.chunks]
            # One transfer for the whole table, which need not wait for the device.
            made = torch.tensor(table, dtype=like.dtype).to(like.device, non_blocking=True)
            self.made = made.repeat_interleave(self.call.batch // len(self.call.branches), dim=0)
        return self.made

    def _of_chunk(self, chunk: int, tokens: int) -> list[float]:
        """What each text token of a chunk is multiplied by."""
        factors = [1.0] * tokens
        for control in self.controls:
            if chunk in self.call.chunks_of(control):
                for position in _positions(control, self.call, chunk, tokens):
                    factors[position] *= control.factor
        return factors


def _positions(control: BlockControl, call: ModelCall, chunk: int, tokens: int) -> Sequence[int]:
    """The tokens of a chunk's text stream that a control acts on."""
    if not control.phrases and control.part == "all":
        return range(tokens)
    tokens_of = call.maps[chunk] if chunk < len(call.maps) else None
    try:
        if tokens_of is None:
            raise NoTokenMap
        found = tokens_of.positions(control.phrases, control.part)
    except PhraseError as error:
        raise ControlError(control, "phrases", str(error)) from error
    # A context that was cut after it was encoded has fewer tokens than its map.
    return [position + call.registers for position in found if position + call.registers < tokens]


class _CallHooks:
    """The hooks of the blocks of one model call, and what they share.

    Attributes: tokens, of the text. Double blocks note them for single blocks of models that do not give them.
    """

    def __init__(self, call: ModelCall, count: BlockCallCount):
        self.call, self.count = call, count
        self.tokens: int | None = None
        self.factors: dict[Any, _Factors] = {}

    def hook(self, controls: Sequence[BlockControl], previous: Hook | None) -> Hook:
        """The hook of one block. Args: previous, the hook that is already there."""
        call, count = self.call, self.count
        skipped = {chunk for control in controls if control.action == "skip" for chunk in call.chunks_of(control)}
        running = tuple(chunk for chunk in call.chunks if chunk not in skipped)
        chunks = running if call.partial_rows else call.chunks
        scaled: dict[str, _Factors] = {}
        for effect in ("residual", "attention", "value"):
            if own := tuple(control for control in controls if control.effect == effect):
                scaled[effect] = self.factors.setdefault((own, chunks), _Factors(own, chunks, call))

        def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            block = extra["original_block"] if previous is None else lambda given: previous(given, extra)
            streams = {name: args[name] for name in ("img", "txt") if args.get(name) is not None}
            if "txt" in streams:
                self.tokens = streams["txt"].shape[1]
            if not running:
                count.skipped += len(skipped)
                return streams
            if not skipped:
                return block(self._with_factors(args, scaled))
            if call.partial_rows:
                count.skipped += len(skipped)
                given, before = call.args_of(args, running), args
            else:  # the block must run on all rows, and may write into them: nothing is saved
                given, before = args, {**args, **{name: stream.clone() for name, stream in streams.items()}}
            return _merged(block(self._with_factors(given, scaled)), before, chunks, running, call)

        return hook

    def _with_factors(self, args: dict[str, Any], scaled: Mapping[str, _Factors]) -> dict[str, Any]:
        """A block's arguments with the text stream scaled and an attention override where needed."""
        if not scaled:
            return args
        options = args["transformer_options"]
        single = args.get("txt") is None  # a single block has one stream, [text; image]
        stream: Tensor = args["img"] if single else args["txt"]
        tokens: int | None = stream.shape[1]
        if single:
            tokens = options["img_slice"][0] if options.get("img_slice") is not None else self.tokens
        if tokens is None:
            raise ValueError("this model does not say where the text ends in its single blocks")
        by_effect = {effect: factors(tokens, stream) for effect, factors in scaled.items()}
        changed = dict(args)
        if "residual" in by_effect:
            txt = stream[:, :tokens] * by_effect.pop("residual")[:, :, None]
            changed["img" if single else "txt"] = torch.cat((txt, stream[:, tokens:]), dim=1) if single else txt
        if by_effect:
            total = stream.shape[1] if single else tokens + args["img"].shape[1]
            previous = options.get("optimized_attention_override")
            override = attention_override(tokens, total, previous=previous, **by_effect)
            changed["transformer_options"] = {**options, "optimized_attention_override": override}
        return changed


def _merged(
    out: dict[str, Any], before: dict[str, Any], chunks: Sequence[int], running: Sequence[int], call: ModelCall
) -> dict[str, Any]:
    """A block's output for the running chunks, and its input for the others. Args: chunks, that the block ran on."""
    merged = dict(out)
    for name, value in out.items():
        if value is not None:
            done = dict(zip(chunks, value.chunk(len(chunks)), strict=True))
            rows = [done[chunk] if chunk in running else before[name][call.rows_of(chunk)] for chunk in call.chunks]
            merged[name] = torch.cat(rows)
    return merged
