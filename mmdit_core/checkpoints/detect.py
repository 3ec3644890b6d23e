"""Detect the parts of a file and the config of its transformer, from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..config import ModelConfig
from .errors import CheckpointError, TensorsError, UnknownModelError, are, listing
from .families import DIFFUSERS, FAMILIES, SD3, SINGLE_FILE, Family
from .families.family import MAX_BLOCKS, TooManyBlocks, check_ranks
from .header import Header
from .keymaps import core_name, rule_for
from .names import bare, prefix_of, without_wrapped

SINGLE_FILE_PREFIX = "model.diffusion_model."

# The other parts of a single file. Source: Stability AI's published files.
PART_PREFIXES: dict[str, str] = {
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
    "t5xxl": "text_encoders.t5xxl.transformer.",
    "vae": "first_stage_model.",
}

# Model, and the beginnings of names that only it has (without the single file's prefix); other families
# leave such a file alone.
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

# What a file that is of no family would have to hold.
NEEDED = " Or: ".join(family.needed for family in FAMILIES)


class Found(NamedTuple):
    """The transformer of a file. Fields: family; layout, "single file" or "diffusers"; prefix of its tensors' names."""

    family: Family
    layout: str
    prefix: str


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


def components(header: Header, families: Sequence[Family] = FAMILIES) -> dict[str, Part]:
    """The parts of a file: any of "transformer", "clip_l", "clip_g", "t5xxl", "vae".

    Args: families, those that count as a transformer.
    """
    layouts = [(part, SINGLE_FILE, prefix) for part, prefix in PART_PREFIXES.items()]
    if found := find_layout(header.tensors, families):
        layouts.insert(0, ("transformer", found.layout, found.prefix))
    parts = {}
    for part, layout, prefix in layouts:
        names = names_under(header.tensors, prefix)
        if part == "transformer" and found is not None:
            names = own_spelling(found, names)
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


def own_spelling(found: Found, names: Mapping[str, str]) -> dict[str, str]:
    """`names_under` with the core's spelling of each name, where a single file has another one."""
    spellings = found.family.spellings if found.layout == SINGLE_FILE else ()
    spelled = {}
    for name, stored in names.items():
        for pattern, replacement in spellings:
            name = pattern.sub(replacement, name)
        spelled[name] = stored
    return spelled


def find_layout(names: Iterable[str], families: Sequence[Family] = FAMILIES) -> Found | None:
    """The transformer of a file, by its tensors' names, or None if there is none of these families."""
    bare_of = {name: bare(name) for name in names}
    return next((found for family in families if (found := _find(family, bare_of)) is not None), None)


def is_sd3(names: Iterable[str]) -> bool:
    """True if a file holds a transformer of the SD3 family, by its tensors' names."""
    return find_layout(names, (SD3,)) is not None


def _find(family: Family, bare_of: Mapping[str, str]) -> Found | None:
    """The transformer of one family. Args: bare_of, name -> name without prefixes."""

    def has_all(patterns: Sequence[re.Pattern[str]]) -> bool:
        return all(any(map(pattern.match, bare_of.values())) for pattern in patterns)

    def is_whole(patterns: Sequence[re.Pattern[str]]) -> bool:
        return all(any(map(pattern.fullmatch, bare_of.values())) for pattern in patterns)

    layouts = [layout for layout in family.layouts if has_all(layout.required)]
    others = tuple(row for row in FOREIGN if row[0] != family.foreign)
    if not any(is_whole(layout.whole) for layout in layouts) and _matching(others, list(bare_of)) is not None:
        return None
    found = Counter(
        (layout.kind, prefix_of(name))
        for name, bare_name in bare_of.items()
        for layout in layouts
        if layout.sign.match(bare_name)
    )
    if not found:
        return None
    # Of two models in one file the one that ComfyUI takes.
    return Found(family, *max(found, key=lambda each: (found[each], each[1] == SINGLE_FILE_PREFIX)))


def describe_unknown(names: Iterable[str]) -> str:
    """A description of a file without a transformer of a known family."""
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
    families: Sequence[Family] = FAMILIES,
) -> ModelConfig:
    """The config of a state dict, from the names and shapes of its tensors.

    Args: tensors, name -> tensor or shape, in any known layout; metadata, used only for what shapes do not determine:
        the JSON under "mmdit.config", else the diffusers config under "diffusers.config", else what the published
        models have. For SD3 without QK-norm that is the number of heads (num_heads, num_attention_heads; heads are 64
        wide); source, the file in errors; families, those that count.
    Raises: UnknownModelError for another architecture; TensorsError if tensors that determine the config are missing or
        of a wrong shape; UnreadableError for metadata that do not fit.
    """
    found = find_layout(tensors, families)
    if found is None:
        raise UnknownModelError(source, describe_unknown(tensors), NEEDED)
    family, is_theirs = found.family, found.layout == DIFFUSERS
    shapes: dict[str, tuple[int, ...]] = {}
    for name, stored in own_spelling(found, names_under(tensors, found.prefix)).items():
        own_name = core_name(family, name) if is_theirs else name
        if own_name is not None:
            value = tensors[stored]
            shapes[own_name] = tuple(value.shape if isinstance(value, Tensor) else value)
    missing = [name for name in family.deciding if name not in shapes]
    if missing:
        in_file = [found.prefix + (rule_for(family, name).diffusers[0] if is_theirs else name) for name in missing]
        raise missing_tensors(source, in_file)
    check_ranks(shapes, family.deciding, source)
    try:
        return family.config_of(shapes, metadata or {}, source)
    except CheckpointError:
        raise
    except TooManyBlocks as error:
        reason = f"it has {error.count} blocks, and an MMDiT at most {MAX_BLOCKS}"
        raise UnknownModelError(source, reason, family.needed) from error
    except ValueError as error:
        raise UnknownModelError(source, f"its tensors fit no MMDiT ({error})", family.needed) from error


def missing_tensors(source: object, names: list[str], besides: str = "") -> TensorsError:
    """The error for missing tensors. Args: besides, what else is wrong."""
    right = "The file is not whole: take a complete one"
    return TensorsError(source, f"{are(len(names))} missing: {listing(names)}{besides}", right, names=names)
