"""Block hooks for networks that call none: for one model call, the blocks' `forward` is replaced by one that does.

The replacement is an attribute of the module, which is put back when the call ends, also by an error. Another node's
replacement that is already there is the block that the hook runs.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import nn

from ...mmdit_core.control.model_call import Hook, Key
from .block_arguments import BEFORE_TEXT, OPTIONS
from .families import Family
from .modulation import replaced

Forward = Callable[..., Any]


@contextmanager
def hooked(network: nn.Module, family: Family, hooks: Mapping[Key, Hook]) -> Iterator[None]:
    """Call block hooks while the body runs. Args: hooks, by key; family, with the arguments of its blocks."""
    text, image = _Length(), _Length()
    single = family.single_arguments or family.arguments
    with ExitStack() as stack:
        for noted, name in ((text, family.text_from), (image, family.image_from)):
            if name:
                stack.enter_context(replaced(_module(network, name), noted.noting))
        for kind, name, names in (
            ("double_block", family.double, family.arguments),
            ("single_block", family.single, single),
        ):
            for index, block in enumerate(getattr(network, name) if name else ()):
                if (kind, index) in hooks:
                    hook = hooks[kind, index]
                    stack.enter_context(replaced(block, partial(_calling, hook, family, names, text, image)))
        yield


def _module(network: nn.Module, name: str) -> nn.Module:
    """A module by name; of a list the last one."""
    found = getattr(network, name)
    return found[-1] if isinstance(found, nn.ModuleList | nn.Sequential) else found


class _Length:
    """The number of tokens that a module gave out; 0 if it did not run, as without a text."""

    tokens: int = 0

    def noting(self, original: Forward) -> Forward:
        """A forward that notes the length of what it gives out."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            self.tokens = out.shape[1]
            return out

        return forward


def _calling(
    hook: Hook, family: Family, names: Mapping[str, str], text: _Length, image: _Length, original: Forward
) -> Forward:
    """A forward of a block that calls the hook.

    The family names the arguments in order: another node's module in the block's place may not. A stream [image; text]
    is given to the hook as two, and tokens of an image before the text's as an argument of their own.
    """
    own = {ours: name for name, ours in names.items()}

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names.values(), args, strict=False))
        in_order = tuple(given)
        given.update({names.get(name, name): value for name, value in kwargs.items()})
        by_name = tuple(name for name in given if name not in in_order)
        given.setdefault(OPTIONS, {})
        one = given.get("txt") is None
        if one and family.text_from:
            img_slice = [text.tokens, given["img"].shape[1]]
            given[OPTIONS] = {**given[OPTIONS], "img_slice": img_slice}
        split = one and bool(family.image_from)
        if split:
            stream = given["img"]
            given["img"], given["txt"] = stream[:, : image.tokens], stream[:, image.tokens :]
        before = given.get(BEFORE_TEXT) or 0
        if before and text.tokens:  # Wan 2.2 is given a number even where it reads no tokens of an image
            before = given["txt"].shape[1] - text.tokens
        if before:
            given["txt_before"], given["txt"] = given["txt"][:, :before], given["txt"][:, before:]

        def block(args: dict[str, Any]) -> dict[str, Any]:
            size = args["img"].shape[1]
            if split:
                args = {**args, "img": torch.cat((args["img"], args["txt"]), dim=1), "txt": None}
            if before:
                args = {**args, "txt": torch.cat((args["txt_before"], args["txt"]), dim=1)}
            named = {own.get(ours, ours): args[ours] for ours in args if ours in by_name}
            if OPTIONS in own and OPTIONS not in in_order:
                named[OPTIONS] = args[OPTIONS]
            with _attending(family.attention_in, args[OPTIONS]):
                out = original(*(args[ours] for ours in in_order), **named)
            if split:
                return {"img": out[:, :size], "txt": out[:, size:]}
            return dict(zip(family.returns, out, strict=True)) if isinstance(out, tuple) else {"img": out}

        out = hook(given, {"original_block": block})
        if split:
            return torch.cat((out["img"], out["txt"]), dim=1)
        return out["img"] if one or len(family.returns) == 1 else tuple(out[name] for name in family.returns)

    return forward


class _Attention:
    """An attention function that is given the options of the block call of the thread it runs in.

    ComfyUI runs a model on several devices in a thread each, which share the functions of a module.
    """

    options: ContextVar[Mapping[str, Any] | None] = ContextVar("options", default=None)
    users: ClassVar[Counter[str]] = Counter()  # block calls that are running now, by module of code
    lock = Lock()

    def __init__(self, original: Forward):
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        options = self.options.get()
        return self.original(*args, **(kwargs if options is None else {"transformer_options": options, **kwargs}))


@contextmanager
def _attending(code: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Give a call's options to an attention that is not given them. Args: code, its module; "" for none."""
    if not code:
        yield
        return
    module: Any = importlib.import_module(code)
    with _Attention.lock:
        if not _Attention.users[code]:
            module.optimized_attention = _Attention(module.optimized_attention)
        _Attention.users[code] += 1
    before = _Attention.options.set(options)
    try:
        yield
    finally:
        _Attention.options.reset(before)
        with _Attention.lock:
            _Attention.users[code] -= 1
            if not _Attention.users[code] and isinstance(module.optimized_attention, _Attention):
                module.optimized_attention = module.optimized_attention.original
