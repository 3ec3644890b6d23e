"""Latents as tokens: patches of pixels, and their positions, for models that take positions by rotation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

METHODS = ("offset", "index")  # of placing reference latents, of FLUX.1


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, L, C * patch_size ** 2], row by row; odd sizes are padded circularly."""
    p = patch_size
    x = F.pad(x, (0, -x.shape[-1] % p, 0, -x.shape[-2] % p), mode="circular")
    grid = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, rows, p, columns, p]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """[B, L, C * patch_size ** 2] -> [B, C, height, width]; the padding of odd sizes is cut off."""
    p = patch_size
    rows, columns = -(-height // p), -(-width // p)  # rounded up
    grid = tokens.unflatten(2, (-1, p, p)).unflatten(1, (rows, columns))  # [B, rows, columns, C, p, p]
    latent = grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return latent[:, :, :height, :width]


def positions(x: Tensor, patch_size: int, index: int = 0, top: int = 0, left: int = 0) -> Tensor:
    """[L, 3] float32: index, row and column of each patch of a latent [B, C, H, W].

    Args: top and left, of the latent's first pixel, in pixels of latents.
    """
    p = patch_size
    rows = torch.arange(-(-x.shape[-2] // p), device=x.device) + (top + p // 2) // p
    columns = torch.arange(-(-x.shape[-1] // p), device=x.device) + (left + p // 2) // p
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((torch.full_like(grid[0], index), *grid), dim=-1).flatten(0, 1).float()


def placed(references: Sequence[Tensor], method: str) -> Iterator[tuple[int, int, int]]:
    """Index, top and left of each reference latent [B, C, h, w], as ComfyUI places them.

    "offset": all at index 1, each to the right of the ones before or below them, whichever keeps the whole squarer.
    "index": each at an index of its own, 1, 2, ...; "negative_index": -1, -2, ...
    """
    height = width = 0
    for number, ref in enumerate(references, start=1):
        if method != "offset":
            yield (number if method == "index" else -number), 0, 0
            continue
        is_right = ref.shape[-2] + height > ref.shape[-1] + width
        top, left = (0, width) if is_right else (height, 0)
        yield 1, top, left
        height, width = max(height, ref.shape[-2] + top), max(width, ref.shape[-1] + left)


def check_references(
    name: str,
    channels: int,
    x: Tensor,
    references: Sequence[Tensor],
    method: str,
    methods: Sequence[str] = METHODS,
) -> None:
    """Refuse reference latents that do not fit. Args: name of the model, in errors; channels and methods that it takes.

    Raises: ValueError.
    """
    if method not in methods:
        raise ValueError(f"{name}: ref_latents_method is {method!r}; it must be one of {', '.join(methods)}")
    for ref in references:
        if ref.ndim != 4 or ref.shape[1] != channels or len(ref) not in (1, len(x)):
            right = f"[B, {channels}, h, w] with B 1 or {len(x)}"
            raise ValueError(f"{name}: a reference latent is {list(ref.shape)}; this model takes {right}")
