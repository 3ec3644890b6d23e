"""The memory that a GPU needs for the weights of each known model, computed from the shapes of its tensors.

    python -m benchmarks.weights

Files of MMDiTLoader, with the AdaLN cache. Whole: all of the transformer. During sampling: without the weights that a
run reads once, AdaLN and the embedders of timestep and text. Table: the AdaLN cache, 40 steps of two prompts.

ComfyUI's networks, with PrecomputeModulation. In the steps: without the modulation layers of the family's row. The
networks are built on the meta device, without memory for their weights; this part needs ComfyUI.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.published import PUBLISHED, Published
from mmdit_core import KNOWN_MODELS, MMDiT, MMDiTConfig
from mmdit_core.checkpoints.keymaps import expected_shapes
from mmdit_core.models.adaln import CACHED_WEIGHTS, TILE, row_width
from scripts import in_process

BF16, FP8 = 2, 1  # bytes of an element
STEPS = (20, 30)
SD3_MODELS = {name: config for name, config in KNOWN_MODELS.items() if isinstance(config, MMDiTConfig)}


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


class Counted(NamedTuple):
    """A network's parameters. Fields: family, its row; whole, layers: parameters; row, elements of a step's row."""

    family: Any
    whole: int
    layers: int
    row: int

    @property
    def share(self) -> float:
        """The fraction of the weights that the steps do not read."""
        return self.layers / self.whole


def counted(published: Published) -> Counted:
    """Count as the node does, by the patterns of the family's row, or by those of the model if the row has none."""
    import comfy.supported_models

    families, modulation = (
        importlib.import_module(f"{in_process.load_pack().__name__}.nodes.comfyui.{name}")
        for name in ("families", "modulation")
    )
    described = getattr(comfy.supported_models, published.kind)(dict(published.config))
    described.unet_config.update(published.config)  # some classes fix their sizes over what they are given
    described.set_inference_dtype(torch.bfloat16, None)
    base = described.get_model({}, "", device=torch.device("meta"))
    family, network = families.family_of(base), families.network_of(base)
    patterns = family.modulation or published.modulation
    layers = modulation.find_layers(network, replace(family, modulation=patterns))
    sizes = modulation.weights_of(network, layers)
    return Counted(family, sizes.whole, sizes.layers, sizes.row)


def print_files() -> None:
    print("| file | whole, GB | during sampling, GB | saved | AdaLN table, MB |\n| --- | --- | --- | --- | --- |")
    for name, config in SD3_MODELS.items():
        for dtype, itemsize in (("bf16", BF16), ("fp8", FP8)):
            size = held(config, itemsize)
            print(
                f"| {name}, {dtype} | {size.whole / 1e9:.2f} | {size.steps / 1e9:.2f} "
                f"| {1 - size.steps / size.whole:.0%} | {size.table / 1e6:.0f} |"
            )


def family_row(name: str, published: Published, count: Counted) -> str:
    row = BF16 * count.row / 1e6
    bf16, fp8 = (
        f"{size * count.whole / 1e9:.1f} -> {size * (count.whole - count.layers) / 1e9:.1f}" for size in (BF16, FP8)
    )
    table = " to ".join(f"{steps * (1 + published.pooled) * row:.0f}" for steps in STEPS)
    return (
        f"| {name} | {count.whole / 1e6:.1f} | {count.layers / 1e6:.1f} | {count.share:.1%} | {bf16} | {fp8} "
        f"| {row:.2f} | {table} |"
    )


def print_families(counts: dict[str, Counted]) -> None:
    """Models with a table, then the others with what one would spare; largest first."""
    names = sorted(counts, key=lambda name: -counts[name].share)
    print(
        "| model | parameters, M | modulation, M | share | bf16, GB | fp8, GB | row of a step, MB | table, MB |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in names:
        if counts[name].family.modulation:
            print(family_row(name, PUBLISHED[name], counts[name]))
    print("\n| model without a table | parameters, M | modulation, M | share |\n| --- | --- | --- | --- |")
    for name in names:
        count = counts[name]
        if not count.family.modulation:
            print(f"| {name} | {count.whole / 1e6:.1f} | {count.layers / 1e6:.1f} | {count.share:.1%} |")


def main() -> None:
    print_files()
    in_process.prepare("--cpu")
    print()
    print_families({name: counted(published) for name, published in PUBLISHED.items()})


if __name__ == "__main__":
    main()
