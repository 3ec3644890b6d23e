"""Fingerprints: values made of all that decides what a run computes; equal fingerprints (==) mean equal results."""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

# What other nodes may have changed on a MODEL. The weights are known by the model object and by patches_uuid, which is
# new after every change.
PATCHED = (
    "patches_uuid", "object_patches", "weight_wrapper_patches", "hook_patches", "model_options", "wrappers",
    "callbacks", "injections", "attachments", "additional_models",
)  # fmt: skip


def of_model(model, **instead: Any) -> Any:
    """The fingerprint of a MODEL. Args: instead, values to use for some of PATCHED."""
    return Same(model.model), fingerprint([instead.get(name, getattr(model, name, None)) for name in PATCHED])


def fingerprint(value: Any) -> Any:
    """Tensors count by their content, plain data by value, any other object by identity while it is alive."""
    if value is None or isinstance(value, str | int | float | bool | bytes | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, torch.Tensor):
        content = value.detach().reshape(-1).cpu().contiguous().view(torch.uint8)
        return value.dtype, tuple(value.shape), hashlib.sha256(content.numpy().data).hexdigest()
    if isinstance(value, Mapping):
        return type(value), tuple((fingerprint(key), fingerprint(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(fingerprint(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(fingerprint(getattr(value, field.name)) for field in fields(value))
    return Same(value)


class Same:
    """Equal for the same object alone. Identity by weak reference: an id() may be reused after the object is freed."""

    def __init__(self, value: Any):
        self._hash = id(value.__self__ if inspect.ismethod(value) else value)
        self.get: Callable[[], Any]
        try:
            # A bound method is a new object at each look-up; the object that it is bound to stays.
            self.get = weakref.WeakMethod(value) if inspect.ismethod(value) else weakref.ref(value)
        except TypeError:  # the few kinds of object without weak references are small
            self.get = lambda: value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        mine, theirs = self.get(), other.get()
        return mine is not None and (mine is theirs or (inspect.ismethod(mine) and mine == theirs))

    def __hash__(self) -> int:
        return self._hash
