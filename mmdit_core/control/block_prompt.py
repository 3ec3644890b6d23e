"""A block prompt: in chosen blocks the image attends to another prompt's text stream.

The other prompt's stream is carried through all blocks up to the last chosen one, each time next to the image stream as
it then is. In a chosen block it is therefore what it would be if it had been the prompt from the start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .model_call import BlockCallCount, ControlError, Hook, Key, ModelCall
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
    Raises: ControlError if the model masks its text where no hook reaches the mask, which is of the first prompt.
    """
    chunks = call.chunks_of(prompt)
    if not chunks:
        return
    if not call.partial_rows:
        raise ControlError(prompt, "context", "the sampler's prompt has a text mask, which does not fit another prompt")
    stream = _Stream(prompt, call, chunks, count)
    for block in range(max(prompt.blocks) + 1):
        if block not in skipped:
            key = call.key_of(block)
            hooks[key] = stream.hook(hooks.get(key, existing.get(key)), existing.get(key), block in prompt.blocks)


class _Stream:
    """The text stream of a block prompt in one model call: txt [1, L, D] and then [rows, L, D]."""

    def __init__(self, prompt: BlockControl, call: ModelCall, chunks: tuple[int, ...], count: BlockCallCount):
        assert prompt.context is not None and call.embed is not None
        self.prompt, self.call, self.chunks, self.count = prompt, call, chunks, count
        self.txt = call.embed(prompt.context).clone()  # some blocks write into their arguments

    def hook(self, first: Hook | None, existing: Hook | None, chosen: bool) -> Hook:
        """The hook of one block. Args: first, the hook of the first prompt; existing, the model's own."""
        call, chunks = self.call, self.chunks

        def hook(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            single = args.get("txt") is None
            tokens = args["transformer_options"]["img_slice"][0] if single else args["txt"].shape[1]
            other = call.args_of(args, chunks)
            rows = other["img"].shape[0]
            txt = self.txt if self.txt.shape[0] == rows else self.txt.expand(rows, -1, -1).clone()
            length = txt.shape[1]
            if length != tokens:
                _resize(other, tokens, length, self.prompt)
            if single:
                other["img"] = torch.cat((txt, other["img"][:, tokens:]), dim=1)
                img_slice = [length, other["img"].shape[1]]
                other["transformer_options"] = {**other["transformer_options"], "img_slice": img_slice}
            else:
                other["txt"] = txt
            # The main call comes first: some blocks write into their arguments, and ours are copies.
            out = extra["original_block"](args) if first is None else first(args, extra)
            second = extra["original_block"](other) if existing is None else existing(other, extra)
            self.count.extra += len(chunks)
            self.txt = second["img"][:, :length] if single else second["txt"]
            if not chosen:
                return out
            img = out["img"].clone()
            for chunk, part in zip(chunks, second["img"].chunk(len(chunks)), strict=True):
                if single:
                    img[call.rows_of(chunk), tokens:] = part[:, length:]
                else:
                    img[call.rows_of(chunk)] = part
            return {**out, "img": img}

        return hook


def _resize(args: dict[str, Any], tokens: int, length: int, prompt: BlockControl) -> None:
    """Fit a block's arguments to a text of another length."""
    if args.get("attn_mask") is not None:
        reason = f"it has {length} tokens, the sampler's prompt {tokens}, and the attention mask in use fits the latter"
        raise ControlError(prompt, "context", reason)
    if args.get("pe") is not None:
        if tokens < 2 <= length:
            raise ControlError(prompt, "context", f"it has {length} tokens, the sampler's prompt a single one")
        args["pe"] = resized_rotations(args["pe"], tokens, length)


def resized_rotations(pe: Tensor, tokens: int, length: int) -> Tensor:
    """Rotary positions of [text; image] for a text of another length.

    A text's positions advance evenly (all zero in FLUX.1 and Chroma, one by one in Qwen-Image). The rotation from the
    first position to the last therefore leads from the second to the one after the last.
    Args: pe [B, 1, tokens + image, D / 2, 2, 2], rotation matrices; tokens >= 2, or >= length; length >= 1.
    Returns: pe [B, 1, length + image, D / 2, 2, 2].
    """
    text = pe[:, :, :tokens].float()
    while text.shape[2] < length:
        advance = text[:, :, -1:] @ text[:, :, :1].transpose(-1, -2)
        text = torch.cat((text, advance @ text[:, :, 1:]), dim=2)
    return torch.cat((text[:, :, :length].to(pe.dtype), pe[:, :, tokens:]), dim=2)
