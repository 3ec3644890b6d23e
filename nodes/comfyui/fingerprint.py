"""Whether two runs would compute the same: a value made of everything that decides them, compared with ==."""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

# What the nodes before ours may have done to a MODEL. The weights themselves are known by the model object and by
# patches_uuid, which is new after every change.
PATCHED = (
    "patches_uuid",
    "object_patches",
    "weight_wrapper_patches",
    "hook_patches",
    "model_options",
    "wrappers",
    "callbacks",
    "injections",
    "attachments",
    "additional_models",
)


def of_model(model, **instead: Any) -> Any:
    """Args: instead, for some of PATCHED, what is to be looked at in their place."""
    return _Same(model.model), fingerprint([instead.get(name, getattr(model, name, None)) for name in PATCHED])


def fingerprint(value: Any) -> Any:
    """Tensors by their content, plain data by value, any other object by being the very same one, while it lives."""
    if value is None or isinstance(value, str | int | float | bool | bytes | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, torch.Tensor):
        content = value.detach().reshape(-1).cpu().contiguous().view(torch.uint8)
        return value.dtype, tuple(value.shape), hashlib.sha256(content.numpy()).hexdigest()
    if isinstance(value, Mapping):
        return type(value), tuple((fingerprint(key), fingerprint(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(fingerprint(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(fingerprint(getattr(value, field.name)) for field in fields(value))
    return _Same(value)


class _Same:
    """Equal for one and the same object only. It does not keep the object; a new one at its address is another."""

    def __init__(self, value: Any):
        try:
            # A method is made anew each time it is looked up; what it is bound to stays.
            self.seen = weakref.WeakMethod(value) if inspect.ismethod(value) else weakref.ref(value)
        except TypeError:  # few kinds of object cannot be watched, and they are small
            self.seen = lambda: value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        mine, theirs = self.seen(), other.seen()
        if mine is None or theirs is None:
            return False
        return mine is theirs or (inspect.ismethod(mine) and mine == theirs)

    __hash__ = None  # type: ignore[assignment]
