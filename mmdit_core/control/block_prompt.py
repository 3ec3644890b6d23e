"""A block prompt: in chosen blocks the image attends to another prompt's text stream.

The other prompt's stream is carried through all blocks up to the last chosen one, each time next to the image stream as
it then is. In a chosen block it is therefore what it would be if it had been the prompt from the start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .model_call import BlockCallCount, Hook, Key, ModelCall, text_length, with_rows
from .spec import BlockControl


def add_block_prompt(
    prompt: BlockControl,
    call: ModelCall,
    hooks: dict[Key, Hook],
    existing: Mapping[Key, Hook],
    count: BlockCallCount,
    skipped: Collection[int],
) -> None:
    """Add the hooks of a block prompt around those of other controls, on the positive chunks.

    Each chunk that carries the prompt through a block is one extra block call. Other controls act on the first prompt.
    Args: hooks, of the other controls, extended in place; existing, the model's own; skipped, blocks that are skipped
        on the positive branch, and so for this prompt too.
    """
    chunks = call.chunks_of(prompt)
    if not chunks:
        return
    stream = _Stream(prompt, call, chunks, count)
    for block in range(max(prompt.blocks) + 1):
        chosen = block in prompt.blocks
        # Cross-attention gives every block the text as it was encoded: nothing needs to be carried to the chosen ones.
        if block not in skipped and (chosen or not call.text.cross):
            key = call.key_of(block)
            hooks[key] = stream.hook(block, hooks.get(key, existing.get(key)), existing.get(key), chosen)


class _Stream:
    """The text stream of a block prompt in one model call: [rows of its chunks, L, D]."""

    def __init__(self, prompt: BlockControl, call: ModelCall, chunks: tuple[int, ...], count: BlockCallCount):
        assert call.first_args is not None
        self.call, self.chunks, self.count = call, chunks, count
        self.rows = call.rows(chunks)
        # Positions, masks and lengths are those of this text in every block.
        self.given = dict(call.first_args(prompt, self.rows))
        self.txt: Tensor = self.given.pop("txt").clone()  # some blocks write into their arguments
        self.renewed: Sequence[Tensor] = self.given.pop("renewed", ())
        self.tokens: int | None = None  # of the first prompt; single blocks of some models are not given it

    def hook(self, block: int, first: Hook | None, existing: Hook | None, chosen: bool) -> Hook:
        """The hook of one block. Args: first, the hook of the first prompt; existing, the model's own."""
        key = self.call.key_of(block)

        def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            self.call.called.add(key)
            single = args.get("txt") is None
            tokens = self.tokens = text_length(args, self.tokens)
            other = self.call.args_of(args, self.chunks)
            other.update((name, value) for name, value in self.given.items() if name in other)
            txt, length = self.txt, self.txt.shape[1]
            if self.renewed:
                last = self.renewed[block]
                txt = torch.cat((txt[:, : length - last.shape[1]], last), dim=1)
            if single:
                other["img"] = torch.cat((txt, other["img"][:, tokens:]), dim=1)
                img_slice = [length, other["img"].shape[1]]
                other["transformer_options"] = {**other["transformer_options"], "img_slice": img_slice}
            else:
                other["txt"] = txt
            # The main call comes first: some blocks write into their arguments, and ours are copies.
            out = extra["original_block"](args) if first is None else first(args, extra)
            second = extra["original_block"](other) if existing is None else existing(other, extra)
            self.count.extra += len(self.chunks)
            if not self.call.text.cross:
                self.txt = second["img"][:, :length] if single else second["txt"]
            if not chosen:
                return out
            if single:
                kept, new = out["img"][:, :tokens], second["img"][:, length:]
                return {**out, "img": torch.cat((kept, with_rows(out["img"][:, tokens:], self.rows, new)), dim=1)}
            return {**out, "img": with_rows(out["img"], self.rows, second["img"])}

        return hook
