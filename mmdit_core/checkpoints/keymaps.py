"""The tensors of a model and their names in the two published layouts: one table for both directions.

The core uses the names of the published single files; the other layout is diffusers'. The tables are in `families/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from ..config import ModelConfig
from .errors import are, listing
from .families import BlockList, Family, Rule, family_of


@lru_cache(maxsize=8)  # to build a model takes longer than all other checks of a file
def expected_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the model with this config, its buffers included."""
    tensors = family_of(config).model(config, device="meta").state_dict()
    return MappingProxyType({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def key_map(config: ModelConfig) -> dict[str, Rule]:
    """Name -> rule of every tensor of the model with this config, with full tensor names."""
    family, names = family_of(config), expected_shapes(config)
    last = {blocks.name: _last_block(names, blocks) for blocks in family.blocks}
    return {name: rule_for(family, name, last) for name in names}


def single_file_map(config: ModelConfig) -> dict[str, Rule]:
    """As `key_map`, of a single file, whose names are the core's."""
    return {name: Rule(name, (name,)) for name in expected_shapes(config)}


def rule_for(family: Family, name: str, last: Mapping[str, int] | None = None) -> Rule:
    """The rule of one tensor, by its name in the core. Args: last, list of blocks -> the number of its last one."""
    prefix, inside, rules, swapped = "", name, family.rules, False
    for blocks in family.blocks:
        if block := re.match(rf"{blocks.name}\.(\d+)\.", name):
            prefix, inside, rules = f"{blocks.diffusers}.{block[1]}.", name[block.end() :], blocks.rules
            is_last = int(block[1]) == (last or {}).get(blocks.name)
            swapped = is_last and inside.rpartition(".")[0] == blocks.swapped_in_last
    by_name = {rule.name: rule for rule in rules}
    if inside in by_name:  # a tensor with a rule of its own
        rule, leaf = by_name[inside], ""
    else:
        stem, _, last_part = inside.rpartition(".")
        rule, leaf = by_name[stem], f".{last_part}"
    theirs = tuple(f"{prefix}{part}{leaf}" for part in rule.diffusers)
    return rule._replace(name=name, diffusers=theirs, swap=rule.swap or swapped)


def core_name(family: Family, name: str) -> str | None:
    """The core's name of a diffusers tensor, or None if it has none; q, k and v all have the name of the one qkv."""
    prefix, inside, rules = "", name, family.rules
    for blocks in family.blocks:
        if block := re.match(rf"{blocks.diffusers}\.(\d+)\.", name):
            prefix, inside, rules = f"{blocks.name}.{block[1]}.", name[block.end() :], blocks.rules
    own = {part: rule.name for rule in rules for part in rule.diffusers}
    if inside in own:
        return prefix + own[inside]
    stem, _, leaf = inside.rpartition(".")
    return f"{prefix}{own[stem]}.{leaf}" if stem in own else None


def part_rows(rule: Rule, rows: int, config: ModelConfig) -> tuple[int, ...]:
    """The rows of each of diffusers' tensors of a rule. Args: rows of the core's tensor."""
    parts = len(rule.diffusers)
    if rule.rest:
        return (*(config.hidden_size,) * (parts - 1), rows - (parts - 1) * config.hidden_size)
    return (rows // parts,) * parts


def diffusers_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """`expected_shapes` in diffusers' names."""
    shapes, rules = expected_shapes(config), key_map(config)
    return {
        part: (rows, *shape[1:])
        for name, shape in shapes.items()
        for part, rows in zip(rules[name].diffusers, part_rows(rules[name], shape[0], config), strict=True)
    }


def swap_halves(tensor: Tensor) -> Tensor:
    """[2n, ...] -> [2n, ...], a copy with the last n rows first."""
    return torch.cat(tensor.chunk(2)[::-1])


def join(parts: list[Tensor], rule: Rule) -> Tensor:
    """The core's tensor from diffusers'; the tensor itself, not a copy, if the rule only renames."""
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return swap_halves(tensor) if rule.swap else tensor


def to_diffusers(state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors under the names of diffusers' model, bit for bit; parts of a fused tensor are views of it.

    Raises: ValueError unless state_dict holds exactly the tensors of this config.
    """
    rules = key_map(config)
    if state_dict.keys() != rules.keys():
        wrong = sorted(state_dict.keys() ^ rules.keys())
        raise ValueError(f"to_diffusers: {are(len(wrong))} missing or surplus for this config: {listing(wrong)}")
    converted: dict[str, Tensor] = {}
    for name, rule in rules.items():
        tensor = swap_halves(state_dict[name]) if rule.swap else state_dict[name]
        converted.update(zip(rule.diffusers, tensor.split(part_rows(rule, len(tensor), config)), strict=True))
    return converted


def _last_block(names: Mapping[str, object], blocks: BlockList) -> int:
    """The number of the last block of a list; -1 for none."""
    matches = (re.match(rf"{blocks.name}\.(\d+)\.", name) for name in names)
    return max((int(match[1]) for match in matches if match), default=-1)
