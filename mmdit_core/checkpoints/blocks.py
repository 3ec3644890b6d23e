"""The blocks of the transformer in a file, by kind, from tensor names; also of families that are not loaded here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .names import bare

Counts = tuple[tuple[str, int], ...]  # (name, count) in the order of the forward pass


@dataclass(frozen=True)
class FileBlocks:
    """The blocks of a transformer.

    Fields: sections, the kinds of blocks in the order in which block lists number them; refiners, the blocks that run
    before and have no number.
    """

    sections: Counts
    refiners: Counts = ()


@dataclass(frozen=True)
class _Row:
    """The block lists of some families.

    Fields: sections and refiners, (list, name of its kind); sign, the beginning of a tensor's name that another family
    with a list of the same name does not have.
    """

    sections: tuple[tuple[str, str], ...]
    refiners: tuple[tuple[str, str], ...] = ()
    sign: str = ""


# The first row that fits counts.
_ROWS = (
    _Row((("joint_blocks", "joint"),)),  # SD3
    _Row((("double_blocks", "double"), ("single_blocks", "single"))),  # FLUX.1, FLUX.2, Chroma
    _Row((("double_layers", "double"), ("single_layers", "single"))),  # AuraFlow
    _Row((("joint_transformer_blocks", "double"), ("single_transformer_blocks", "single"))),  # AuraFlow in diffusers
    _Row((("transformer_blocks", "double"), ("single_transformer_blocks", "single")), sign="single_transformer_blocks"),
    _Row((("transformer_blocks", "joint"),), sign=r"transformer_blocks\.\d+\.(img_mod|norm1_context)"),  # Qwen, SD3
    _Row((("transformer_blocks", "blocks"),)),
    _Row(  # Z-Image, Lumina 2
        (("layers", "main"),),
        (("noise_refiner", "noise"), ("context_refiner", "context"), ("ref_image_refiner", "reference")),
        sign="noise_refiner",
    ),
    _Row((("blocks", "blocks"),), sign="txtfusion"),  # Krea 2
)


def find_variant(names: Iterable[str]) -> str | None:
    """The published model that the names tell apart from others of its family and size: "SD3.5 Medium", or None.

    Args: names of a network's tensors, or of its modules with a dot at the end. SD3 Medium has as many blocks, and no
        second attention over the image.
    """
    stripped = [bare(name) for name in names]
    dual = any(re.match(r"(joint_blocks\.\d+\.x_block|transformer_blocks\.\d+)\.attn2\.", name) for name in stripped)
    found = find_blocks(stripped) if dual else None
    return "SD3.5 Medium" if found is not None and found.sections == (("joint", 24),) else None


def find_blocks(names: Iterable[str]) -> FileBlocks | None:
    """The blocks of the transformer in a file, or None if no row fits.

    Args: names of its tensors, under any usual prefix.
    """
    stripped = [bare(name) for name in names]
    numbers: dict[str, set[str]] = {}
    for name in stripped:
        if match := re.match(r"(\w+)\.(\d+)\.", name):
            numbers.setdefault(match[1], set()).add(match[2])

    def counts(lists: tuple[tuple[str, str], ...]) -> Counts:
        return tuple((kind, len(numbers[each])) for each, kind in lists if each in numbers)

    for row in _ROWS:
        if row.sections[0][0] in numbers and any(re.match(row.sign, name) for name in stripped):
            return FileBlocks(counts(row.sections), counts(row.refiners))
    return None
