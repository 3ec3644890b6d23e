"""Checks of a text encoder's or a VAE's tensors before ComfyUI loads them.

ComfyUI reports missing tensors in its log alone and leaves what was in memory in their place; it loads a tensor of any
dtype, and infinities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ....mmdit_core.checkpoints.errors import TensorsError, are, listing
from ....mmdit_core.checkpoints.header import Header
from ....mmdit_core.checkpoints.load import DTYPES
from ....mmdit_core.checkpoints.quantised import is_quantisation

WHOLE = "Take a complete file, or connect ComfyUI's loaders of the text encoders and the VAE in its place"
CHUNK = 2**26  # elements that are looked at together


def check_tensors(
    header: Header,
    part: str,
    prefix: str,
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    optional: tuple[str, ...] = (),
) -> None:
    """Compare the tensors of a part with those of its model.

    Args: part, its name; prefix of its names in the file; tensors of the file and of the model, name -> tensor;
        optional, ends of names that a file may lack.
    Raises: TensorsError for missing tensors, wrong shapes and dtypes, and values that are not finite.
    """
    missing = [name for name in expected if name not in tensors and not name.endswith(optional)]
    if missing:
        found = f"{are(len(missing))} missing in its {part}: {listing(prefix + name for name in missing)}"
        raise TensorsError(header.source, found, WHOLE, names=missing)
    floats = set(DTYPES.values())
    for name, tensor in tensors.items():
        if name not in expected or is_quantisation(name):
            continue
        model = expected[name]
        if tensor.shape != model.shape:
            found = f"{prefix}{name} is {list(tensor.shape)}, expected {list(model.shape)}"
            raise TensorsError(header.source, f"wrong shape in its {part}: {found}", WHOLE, names=[name])
        if model.is_floating_point() and tensor.dtype not in floats:
            found = f"{prefix}{name} is {str(tensor.dtype).removeprefix('torch.')}"
            raise TensorsError(header.source, f"unsupported dtype in its {part}: {found}", WHOLE, names=[name])
    used = (name for name in tensors if name in expected or is_quantisation(name))
    check_finite(header, part, prefix, {name: tensors[name] for name in used if not name.endswith(optional)})


def check_finite(header: Header, part: str, prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises: TensorsError at the first tensor with a value that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all(map(is_finite, tensor.flatten().split(CHUNK))):
            found = f"{prefix}{name} of its {part} holds values that are not finite (NaN or infinity)"
            raise TensorsError(header.source, found, WHOLE, names=[name])


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are, also of fp8, for which torch has no test."""
    if not values.numel():
        return True
    if values.dtype == torch.float8_e4m3fn:  # which has NaN, and no infinity
        return bool((values.view(torch.uint8) & 0x7F).amax() < 0x7F)
    if values.dtype == torch.float8_e5m2:
        return bool((values.view(torch.uint8) & 0x7F).amax() < 0x7C)
    # In one pass without a tensor of truth values: NaN and infinities reach the smallest or the largest.
    return all(map(torch.isfinite, torch.aminmax(values)))
