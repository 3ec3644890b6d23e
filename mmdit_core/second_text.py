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

from .hooks import POSITIVE, Call, Hook, Key, Tally, chunk_args, chunk_rows


@dataclass(frozen=True)
class SecondText:
    """blocks, global numbers in which the image attends to it; txt [1, L, D], as the model's text embedder gives it."""

    blocks: tuple[int, ...]
    txt: Tensor


def add_second_texts(
    texts: Sequence[SecondText], call: Call, hooks: Mapping[Key, Hook], existing: Mapping[Key, Hook], tally: Tally
) -> dict[Key, Hook]:
    """Block hooks with second texts on the positive branch, around those that `compile_controls` made.

    Each chunk that carries a second stream through a block is one block call more in the tally. Controls act on the
    first text alone. Args: hooks, from compile_controls; existing, the host's.
    Returns: all hooks of the call.
    """
    chunks = tuple(index for index, branch in enumerate(call.branches) if branch == POSITIVE)
    made = dict(hooks)
    if not chunks:
        return made
    for text in texts:
        if not text.blocks:
            continue
        stream = _Stream(text.txt)
        for block in range(max(text.blocks) + 1):
            key = ("double_block", block) if block < call.double else ("single_block", block - call.double)
            inner = made.get(key, existing.get(key))
            made[key] = _hook(inner, existing.get(key), stream, block in text.blocks, chunks, call, tally)
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
    call: Call,
    tally: Tally,
) -> Hook:
    def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        joint = args.get("txt") is None
        beside = chunk_args(args, chunks, call)
        rows = beside["img"].shape[0]
        txt = stream.txt if stream.txt.shape[0] == rows else stream.txt.expand(rows, -1, -1).clone()
        if joint:
            first = args["transformer_options"]["img_slice"][0]
            beside["img"] = torch.cat((txt, beside["img"][:, first:]), dim=1)
            slices = [txt.shape[1], beside["img"].shape[1]]
            beside["transformer_options"] = {**beside["transformer_options"], "img_slice": slices}
        else:
            beside["txt"] = txt
        # First the main run: some of the host's blocks change their arguments in place, and ours are copies.
        out = extra["original_block"](args) if inner is None else inner(args, extra)
        second = extra["original_block"](beside) if previous is None else previous(beside, extra)
        tally.extra += len(chunks)
        length = txt.shape[1]
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
