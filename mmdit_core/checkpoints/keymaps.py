"""The tensors of an MMDiT and their names in the two published layouts: one table for both directions.

The core uses the names of the published single files; the other layout is diffusers'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import MMDiTConfig
from ..models.sd3 import MMDiT
from .errors import are, listing


class Rule(NamedTuple):
    """The names of a module or tensor in another layout, diffusers' where nothing else is said.

    Fields: name in the core; diffusers, its names there; several are concatenated along the rows (q, k, v); swap, True
    if the two halves of the rows are swapped: diffusers stores (scale, shift), the single files (shift, scale).
    """

    name: str
    diffusers: tuple[str, ...]
    swap: bool = False


def _qkv(name: str, module: str, parts: tuple[str, str, str] = ("to_q", "to_k", "to_v")) -> Rule:
    return Rule(name, tuple(f"{module}.{part}" for part in parts))


# diffusers' SD3 has no guidance embedding; the name is that of diffusers' FLUX.
MODEL_RULES: tuple[Rule, ...] = (
    Rule("pos_embed", ("pos_embed.pos_embed",)),
    Rule("x_embedder.proj", ("pos_embed.proj",)),
    Rule("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    Rule("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    Rule("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    Rule("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    Rule("guidance_embedder.mlp.0", ("time_text_embed.guidance_embedder.linear_1",)),
    Rule("guidance_embedder.mlp.2", ("time_text_embed.guidance_embedder.linear_2",)),
    Rule("context_embedder", ("context_embedder",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap=True),
    Rule("final_layer.linear", ("proj_out",)),
)

BLOCK_RULES: tuple[Rule, ...] = (
    _qkv("x_block.attn.qkv", "attn"),
    _qkv("x_block.attn2.qkv", "attn2"),
    _qkv("context_block.attn.qkv", "attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
    Rule("x_block.attn.proj", ("attn.to_out.0",)),
    Rule("x_block.attn2.proj", ("attn2.to_out.0",)),
    Rule("context_block.attn.proj", ("attn.to_add_out",)),
    Rule("x_block.attn.ln_q", ("attn.norm_q",)),
    Rule("x_block.attn.ln_k", ("attn.norm_k",)),
    Rule("x_block.attn2.ln_q", ("attn2.norm_q",)),
    Rule("x_block.attn2.ln_k", ("attn2.norm_k",)),
    Rule("context_block.attn.ln_q", ("attn.norm_added_q",)),
    Rule("context_block.attn.ln_k", ("attn.norm_added_k",)),
    Rule("x_block.mlp.fc1", ("ff.net.0.proj",)),
    Rule("x_block.mlp.fc2", ("ff.net.2",)),
    Rule("context_block.mlp.fc1", ("ff_context.net.0.proj",)),
    Rule("context_block.mlp.fc2", ("ff_context.net.2",)),
    Rule("x_block.adaLN_modulation.1", ("norm1.linear",)),
    Rule("context_block.adaLN_modulation.1", ("norm1_context.linear",)),
)

# In the last block the context has only (shift, scale), which diffusers stores in the other order.
LAST_BLOCK_SWAPPED = "context_block.adaLN_modulation.1"

BLOCKS, DIFFUSERS_BLOCKS = "joint_blocks", "transformer_blocks"
_RULE_OF = {rule.name: rule for rule in MODEL_RULES + BLOCK_RULES}
_CORE_NAME = {name: rule.name for rule in MODEL_RULES + BLOCK_RULES for name in rule.diffusers}


@lru_cache(maxsize=8)  # to build a model takes longer than all other checks of a file
def expected_shapes(config: MMDiTConfig) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the model with this config, the buffer pos_embed included."""
    tensors = MMDiT(config, device="meta").state_dict()
    return MappingProxyType({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def key_map(config: MMDiTConfig) -> dict[str, Rule]:
    """Name -> rule of every tensor of the model with this config, with full tensor names."""
    return {name: rule_for(name, config.depth) for name in expected_shapes(config)}


def single_file_map(config: MMDiTConfig) -> dict[str, Rule]:
    """As `key_map`, of a single file, whose names are the core's."""
    return {name: Rule(name, (name,)) for name in expected_shapes(config)}


def rule_for(name: str, depth: int) -> Rule:
    """The rule of one tensor of a model with `depth` blocks, by its name in the core."""
    if name in _RULE_OF:  # pos_embed, the only tensor without a layer
        return _RULE_OF[name]
    stem, leaf = name.rsplit(".", 1)
    block = re.match(rf"{BLOCKS}\.(\d+)\.", stem)
    if block is None:
        rule, prefix = _RULE_OF[stem], ""
    else:
        rule, prefix = _RULE_OF[stem[block.end() :]], f"{DIFFUSERS_BLOCKS}.{block[1]}."
    swap = rule.swap or (block is not None and int(block[1]) == depth - 1 and rule.name == LAST_BLOCK_SWAPPED)
    return Rule(name, tuple(f"{prefix}{module}.{leaf}" for module in rule.diffusers), swap)


def core_name(name: str) -> str | None:
    """The core's name of a diffusers tensor, or None if it has none; q, k and v all have the name of the one qkv."""
    if name in _CORE_NAME:
        return _CORE_NAME[name]
    block = re.match(rf"{DIFFUSERS_BLOCKS}\.(\d+)\.", name)
    stem, _, leaf = (name[block.end() :] if block else name).rpartition(".")
    if stem not in _CORE_NAME:
        return None
    return f"{BLOCKS}.{block[1]}.{_CORE_NAME[stem]}.{leaf}" if block else f"{_CORE_NAME[stem]}.{leaf}"


def diffusers_shapes(config: MMDiTConfig) -> dict[str, tuple[int, ...]]:
    """`expected_shapes` in diffusers' names."""
    shapes, rules = expected_shapes(config), key_map(config)
    return {
        part: (shape[0] // len(rules[name].diffusers), *shape[1:])
        for name, shape in shapes.items()
        for part in rules[name].diffusers
    }


def swap_halves(tensor: Tensor) -> Tensor:
    """[2n, ...] -> [2n, ...], a copy with the last n rows first."""
    return torch.cat(tensor.chunk(2)[::-1])


def join(parts: list[Tensor], rule: Rule) -> Tensor:
    """The core's tensor from diffusers'; the tensor itself, not a copy, if the rule only renames."""
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return swap_halves(tensor) if rule.swap else tensor


def to_diffusers(state_dict: Mapping[str, Tensor], config: MMDiTConfig) -> dict[str, Tensor]:
    """The tensors under diffusers' names (SD3Transformer2DModel), bit for bit; q, k and v are views of qkv.

    Raises: ValueError unless state_dict holds exactly the tensors of this config.
    """
    rules = key_map(config)
    if state_dict.keys() != rules.keys():
        wrong = sorted(state_dict.keys() ^ rules.keys())
        raise ValueError(f"to_diffusers: {are(len(wrong))} missing or surplus for this config: {listing(wrong)}")
    converted: dict[str, Tensor] = {}
    for name, rule in rules.items():
        tensor = swap_halves(state_dict[name]) if rule.swap else state_dict[name]
        converted.update(zip(rule.diffusers, tensor.chunk(len(rule.diffusers)), strict=True))
    return converted
