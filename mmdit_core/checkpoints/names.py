"""What other programs put before and between the names of a model's tensors."""

from __future__ import annotations

import re

# ComfyUI and Stability AI write model.diffusion_model., Cosmos net., trainers module. and transformer., torch.compile
# _orig_mod.; merges and conversions nest them.
_WRAPPERS = re.compile(r"(?:(?:model|diffusion_model|net|module|_orig_mod|transformer)\.)*")
# torch.compile and DistributedDataParallel name a wrapped layer inside a model too.
_INSIDE = re.compile(r"(^|\.)(?:(?:_orig_mod|module)\.)+")


def prefix_of(name: str) -> str:
    """The part of a tensor's name that belongs to no model: 'model.diffusion_model.' or ''."""
    match = _WRAPPERS.match(name)
    return match[0] if match else ""


def bare(name: str) -> str:
    """A tensor's name without such parts, at its beginning and inside."""
    return without_wrapped(name[len(prefix_of(name)) :])


def without_wrapped(name: str) -> str:
    """A tensor's name without the parts of wrapped layers inside it."""
    return _INSIDE.sub(r"\1", name) if "_orig_mod." in name or "module." in name else name
