"""Detect the parts of a file and the config of its transformer, from the names and shapes of its tensors."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..config import MMDiTConfig
from .errors import TensorsError, UnknownModelError, UnreadableError, are, listing
from .header import Header
from .keymaps import BLOCKS, DIFFUSERS_BLOCKS, core_name, rule_for
from .names import bare, prefix_of, without_wrapped

MAX_BLOCKS = 200  # the published models have 24 and 38
HEAD_DIM = 64  # of every published model of the family; without QK-norm no shape depends on it

SINGLE_FILE, DIFFUSERS = "single file", "diffusers"
SINGLE_FILE_PREFIX = "model.diffusion_model."

# Names, after the prefix, that only a layout has. Other models' diffusers files also have `transformer_blocks` with
# `add_q_proj`, but no `norm1_context`.
LAYOUTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (SINGLE_FILE, re.compile(rf"{BLOCKS}\.\d+\.")),
    (DIFFUSERS, re.compile(rf"{DIFFUSERS_BLOCKS}\.\d+\.norm1_context\.")),
)

# Names that a whole transformer of the family has, and no other model, LoRA or ControlNet: what else is in its file is
# not needed.
WHOLE: tuple[tuple[re.Pattern[str], ...], ...] = (
    (re.compile(rf"{BLOCKS}\.\d+\.x_block\.attn\.qkv\.weight"), re.compile(r"final_layer\.linear\.weight")),
    (
        re.compile(rf"{DIFFUSERS_BLOCKS}\.\d+\.norm1_context\.linear\.weight"),
        re.compile(r"pos_embed\.proj\.weight"),
        re.compile(r"proj_out\.weight"),
    ),
)

# The other parts of a single file. Source: Stability AI's published files.
PART_PREFIXES: dict[str, str] = {
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
    "t5xxl": "text_encoders.t5xxl.transformer.",
    "vae": "first_stage_model.",
}

# Model, and the beginnings of names that only it has (without the single file's prefix); checked before LAYOUTS.
FOREIGN: tuple[tuple[str, str], ...] = (
    ("a LoRA, which is applied to a loaded model", r".*(lora_[ABa-z]|\.lora\.|hada_w|lokr_w|\.dora_scale)"),
    ("a ControlNet", r"(controlnet_blocks|control_model|controlnet_cond_embedding|input_hint_block)\."),
    ("AuraFlow", r"(double_layers|joint_transformer_blocks)\."),
    ("HunyuanVideo", r"txt_in\.individual_token_refiner\.|context_embedder\.token_refiner\."),
    ("Chroma", r"distilled_guidance_layer\."),
    ("FLUX", r"(double_blocks\.\d+\.img_attn|single_transformer_blocks)\."),
    ("Qwen-Image", r"transformer_blocks\.\d+\.img_mod\."),
    ("PixArt or LTX-Video", r"adaln_single\."),
    ("Lumina 2", r"noise_refiner\."),
    ("HunyuanDiT", r"mlp_t5\."),
    ("Wan", r"head\.modulation|condition_embedder\.time_embedder\."),
    ("SDXL, a UNet", r"(label_emb\.0\.0|add_embedding\.linear_1)\."),
    ("Stable Diffusion 1 or 2, a UNet", r"(input_blocks\.0\.0|down_blocks\.\d+\.(resnets|attentions))\."),
)

# As FOREIGN; checked last.
ALONE: tuple[tuple[str, str], ...] = (
    ("a VAE alone", r"(vae\.)?(taesd_)?(encoder|decoder)\.(\d+|conv_in|conv_out|mid|mid_block|up|down)\."),
    (
        "a text encoder alone",
        r"(.*\.)?(text_model\.(encoder|embeddings)|encoder\.block\.\d+\.layer|resblocks\.\d+|layers\.\d+\.self_attn)\.",
    ),
)

# The tensors whose shapes determine the config, and their ranks.
DECIDING = {
    "pos_embed": 3,
    "x_embedder.proj.weight": 4,
    "y_embedder.mlp.0.weight": 2,
    "context_embedder.weight": 2,
    f"{BLOCKS}.0.x_block.mlp.fc1.weight": 2,
    "final_layer.linear.weight": 2,
}

NEEDED = (
    "An MMDiT of the SD3 family is needed (SD3, SD3.5): tensors named joint_blocks.* (single file) or "
    "transformer_blocks.* with norm1_context (diffusers), under any usual prefix such as model.diffusion_model."
)


@dataclass(frozen=True)
class Part:
    """One part of a checkpoint.

    Fields: layout, "single file" or "diffusers"; prefix of its tensors' names; names, name without the prefix -> name
    in the file; dtypes by safetensors' names ("BF16", "F8_E4M3"), the one with the most bytes first.
    """

    layout: str
    prefix: str
    names: Mapping[str, str]
    dtypes: tuple[str, ...]


def components(header: Header) -> dict[str, Part]:
    """The parts of a file: any of "transformer", "clip_l", "clip_g", "t5xxl", "vae"."""
    layouts = [(part, SINGLE_FILE, prefix) for part, prefix in PART_PREFIXES.items()]
    if transformer := find_layout(header.tensors):
        layouts.insert(0, ("transformer", *transformer))
    parts = {}
    for part, layout, prefix in layouts:
        names = names_under(header.tensors, prefix)
        sizes: Counter[str] = Counter()
        for name in names.values():
            info = header.tensors[name]
            sizes[info.dtype] += info.end - info.start
        if sizes:
            parts[part] = Part(layout, prefix, names, tuple(dtype for dtype, _ in sizes.most_common()))
    return parts


def names_under(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Name without the prefix -> name; for the empty prefix, of all tensors that belong to no other part."""
    others = () if prefix else tuple(PART_PREFIXES.values())
    return {
        without_wrapped(name[len(prefix) :]): name
        for name in names
        if name.startswith(prefix) and not name.startswith(others)
    }


def find_layout(names: Iterable[str]) -> tuple[str, str] | None:
    """(layout, prefix) of the transformer, or None if there is none of this family."""
    bare_of = {name: bare(name) for name in names}
    whole = any(all(any(map(each.fullmatch, bare_of.values())) for each in signs) for signs in WHOLE)
    if not whole and _matching(FOREIGN, list(bare_of)) is not None:
        return None
    found = Counter(
        (layout, prefix_of(name))
        for name, bare_name in bare_of.items()
        for layout, pattern in LAYOUTS
        if pattern.match(bare_name)
    )
    # Of two models in one file the one that ComfyUI takes.
    return max(found, key=lambda each: (found[each], each[1] == SINGLE_FILE_PREFIX)) if found else None


def describe_unknown(names: Iterable[str]) -> str:
    """A description of a file without a transformer of this family."""
    names = list(names)
    if not names:
        return "the file holds no tensors"
    parts = [part for part, prefix in PART_PREFIXES.items() if names_under(names, prefix)]
    label = _matching(FOREIGN if parts else FOREIGN + ALONE, names)
    if label is not None:
        return f"this looks like {label}"
    if parts:
        return f"the file holds {', '.join(parts)} and no transformer"
    return f"unknown architecture ({len(names)} tensors: {listing(sorted(names))})"


def _matching(table: tuple[tuple[str, str], ...], names: list[str]) -> str | None:
    """The first label in a table whose pattern matches the beginning of a name."""
    stripped = [bare(name) for name in names]
    return next((label for label, pattern in table if any(map(re.compile(pattern).match, stripped))), None)


def config_from_state_dict(
    tensors: Mapping[str, Tensor] | Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str] | None = None,
    *,
    source: object = "state dict",
) -> MMDiTConfig:
    """The config of a state dict, from the names and shapes of its tensors.

    Args: tensors, name -> tensor or shape, in any known layout; metadata, used only for the number of heads of a model
        without QK-norm, whose shapes do not determine it: `num_heads` in the JSON under "mmdit.config", else
        `num_attention_heads` in the diffusers config under "diffusers.config", else heads are 64 wide; source, the
        file in errors.
    Raises: UnknownModelError for another architecture; TensorsError if tensors that determine the config are missing or
        of a wrong shape; UnreadableError if the number of heads is not given.
    """
    layout = find_layout(tensors)
    if layout is None:
        raise UnknownModelError(source, describe_unknown(tensors), NEEDED)
    kind, prefix = layout
    shapes: dict[str, tuple[int, ...]] = {}
    for name, stored in names_under(tensors, prefix).items():
        own_name = core_name(name) if kind == DIFFUSERS else name
        if own_name is not None:
            value = tensors[stored]
            shapes[own_name] = tuple(value.shape if isinstance(value, Tensor) else value)
    missing = [name for name in DECIDING if name not in shapes]
    if missing:
        in_file = [prefix + (rule_for(name, 0).diffusers[0] if kind == DIFFUSERS else name) for name in missing]
        raise missing_tensors(source, in_file)
    return _config_from_shapes(shapes, metadata or {}, source)


def missing_tensors(source: object, names: list[str], besides: str = "") -> TensorsError:
    """The error for missing tensors. Args: besides, what else is wrong."""
    right = "The file is not whole: take a complete one"
    return TensorsError(source, f"{are(len(names))} missing: {listing(names)}{besides}", right, names=names)


def _config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], source: object
) -> MMDiTConfig:
    norms = [name for name in shapes if re.search(r"\.ln_[qk]\.weight$", name)]
    for name, rank in {**DECIDING, **dict.fromkeys(norms, 1)}.items():
        if len(shapes[name]) != rank or 0 in shapes[name]:
            found = f"wrong shape: {name} is {list(shapes[name])}; expected {rank} sizes"
            raise TensorsError(source, found, names=[name])

    def blocks_with(pattern: str) -> list[int]:
        matches = (re.match(rf"{BLOCKS}\.(0|[1-9]\d{{0,8}})\.{pattern}", name) for name in shapes)
        return sorted({int(match[1]) for match in matches if match})

    blocks = blocks_with("")
    # A gap in the numbers means missing blocks, but one huge number must not make a huge model.
    depth = blocks[-1] + 1 if blocks[-1] < MAX_BLOCKS else len(blocks)
    if depth > MAX_BLOCKS:
        raise UnknownModelError(source, f"it has {depth} blocks, and an MMDiT at most {MAX_BLOCKS}", NEEDED)
    hidden, in_channels, patch, _ = shapes["x_embedder.proj.weight"]
    out_channels = shapes["final_layer.linear.weight"][0] // patch**2
    if norms:  # the most common length, so that one wrong tensor is named as wrong and does not change the config
        heads = hidden // Counter(shapes[name][0] for name in norms).most_common(1)[0][0]
    else:
        heads = _heads_from_metadata(hidden, metadata, source)
    try:
        return MMDiTConfig(
            hidden_size=hidden,
            num_heads=heads,
            depth=depth,
            mlp_ratio=_ratio(shapes[f"{BLOCKS}.0.x_block.mlp.fc1.weight"][0], hidden),
            context_dim=shapes["context_embedder.weight"][1],
            pooled_dim=shapes["y_embedder.mlp.0.weight"][1],
            patch_size=patch,
            in_channels=in_channels,
            out_channels=None if out_channels == in_channels else out_channels,
            pos_embed_max_size=math.isqrt(shapes["pos_embed"][1]),
            qk_norm="rms" if norms else None,
            dual_attention=tuple(index for index in blocks_with(r"x_block\.attn2\.") if index < depth),
            guidance_embed=any(name.startswith("guidance_embedder.") for name in shapes),
            qkv_bias=any(name.endswith(".attn.qkv.bias") for name in shapes),
        )
    except ValueError as error:
        raise UnknownModelError(source, f"its tensors fit no MMDiT ({error})", NEEDED) from error


def _ratio(inner: int, hidden: int) -> float:
    """The MLP ratio for which int(hidden * ratio) is `inner`."""
    ratio = inner / hidden
    return ratio if int(hidden * ratio) == inner else math.nextafter(ratio, math.inf)


def _heads_from_metadata(hidden: int, metadata: Mapping[str, str], source: object) -> int:
    for key, field in (("mmdit.config", "num_heads"), ("diffusers.config", "num_attention_heads")):
        if key not in metadata:
            continue
        try:
            values = json.loads(metadata[key])
            if key == "diffusers.config" and values.get("_class_name") != "SD3Transformer2DModel":
                continue  # the config of another model in the same folder
            heads = values[field]
            if key == "diffusers.config" and heads * values.get("attention_head_dim", hidden // heads) != hidden:
                continue  # of another model of the family
            if type(heads) is not int or heads < 1 or hidden % heads:
                raise ValueError(f"{field} is {heads!r}")
            return heads
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found = f"the metadata {key} does not say how many attention heads the model has ({error})"
            right = f"Without QK-norm it must hold {field}, a divisor of {hidden}"
            raise UnreadableError(source, found, right) from error
    if hidden % HEAD_DIM:
        found = f"its width {hidden} is not a multiple of {HEAD_DIM}, and without QK-norm no shape gives the heads"
        raise UnreadableError(source, found, 'Store the config as JSON under "mmdit.config" in the file\'s metadata')
    return hidden // HEAD_DIM
