"""Block hooks for networks that call none: for one model call, the blocks' `forward` is replaced by one that does.

The replacement is an attribute of the module, which is put back when the call ends, also by an error. Another node's
replacement that is already there is the block that the hook runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from ...mmdit_core.control.model_call import Hook, Key
from .families import Family


@contextmanager
def hooked(network: nn.Module, family: Family, hooks: Mapping[Key, Hook]) -> Iterator[None]:
    """Call block hooks while the body runs. Args: hooks, by key; family, with the arguments of its blocks."""
    text = _TextLength()
    with ExitStack() as stack:
        if family.text_from:
            last = getattr(network, family.text_from)[-1]
            stack.enter_context(_replaced(last, text.noting))
        for kind, name in (("double_block", family.double), ("single_block", family.single)):
            for index, block in enumerate(getattr(network, name) if name else ()):
                if (kind, index) in hooks:
                    stack.enter_context(_replaced(block, partial(_calling, hooks[kind, index], family, text)))
        yield


class _TextLength:
    """The number of text tokens in the stream, once the network has made them; None if it says so itself."""

    tokens: int | None = None

    def noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that notes the length of what it gives out."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            self.tokens = out.shape[1]
            return out

        return forward


def _calling(hook: Hook, family: Family, text: _TextLength, original: Callable[..., Any]) -> Callable[..., Any]:
    """A forward of a block that calls the hook.

    The family names the arguments in order: another node's module in the block's place may not.
    """
    names = family.arguments
    own = {ours: name for name, ours in names.items()}

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names.values(), args, strict=False))
        in_order = tuple(given)
        given.update({names.get(name, name): value for name, value in kwargs.items()})
        given.setdefault("transformer_options", {})
        if text.tokens is not None:
            img_slice = [text.tokens, given["img"].shape[1]]
            given["transformer_options"] = {**given["transformer_options"], "img_slice": img_slice}

        def block(args: dict[str, Any]) -> dict[str, Any]:
            by_name = {own.get(ours, ours): value for ours, value in args.items() if ours not in in_order}
            out = original(*(args[ours] for ours in in_order), **by_name)
            return dict(zip(family.returns, out if len(family.returns) > 1 else (out,), strict=True))

        out = hook(given, {"original_block": block})
        return tuple(out[name] for name in family.returns) if len(family.returns) > 1 else out["img"]

    return forward


@contextmanager
def _replaced(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A module with another forward. Args: make, of the present one."""
    before = module.__dict__.get("forward")
    module.forward = make(module.forward)
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
