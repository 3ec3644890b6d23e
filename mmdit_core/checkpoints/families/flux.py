"""FLUX.1 in files: names in both published layouts, and the config from the shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...config import FluxConfig
from ...models.flux import Flux
from .family import (
    DIFFUSERS,
    SINGLE_FILE,
    BlockList,
    Family,
    Layout,
    Rule,
    Shapes,
    axes_of,
    count_blocks,
    norm_width,
    patterns,
    qkv,
    ratio_of,
)

PATCH_SIZE = 2  # of every published model; no shape depends on it alone

RULES: tuple[Rule, ...] = (
    Rule("img_in", ("x_embedder",)),
    Rule("txt_in", ("context_embedder",)),
    Rule("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",)),
    Rule("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
    Rule("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
    Rule("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
    Rule("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",)),
    Rule("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap=True),
    Rule("final_layer.linear", ("proj_out",)),
)

DOUBLE_RULES: tuple[Rule, ...] = (
    Rule("img_mod.lin", ("norm1.linear",)),
    Rule("txt_mod.lin", ("norm1_context.linear",)),
    qkv("img_attn.qkv", "attn"),
    qkv("txt_attn.qkv", "attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
    Rule("img_attn.norm.query_norm.scale", ("attn.norm_q.weight",)),
    Rule("img_attn.norm.key_norm.scale", ("attn.norm_k.weight",)),
    Rule("txt_attn.norm.query_norm.scale", ("attn.norm_added_q.weight",)),
    Rule("txt_attn.norm.key_norm.scale", ("attn.norm_added_k.weight",)),
    Rule("img_attn.proj", ("attn.to_out.0",)),
    Rule("txt_attn.proj", ("attn.to_add_out",)),
    Rule("img_mlp.0", ("ff.net.0.proj",)),
    Rule("img_mlp.2", ("ff.net.2",)),
    Rule("txt_mlp.0", ("ff_context.net.0.proj",)),
    Rule("txt_mlp.2", ("ff_context.net.2",)),
)

SINGLE_RULES: tuple[Rule, ...] = (
    Rule("modulation.lin", ("norm.linear",)),
    Rule("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), rest=True),
    Rule("linear2", ("proj_out",)),
    Rule("norm.query_norm.scale", ("attn.norm_q.weight",)),
    Rule("norm.key_norm.scale", ("attn.norm_k.weight",)),
)


def config_of(shapes: Shapes, metadata: Mapping[str, str], source: object) -> FluxConfig:
    """The config of the family's model."""
    depth, single = count_blocks(shapes, "double_blocks"), count_blocks(shapes, "single_blocks")
    hidden, inputs = shapes["img_in.weight"]
    in_channels = inputs // PATCH_SIZE**2
    out_channels = shapes["final_layer.linear.weight"][0] // PATCH_SIZE**2
    head_dim = norm_width(shapes, [name for name in shapes if name.endswith("_norm.scale")], source)
    return FluxConfig(
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        depth=depth,
        depth_single_blocks=single,
        mlp_ratio=ratio_of(shapes["double_blocks.0.img_mlp.0.weight"][0], hidden),
        context_dim=shapes["txt_in.weight"][1],
        pooled_dim=shapes["vector_in.in_layer.weight"][1],
        patch_size=PATCH_SIZE,
        in_channels=in_channels,
        out_channels=None if out_channels == in_channels else out_channels,
        axes_dim=axes_of(head_dim, metadata, "FluxTransformer2DModel", source),
        guidance_embed=any(name.startswith("guidance_in.") for name in shapes),
    )


FLUX = Family(
    name="Flux",
    model=Flux,
    config=FluxConfig,
    needed="FLUX.1: tensors named double_blocks.* and single_blocks.* with vector_in (single file) or "
    "transformer_blocks.* and single_transformer_blocks.* with time_text_embed.text_embedder (diffusers).",
    layouts=(
        # FLUX.2, Chroma, LongCat-Image and Ovis-Image have blocks of the same names and no vector_in.
        Layout(
            SINGLE_FILE,
            re.compile(r"(double|single)_blocks\.\d+\."),
            patterns(
                r"double_blocks\.\d+\.img_attn\.qkv\.weight",
                r"single_blocks\.\d+\.linear1\.weight",
                r"img_in\.weight",
                r"txt_in\.weight",
                r"vector_in\.in_layer\.weight",
                r"final_layer\.linear\.weight",
            ),
            required=patterns(r"double_blocks\.\d+\.img_attn\.", r"vector_in\."),
        ),
        Layout(
            DIFFUSERS,
            re.compile(r"(single_)?transformer_blocks\.\d+\."),
            patterns(
                r"transformer_blocks\.\d+\.norm1_context\.linear\.weight",
                r"single_transformer_blocks\.\d+\.proj_mlp\.weight",
                r"x_embedder\.weight",
                r"context_embedder\.weight",
                r"time_text_embed\.text_embedder\.linear_1\.weight",
                r"proj_out\.weight",
            ),
            required=patterns(r"single_transformer_blocks\.\d+\.", r"time_text_embed\.text_embedder\."),
        ),
    ),
    rules=RULES,
    blocks=(
        BlockList("double_blocks", "transformer_blocks", DOUBLE_RULES),
        BlockList("single_blocks", "single_transformer_blocks", SINGLE_RULES),
    ),
    deciding={
        "img_in.weight": 2,
        "txt_in.weight": 2,
        "vector_in.in_layer.weight": 2,
        "double_blocks.0.img_mlp.0.weight": 2,
        "double_blocks.0.img_attn.norm.query_norm.scale": 1,
        "final_layer.linear.weight": 2,
    },
    config_of=config_of,
    foreign="FLUX",
    spellings=((re.compile(r"(query|key)_norm\.weight$"), r"\1_norm.scale"),),  # as ComfyUI saves them
)
