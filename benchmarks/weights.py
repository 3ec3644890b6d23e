"""The memory that a GPU needs for the weights of each known model, computed from the shapes of its tensors.

    python -m benchmarks.weights

Whole: all of the transformer. During sampling: without the weights that a run reads once, AdaLN and the embedders of
timestep and text. Table: the AdaLN cache that replaces them, 40 steps of two prompts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mmdit_core import KNOWN_MODELS, MMDiT, MMDiTConfig
from mmdit_core.checkpoints.keymaps import expected_shapes
from mmdit_core.models.adaln import CACHED_WEIGHTS, TILE, row_width

BF16, FP8 = 2, 1  # bytes of an element


class Held(NamedTuple):
    """Bytes."""

    whole: int
    steps: int
    table: int


def held(config: MMDiTConfig, itemsize: int = BF16) -> Held:
    """The memory of a config. As the loader has it, positions and table are in bf16 also with weights in fp8."""
    items = {name: math.prod(shape) for name, shape in expected_shapes(config).items()}
    sizes = {name: size * (BF16 if name == "pos_embed" else itemsize) for name, size in items.items()}
    once = sum(size for name, size in sizes.items() if any(part in name for part in CACHED_WEIGHTS))
    table = BF16 * TILE * row_width(MMDiT(config, device="meta"))
    return Held(sum(sizes.values()), sum(sizes.values()) - once, table)


def main() -> None:
    print("| file | whole, GB | during sampling, GB | saved | AdaLN table, MB |\n| --- | --- | --- | --- | --- |")
    for name, config in KNOWN_MODELS.items():
        for dtype, itemsize in (("bf16", BF16), ("fp8", FP8)):
            size = held(config, itemsize)
            print(
                f"| {name}, {dtype} | {size.whole / 1e9:.2f} | {size.steps / 1e9:.2f} "
                f"| {1 - size.steps / size.whole:.0%} | {size.table / 1e6:.0f} |"
            )


if __name__ == "__main__":
    main()
