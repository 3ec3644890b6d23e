"""A second text beside the first: in chosen blocks the image attends to another prompt's text stream.

The second stream is carried through all blocks up to the last chosen one, each time beside the image stream as it then
is, so that in a chosen block it is what it would be had it been there all along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hooks import BRANCHES, POSITIVE, BlockCallCount, Hook, Key, ModelCall, chunk_args, chunk_rows
from .spec import BlockControl


@dataclass(frozen=True)
class SecondText:
    """blocks, global numbers in which the image attends to it; txt [1, L, D], as the model's text embedder gives it."""

    blocks: tuple[int, ...]
    txt: Tensor


def add_second_texts(
    texts: Sequence[SecondText],
    call: ModelCall,
    hooks: Mapping[Key, Hook],
    existing: Mapping[Key, Hook],
    block_calls: BlockCallCount,
    controls: Sequence[BlockControl] = (),
) -> dict[Key, Hook]:
    """Block hooks with second texts on the positive branch, around those that `compile_controls` made.

    Each chunk that carries a second stream through a block is one block call more in the count. A block that is skipped
    on the positive branch is skipped for the second text too; other controls act on the first text alone.
    Args: hooks, from compile_controls, and the controls they were made from; existing, the host's.
    Returns: all hooks of the call.
    Raises: ValueError where the model masks its text and no hook can reach the mask; it would cover the second text.
    """
    chunks = tuple(index for index, branch in enumerate(call.branches) if branch == POSITIVE)
    made = dict(hooks)
    texts = [text for text in texts if text.blocks]
    if not chunks or not texts:
        return made
    if not call.partial_rows:
        raise ValueError(
            "BlockPrompt: the sampler's prompt comes with a text mask that does not fit another prompt. "
            "Encode one prompt at a time, so that none is padded"
        )
    skipped = {
        block
        for control in controls
        if control.action == "skip" and POSITIVE in BRANCHES[control.branch]
        for block in control.blocks
    }
    for text in texts:
        stream = _Stream(text.txt.clone())  # some of the host's blocks write into what they are given
        for block in range(max(text.blocks) + 1):
            if block in skipped:
                continue
            key = ("double_block", block) if block < call.double else ("single_block", block - call.double)
            inner = made.get(key, existing.get(key))
            made[key] = _hook(inner, existing.get(key), stream, block in text.blocks, chunks, call, block_calls)
    return made


class _Stream:
    """A second text on its way through the blocks of one model call."""

    def __init__(self, txt: Tensor):
        self.txt = txt


def _hook(
    inner: Hook | None,
    previous: Hook | None,
    stream: _Stream,
    chosen: bool,
    chunks: tuple[int, ...],
    call: ModelCall,
    block_calls: BlockCallCount,
) -> Hook:
    def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        joint = args.get("txt") is None
        first = args["transformer_options"]["img_slice"][0] if joint else args["txt"].shape[1]
        beside = chunk_args(args, chunks, call)
        rows = beside["img"].shape[0]
        txt = stream.txt if stream.txt.shape[0] == rows else stream.txt.expand(rows, -1, -1).clone()
        length = txt.shape[1]
        if length != first:
            _resize(beside, first, length)
        if joint:
            beside["img"] = torch.cat((txt, beside["img"][:, first:]), dim=1)
            slices = [length, beside["img"].shape[1]]
            beside["transformer_options"] = {**beside["transformer_options"], "img_slice": slices}
        else:
            beside["txt"] = txt
        # First the main run: some of the host's blocks change their arguments in place, and ours are copies.
        out = extra["original_block"](args) if inner is None else inner(args, extra)
        second = extra["original_block"](beside) if previous is None else previous(beside, extra)
        block_calls.extra += len(chunks)
        stream.txt = second["img"][:, :length] if joint else second["txt"]
        if not chosen:
            return out
        img = out["img"].clone()
        for chunk, part in zip(chunks, second["img"].chunk(len(chunks)), strict=True):
            if joint:
                img[chunk_rows(chunk, call), first:] = part[:, length:]
            else:
                img[chunk_rows(chunk, call)] = part
        return {**out, "img": img}

    return hook


def _resize(args: dict[str, Any], first: int, length: int) -> None:
    """A block's arguments for a text of another length than the one they were made for."""
    if args.get("attn_mask") is not None:
        raise ValueError(
            f"BlockPrompt: its prompt has {length} tokens, the sampler's {first}, and an attention mask made for the "
            "latter is in use. Encode both prompts to the same length, or take the mask away"
        )
    if args.get("pe") is not None:
        args["pe"] = resized_rotations(args["pe"], first, length)


def resized_rotations(pe: Tensor, first: int, length: int) -> Tensor:
    """Rotary positions of [text; image] for a text of another length.

    A text's positions advance evenly (all zero in FLUX.1 and Chroma, one by one in Qwen-Image), and a rotation matrix
    tells how far: the way from the first position to the last leads from the second to the one after the last.
    Args: pe [B, 1, first + image, D / 2, 2, 2], rotation matrices; length >= 1, the other text's tokens.
    Returns: pe [B, 1, length + image, D / 2, 2, 2].
    Raises: ValueError where one position is all there is to go by.
    """
    text = pe[:, :, :first].float()
    if first < 2 <= length:
        raise ValueError("BlockPrompt: the sampler's prompt has a single token. Encode both prompts to the same length")
    while text.shape[2] < length:
        way = text[:, :, -1:] @ text[:, :, :1].transpose(-1, -2)
        text = torch.cat((text, way @ text[:, :, 1:]), dim=2)
    return torch.cat((text[:, :, :length].to(pe.dtype), pe[:, :, first:]), dim=2)
