"""A copy of a model with a planted weakness: the text of one block, weakened in the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def weaken(model: Path, target: Path, *, block: int, factor: float) -> None:
    """Scale the values of the text in a joint block. A value boost of 1 / factor there undoes it for the image."""
    with safe_open(model, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    for end in ("weight", "bias"):
        (name,) = [n for n in tensors if n.endswith(f"joint_blocks.{block}.context_block.attn.qkv.{end}")]
        third = tensors[name].shape[0] // 3  # queries, keys, values
        tensors[name] = tensors[name].clone()
        tensors[name][2 * third :] *= factor
    save_file(tensors, target, metadata=metadata)
