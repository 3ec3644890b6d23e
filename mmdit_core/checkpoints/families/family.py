"""What a model family looks like in files, as data: the fields of a row of FAMILIES, and what reads shapes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...config import ModelConfig
from ..bounded_json import parse
from ..errors import TensorsError, UnreadableError

SINGLE_FILE, DIFFUSERS = "single file", "diffusers"
MAX_BLOCKS = 200  # in a list; the published models have 60 at most

Shapes = Mapping[str, tuple[int, ...]]


class Rule(NamedTuple):
    """The names of a module or tensor in another layout, diffusers' where nothing else is said.

    Fields: name in the core; diffusers, its names there; several are concatenated along the rows (q, k, v); swap, True
    if the two halves of the rows are swapped: diffusers stores (scale, shift), the single files (shift, scale); rest,
    True if each part but the last has hidden_size rows and the last has the others, False if all have as many.
    """

    name: str
    diffusers: tuple[str, ...]
    swap: bool = False
    rest: bool = False


def qkv(name: str, module: str, parts: tuple[str, ...] = ("to_q", "to_k", "to_v")) -> Rule:
    """A fused projection in the core, its parts by themselves in diffusers."""
    return Rule(name, tuple(f"{module}.{part}" for part in parts))


class BlockList(NamedTuple):
    """The blocks of one kind.

    Fields: name of the list in the core; diffusers, its name there; rules of a block's modules, or of tensors whose
    last part has another name there; swapped_in_last, a module whose rows are swapped in the last block alone.
    """

    name: str
    diffusers: str
    rules: tuple[Rule, ...]
    swapped_in_last: str = ""


class Layout(NamedTuple):
    """How names of tensors show a layout. Names are without the prefix.

    Fields: kind, SINGLE_FILE or DIFFUSERS; sign, names that only this layout has, counted to find its prefix; whole,
    patterns of names: a file that has a name for each of them is of the family, whatever else is in it; required,
    patterns of names: a file that lacks one of them is of another family.
    """

    kind: str
    sign: re.Pattern[str]
    whole: tuple[re.Pattern[str], ...]
    required: tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True, eq=False)  # one row a family, compared by identity
class Family:
    """One family of models.

    Fields:
        name, in errors: "MMDiT".
        model, its class: model(config, device, dtype) is a module.
        config, the class of its configs, by which a config's family is found.
        needed, what a file of the family holds, for errors.
        layouts, how its files are recognised.
        rules, blocks: the key map; rules are of tensors outside the blocks.
        deciding, the tensors whose shapes determine the config, and their ranks.
        config_of, the config from the core's names and the shapes, the metadata and the source in errors. It may raise
            CheckpointError, and ValueError for sizes that fit no config.
        foreign, the family's own label in `detect.FOREIGN`.
        spellings, (pattern, replacement) of names that some single files write in another way.
    """

    name: str
    model: Callable[..., Any]
    config: type
    needed: str
    layouts: tuple[Layout, ...]
    rules: tuple[Rule, ...]
    blocks: tuple[BlockList, ...]
    deciding: Mapping[str, int]
    config_of: Callable[[Shapes, Mapping[str, str], object], ModelConfig]
    foreign: str = ""
    spellings: tuple[tuple[re.Pattern[str], str], ...] = ()


def patterns(*texts: str) -> tuple[re.Pattern[str], ...]:
    """Compiled patterns."""
    return tuple(map(re.compile, texts))


# -- what reads a config from shapes -----------------------------------------------------------------------------------


def check_ranks(shapes: Shapes, ranks: Mapping[str, int], source: object) -> None:
    """Raises: TensorsError if a tensor has another rank, or a size of 0."""
    for name, rank in ranks.items():
        if len(shapes[name]) != rank or 0 in shapes[name]:
            found = f"wrong shape: {name} is {list(shapes[name])}; expected {rank} sizes"
            raise TensorsError(source, found, names=[name])


def blocks_with(shapes: Shapes, blocks: str, pattern: str = "") -> list[int]:
    """The numbers of a list's blocks that have a tensor whose name goes on with a pattern."""
    matches = (re.match(rf"{blocks}\.(0|[1-9]\d{{0,8}})\.{pattern}", name) for name in shapes)
    return sorted({int(match[1]) for match in matches if match})


def count_blocks(shapes: Shapes, blocks: str) -> int:
    """How many blocks a list has; at least 1. Raises: ValueError for more than MAX_BLOCKS."""
    numbers = blocks_with(shapes, blocks) or [0]
    # A gap in the numbers means missing blocks, but one huge number must not make a huge model.
    count = numbers[-1] + 1 if numbers[-1] < MAX_BLOCKS else len(numbers)
    if count > MAX_BLOCKS:
        raise TooManyBlocks(count)
    return count


class TooManyBlocks(ValueError):
    """A list of blocks is longer than that of any model. Attribute: count."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(f"{count} blocks")


def norm_width(shapes: Shapes, norms: Iterable[str], source: object) -> int:
    """The width of a head, from the norms of queries and keys.

    The most common length, so that one wrong tensor is named as wrong and does not change the config.
    """
    norms = list(norms)
    check_ranks(shapes, dict.fromkeys(norms, 1), source)
    return Counter(shapes[name][0] for name in norms).most_common(1)[0][0]


def ratio_of(inner: int, hidden: int) -> float:
    """The MLP ratio for which int(hidden * ratio) is `inner`."""
    ratio = inner / hidden
    return ratio if int(hidden * ratio) == inner else math.nextafter(ratio, math.inf)


def axes_of(head_dim: int, metadata: Mapping[str, str], class_name: str, source: object) -> tuple[int, ...]:
    """The channels of each axis of rotary positions, on which no shape depends.

    From the metadata, else in the published proportions, 16, 56 and 56 of 128. Args: class_name, of diffusers' model.
    """
    for key, field in (("mmdit.config", "axes_dim"), ("diffusers.config", "axes_dims_rope")):
        try:
            values = parse(metadata.get(key, "{}"))
            if key == "diffusers.config" and values.get("_class_name") != class_name:
                continue  # the config of another model in the same folder
            if field not in values:
                continue
            axes = tuple(values[field])
            if any(type(dim) is not int for dim in axes) or sum(axes) != head_dim:
                raise ValueError(f"{field} is {list(axes)!s:.60}")
            return axes
        except (ValueError, TypeError, AttributeError) as error:
            found = f"the metadata {key} does not say how many channels each axis of the positions has ({error!s:.200})"
            right = f"{field} must be three even numbers that add up to {head_dim}"
            raise UnreadableError(source, found, right) from error
    side = 2 * (7 * head_dim // 32)
    return head_dim - 2 * side, side, side
