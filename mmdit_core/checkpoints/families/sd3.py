"""The SD3 family in files: names in both published layouts, and the config from the shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ...config import MMDiTConfig
from ...models.sd3 import MMDiT
from ..bounded_json import parse
from ..errors import UnreadableError
from .family import (
    DIFFUSERS,
    SINGLE_FILE,
    BlockList,
    Family,
    Layout,
    Rule,
    Shapes,
    blocks_with,
    count_blocks,
    norm_width,
    patterns,
    qkv,
    ratio_of,
)

HEAD_DIM = 64  # of every published model of the family; without QK-norm no shape depends on it

# diffusers' SD3 has no guidance embedding; the name is that of diffusers' FLUX.
RULES: tuple[Rule, ...] = (
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
    qkv("x_block.attn.qkv", "attn"),
    qkv("x_block.attn2.qkv", "attn2"),
    qkv("context_block.attn.qkv", "attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
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


def config_of(shapes: Shapes, metadata: Mapping[str, str], source: object) -> MMDiTConfig:
    """The config of the family's model."""
    depth = count_blocks(shapes, "joint_blocks")
    hidden, in_channels, patch, _ = shapes["x_embedder.proj.weight"]
    out_channels = shapes["final_layer.linear.weight"][0] // patch**2
    norms = [name for name in shapes if re.search(r"\.ln_[qk]\.weight$", name)]
    return MMDiTConfig(
        hidden_size=hidden,
        num_heads=hidden // norm_width(shapes, norms, source) if norms else _heads(hidden, metadata, source),
        depth=depth,
        mlp_ratio=ratio_of(shapes["joint_blocks.0.x_block.mlp.fc1.weight"][0], hidden),
        context_dim=shapes["context_embedder.weight"][1],
        pooled_dim=shapes["y_embedder.mlp.0.weight"][1],
        patch_size=patch,
        in_channels=in_channels,
        out_channels=None if out_channels == in_channels else out_channels,
        pos_embed_max_size=math.isqrt(shapes["pos_embed"][1]),
        qk_norm="rms" if norms else None,
        dual_attention=tuple(i for i in blocks_with(shapes, "joint_blocks", r"x_block\.attn2\.") if i < depth),
        guidance_embed=any(name.startswith("guidance_embedder.") for name in shapes),
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in shapes),
    )


def _heads(hidden: int, metadata: Mapping[str, str], source: object) -> int:
    """The heads of a model without QK-norm, whose shapes do not determine them."""
    for key, field in (("mmdit.config", "num_heads"), ("diffusers.config", "num_attention_heads")):
        if key not in metadata:
            continue
        try:
            values = parse(metadata[key])
            if key == "diffusers.config" and values.get("_class_name") != "SD3Transformer2DModel":
                continue  # the config of another model in the same folder
            heads = values[field]
            if type(heads) is not int or heads < 1:
                raise ValueError(f"{field} is {heads!r:.60}")
            width = values.get("attention_head_dim", hidden // heads)
            if key == "diffusers.config" and (type(width) is not int or heads * width != hidden):
                continue  # of another model of the family
            if hidden % heads:
                raise ValueError(f"{field} is {heads}")
            return heads
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = f"the metadata {key} does not say how many attention heads the model has ({error!s:.200})"
            right = f"Without QK-norm it must hold {field}, a divisor of {hidden}"
            raise UnreadableError(source, found, right) from error
    if hidden % HEAD_DIM:
        found = f"its width {hidden} is not a multiple of {HEAD_DIM}, and without QK-norm no shape gives the heads"
        raise UnreadableError(source, found, 'Store the config as JSON under "mmdit.config" in the file\'s metadata')
    return hidden // HEAD_DIM


SD3 = Family(
    name="MMDiT",
    model=MMDiT,
    config=MMDiTConfig,
    needed="An MMDiT of the SD3 family is needed (SD3, SD3.5): tensors named joint_blocks.* (single file) or "
    "transformer_blocks.* with norm1_context (diffusers), under any usual prefix such as model.diffusion_model.",
    layouts=(
        Layout(
            SINGLE_FILE,
            re.compile(r"joint_blocks\.\d+\."),
            patterns(r"joint_blocks\.\d+\.x_block\.attn\.qkv\.weight", r"final_layer\.linear\.weight"),
        ),
        # Other models' diffusers files also have `transformer_blocks` with `add_q_proj`, but no `norm1_context`.
        Layout(
            DIFFUSERS,
            re.compile(r"transformer_blocks\.\d+\.norm1_context\."),
            patterns(
                r"transformer_blocks\.\d+\.norm1_context\.linear\.weight",
                r"pos_embed\.proj\.weight",
                r"proj_out\.weight",
            ),
        ),
    ),
    rules=RULES,
    blocks=(
        # In the last block the context has only (shift, scale), which diffusers stores in the other order.
        BlockList("joint_blocks", "transformer_blocks", BLOCK_RULES, "context_block.adaLN_modulation.1"),
    ),
    deciding={
        "pos_embed": 3,
        "x_embedder.proj.weight": 4,
        "y_embedder.mlp.0.weight": 2,
        "context_embedder.weight": 2,
        "joint_blocks.0.x_block.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    },
    config_of=config_of,
)
