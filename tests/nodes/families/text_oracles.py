"""Oracles of what enters a block: text that is multiplied in front of a plain block, and text that must not matter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.nodes.families import oracles
from tests.nodes.families.oracles import Bench, difference

ACTS = 1e-4  # a difference that is more than rounding
PHRASE = ("red circle",)
Tokens = slice | list[int]


def scaled_text(bench: Bench, factor: float = 1.7) -> float:
    """A residual boost multiplies the text that enters the block, and what follows is built on that; each block."""
    found, acted, plain = [], [], bench.run()
    for number, block in enumerate(bench.blocks):
        ours = bench.run(bench.control("boost", (number,), factor))
        acted.append(difference(ours, plain))
        # Cross-attention gives each block the text as it was encoded, HiDream-I1 a part of it.
        scaled = bench.blocks[number:] if bench.family.text.cross else [block]
        later = bench.blocks[number + 1 :] if bench.family.renews else []
        last = bench.tiny.extra(1, 7)["conditioning_llama3"].shape[-2] if later else 0
        with multiplied(bench, scaled, factor, slice(None)), multiplied(bench, later, factor, slice(-last, None)):
            found.append(difference(ours, bench.run()))
    # PixelDiT's first and last blocks read the normed text alone, whose scale is gone.
    assert max(acted) > ACTS, "the boost did nothing"
    return max(found)


def boosted_phrase(bench: Bench, factor: float = 2.5) -> float:
    """A phrase in all modes: residual as its tokens multiplied, attention and value written out."""
    prompt, tokens = bench.with_map(bench.prompt(1)), bench.phrase
    bench.attach(bench.model, [bench.control("boost", (0,), factor, phrases=PHRASE)])  # refused by some models
    ours = bench.run(bench.control("boost", (0,), factor, phrases=PHRASE), positive=prompt, cfg=1.0)
    scaled, later = bench.blocks if bench.family.text.cross else bench.blocks[:1], []
    if bench.family.renews:
        later, renewed = bench.blocks[1:], [token for token in tokens if token >= max(bench.tiny.more_texts)]
    with multiplied(bench, scaled, factor, tokens), multiplied(bench, later, factor, renewed if later else []):
        residual = difference(ours, bench.run(positive=prompt, cfg=1.0))
    return max(residual, oracles.weighed_attention(bench, texts=(PHRASE,)))


def boosted_whole(bench: Bench, mode: str) -> float:
    """Attention or value boosts of the whole text are attention written out with dense factors."""
    bench.attach(bench.model, [bench.control("boost", bench.numbers, 2.5, mode)])  # refused by some models
    return oracles.weighed_attention(bench, (mode,), ((),))


def without_text(bench: Bench, oracle: oracles.Oracle) -> float:
    """Two prompts give one image without the text, and two with it."""
    assert difference(bench.run(), bench.run(positive=bench.prompt(2))) > ACTS, "the prompt does nothing"
    return oracle(bench)


@contextmanager
def multiplied(bench: Bench, blocks: Sequence[torch.nn.Module], factor: float, tokens: Tokens) -> Iterator[None]:
    """Some of the text tokens that enter these blocks are multiplied."""
    for block in blocks:
        block.forward = partial(_with_scaled_text, bench, block, factor, tokens)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _with_scaled_text(bench: Bench, block: Any, factor: float, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
    forward = type(block).forward
    if type(block).__name__ == "JointBlock":  # ComfyUI's SD3: (text, image, ...)
        return forward(block, _scaled(args[0], factor, tokens), *args[1:], **kwargs)
    bound = inspect.signature(forward).bind(block, *args, **kwargs)
    names = [name for name in oracles.TXT if bound.arguments.get(name) is not None]
    if names:
        txt, before = bound.arguments[names[0]], 0
        if "context_img_len" in bound.arguments:  # Wan: tokens of an image come first, if it reads any
            before = txt.shape[1] - bench.tiny.text_tokens(7)
        bound.arguments[names[0]] = torch.cat((txt[:, :before], _scaled(txt[:, before:], factor, tokens)), dim=1)
    else:  # one stream
        text, name = bench.tiny.text_tokens(7), list(bound.arguments)[1]
        stream = bound.arguments[name]
        start = stream.shape[1] - text if bench.tiny.image_first else 0
        before, txt, after = stream.split((start, text, stream.shape[1] - start - text), dim=1)
        bound.arguments[name] = torch.cat((before, _scaled(txt, factor, tokens), after), dim=1)
    return forward(*bound.args, **bound.kwargs)


def _scaled(txt: Tensor, factor: float, tokens: Tokens) -> Tensor:
    txt = txt.clone()
    txt[:, tokens] *= factor
    return txt
