"""Qwen-Image in files: one set of names in both published layouts, and the config from the shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...config import REFERENCE_METHODS, TIMESTEP_ZERO, QwenImageConfig
from ...models.qwen_image import TIMESTEP_ZERO_MARKER, QwenImage
from ..bounded_json import parse
from ..errors import UnknownModelError, UnreadableError, listing
from .family import (
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
    ratio_of,
)

BLOCKS = "transformer_blocks"
PATCH_SIZE = 2  # of every model of the family; no shape says it
SECOND_CONDITION = "time_text_embed.addition_t_embedding.weight"

NEEDED = (
    "A Qwen-Image is needed: tensors named transformer_blocks.* with img_mod, and txt_norm, under any usual prefix "
    "such as model.diffusion_model."
)

# diffusers' names are the core's.
RULES = tuple(
    Rule(name, (name,))
    for name in (
        *("img_in", "txt_in", "txt_norm", "norm_out.linear", "proj_out", TIMESTEP_ZERO_MARKER),
        *("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
        "time_text_embed.addition_t_embedding",
    )
)
BLOCK_RULES = tuple(
    Rule(name, (name,))
    for name in (
        *("img_mod.1", "txt_mod.1", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")),
        *(f"attn.{name}" for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k", "to_out.0", "to_add_out")),
    )
)


def config_of(shapes: Shapes, metadata: Mapping[str, str], source: object) -> QwenImageConfig:
    """The config of the family's model."""
    depth = count_blocks(shapes, BLOCKS)
    hidden, inputs = shapes["img_in.weight"]
    outputs = shapes["proj_out.weight"][0]
    (context_dim,) = shapes["txt_norm.weight"]
    if (context_dim, inputs, outputs) == (2560, 128, 128):
        raise UnknownModelError(source, "this looks like MageFlow", NEEDED)
    if inputs % PATCH_SIZE**2 or outputs % PATCH_SIZE**2:
        raise ValueError(f"{inputs} inputs and {outputs} outputs of a patch are no multiples of {PATCH_SIZE**2}")
    norms = [name for name in shapes if re.search(r"\.attn\.norm_(added_)?[qk]\.weight$", name)]
    head_dim = norm_width(shapes, norms, source)
    return QwenImageConfig(
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        depth=depth,
        mlp_ratio=ratio_of(shapes[f"{BLOCKS}.0.img_mlp.net.0.proj.weight"][0], hidden),
        context_dim=context_dim,
        patch_size=PATCH_SIZE,
        in_channels=inputs // PATCH_SIZE**2,
        out_channels=None if outputs == inputs else outputs // PATCH_SIZE**2,
        axes_dim=axes_of(head_dim, metadata, "QwenImageTransformer2DModel", source),
        additional_t_cond=SECOND_CONDITION in shapes,
        reference_method=_reference_method(shapes, metadata, source),
    )


def _reference_method(shapes: Shapes, metadata: Mapping[str, str], source: object) -> str:
    """How the model tells references apart, by ComfyUI's name: from the metadata or from tensors that say it."""
    for key in ("mmdit.config", "diffusers.config"):
        try:
            values = parse(metadata.get(key, "{}"))
            method = values.get("reference_method", "") if key == "mmdit.config" else ""
            if method and not isinstance(method, str):
                raise ValueError(f"reference_method is {method!r:.60}")
            if values.get("_class_name") == "QwenImageTransformer2DModel" and values.get("zero_cond_t"):
                method = TIMESTEP_ZERO
            if method:
                return method
        except (ValueError, AttributeError) as error:
            found = f"the metadata {key} does not say how references are told apart ({error!s:.200})"
            raise UnreadableError(source, found, f"It must be one of {listing(REFERENCE_METHODS, 9)}") from error
    if TIMESTEP_ZERO_MARKER in shapes:
        return TIMESTEP_ZERO
    return "negative_index" if SECOND_CONDITION in shapes else "index"


QWEN_IMAGE = Family(
    name="QwenImage",
    model=QwenImage,
    config=QwenImageConfig,
    needed=NEEDED,
    layouts=(
        Layout(
            SINGLE_FILE,
            re.compile(rf"{BLOCKS}\.\d+\.img_mod\."),
            patterns(rf"{BLOCKS}\.\d+\.img_mod\.1\.weight", r"txt_norm\.weight", r"proj_out\.weight"),
            # Lens has such blocks too, with another MLP.
            required=patterns(r"txt_norm\.weight$", rf"{BLOCKS}\.\d+\.img_mlp\.net\."),
        ),
    ),
    rules=RULES,
    blocks=(BlockList(BLOCKS, BLOCKS, BLOCK_RULES),),
    deciding={
        "img_in.weight": 2,
        "txt_norm.weight": 1,
        f"{BLOCKS}.0.img_mlp.net.0.proj.weight": 2,
        f"{BLOCKS}.0.attn.norm_q.weight": 1,
        "proj_out.weight": 2,
    },
    config_of=config_of,
    foreign="Qwen-Image",
)
