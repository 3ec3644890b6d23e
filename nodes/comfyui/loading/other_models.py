"""Files that ComfyUI's own loaders read: the other families, and SD3 in formats that the core does not read."""

from __future__ import annotations

import json
import logging
import math
from logging import root as comfyui_log
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch

from ....mmdit_core.checkpoints.errors import CheckpointError, UnknownModelError
from ....mmdit_core.checkpoints.header import Header, read_header
from ....mmdit_core.checkpoints.load import DTYPES, READABLE, load_component
from ....mmdit_core.checkpoints.names import bare
from ....mmdit_core.checkpoints.quantised import FORMATS, METADATA, is_quantisation
from .. import families
from .model import WEIGHT_DTYPES

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """The model in a file, as ComfyUI detects it from names and shapes.

    Fields: config, ComfyUI's description of the model; tensors, of the model, without memory; renamed, True if it is
    only detected without the names' usual prefixes, which ComfyUI's loaders do not remove; converted, True if ComfyUI
    renames diffusers' names, and the weights' and biases' alone.
    """

    config: Any
    tensors: dict[str, torch.Tensor]
    renamed: bool
    converted: bool = False

    @property
    def name(self) -> str:
        """Its class in `comfy.supported_models`."""
        return type(self.config).__name__


def detect(header: Header) -> Kind | None:
    """The model in a file; None if ComfyUI does not know it."""
    for renamed in (False, True):
        try:
            tensors = {
                bare(name) if renamed else name: torch.empty(
                    info.shape, dtype=READABLE.get(info.dtype, torch.uint8), device="meta"
                )
                for name, info in header.tensors.items()
            }
        except RuntimeError:  # of torch, for sizes whose product overflows
            return None
        config, tensors, converted = _config_of(tensors, dict(header.metadata))
        if config is not None:
            return Kind(config, tensors, renamed, converted)
    return None


def why_not(header: Header, kind: Kind) -> str | None:
    """Why ComfyUI would compute another model from a file's quantised weights without a word; None if it would not."""
    names = {bare(name): info for name, info in header.tensors.items()}
    marks = [name for name in names if is_quantisation(name)]
    if kind.converted and (marks or METADATA in header.metadata):
        return "ComfyUI drops the scales of quantised weights in diffusers' layout"
    for name in marks:
        weight = names.get(f"{name.rpartition('.')[0]}.weight")
        of_float8 = weight is not None and weight.dtype in FORMATS
        if of_float8 and names[name].dtype in DTYPES and math.prod(names[name].shape) > 1 and "scale" in name:
            return f"{name} is {list(names[name].shape)}: ComfyUI multiplies float8 weights by one scale alone"
    for name, info in names.items():
        marked = f"{name.removesuffix('.weight')}.comfy_quant" in names or METADATA in header.metadata
        if name.endswith(".weight") and len(info.shape) > 1 and info.dtype not in DTYPES and not marked:
            return f"{name} is {info.dtype}, and nothing in the file says how it is quantised"
    return None


def _config_of(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> tuple[Any | None, dict[str, torch.Tensor], bool]:
    """ComfyUI's description of a model, its tensors under ComfyUI's names, and whether it has renamed them."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    tensors = comfy.utils.state_dict_prefix_replace(tensors, {prefix: ""}, filter_keys=True) or tensors
    try:
        config = comfy.model_detection.model_config_from_unet(tensors, "", metadata=metadata)
        if config is not None:
            return config, tensors, False
        tensors = comfy.model_detection.convert_diffusers_mmdit(tensors, "") or {}
        return comfy.model_detection.model_config_from_unet(tensors, "") if tensors else None, tensors, True
    except Exception:  # detection fails in many ways on unknown models; their loader reports the error
        return None, tensors, False


def family_label(kind: Kind) -> str:
    """The name of a model's family for people.

    Raises: LookupError with the reason if the nodes of this pack do not act on it.
    """
    for family in families.FAMILIES:
        if kind.name in family.models:
            return family.label
    raise LookupError(families.REFUSED.get(kind.name, "this pack does not know its blocks"))


class Missing(logging.Handler):
    """`with Missing() as missing:` what ComfyUI's loaders tell the log alone: tensors that a file lacks."""

    BEGINNINGS = ("unet missing", "clip missing", "Missing VAE keys", "Missing weight for layer")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reports: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a line that names missing tensors."""
        message = record.getMessage()
        if message.startswith(self.BEGINNINGS):
            self.reports.append(message[:300])

    def __enter__(self) -> Missing:
        comfyui_log.addHandler(self)
        self.before = comfyui_log.level
        comfyui_log.setLevel(min(self.before, logging.WARNING))
        return self

    def __exit__(self, *_: object) -> None:
        comfyui_log.setLevel(self.before)
        comfyui_log.removeHandler(self)


def load_model(path: str, weight_dtype: str = "default", disable_dynamic: bool = False) -> Any:
    """ComfyUI's own MODEL of a file, as its loader of diffusion models gives it; the shards of an index count as one.

    Raises: UnknownModelError if ComfyUI does not know the model or cannot load it.
    """
    header = read_header(path)
    try:
        return _load_model(header, path, weight_dtype, disable_dynamic)
    except CheckpointError:
        raise
    except Exception as error:  # ComfyUI's loaders raise what torch raises
        found = f"ComfyUI cannot load this model ({error!r:.300})"
        raise UnknownModelError(header.source, found, "A newer ComfyUI may; else take another version of it") from error


def _load_model(header: Header, path: str, weight_dtype: str, disable_dynamic: bool) -> Any:
    options: dict[str, Any] = {}
    if (dtype := WEIGHT_DTYPES[weight_dtype]) is not None:
        options |= {"dtype": dtype, "fp8_optimizations": weight_dtype == "fp8_e4m3fn_fast"}
    kind = detect(header)
    one_file = {info.file for info in header.tensors.values()} == {Path(path)}
    dynamic = {"disable_dynamic": True} if disable_dynamic else {}  # older versions have no such argument
    if one_file and kind is not None and not kind.renamed:
        return comfy.sd.load_diffusion_model(path, model_options=options, **dynamic)
    tensors = {bare(name): tensor for name, tensor in load_component(header, "", copy=comfy.utils.DISABLE_MMAP)}
    metadata = dict(header.metadata)
    if METADATA in metadata:
        layers = json.loads(metadata[METADATA])["layers"]
        metadata[METADATA] = json.dumps({"layers": {bare(name): settings for name, settings in layers.items()}})
    patcher = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata=metadata, **dynamic)
    if patcher is None:
        raise UnknownModelError(header.source, "ComfyUI does not know this model", "Take the file of another source")
    patcher.cached_patcher_init = (load_model, (path, weight_dtype))
    return patcher


def load_parts(header: Header, kind: Kind) -> tuple[Any | None, Any | None]:
    """ComfyUI's CLIP and VAE of a checkpoint, each None if the file has none where ComfyUI looks for it.

    Raises: UnknownModelError if ComfyUI cannot load them.
    """
    has_text = any(name.startswith(tuple(kind.config.text_encoder_key_prefix)) for name in header.tensors)
    has_vae = any(name.startswith(tuple(kind.config.vae_key_prefix)) for name in header.tensors)
    if not has_text and not has_vae:
        return None, None
    tensors = dict(load_component(header, "", copy=comfy.utils.DISABLE_MMAP))
    try:
        _, clip, vae, _ = comfy.sd.load_state_dict_guess_config(
            tensors,
            output_model=False,
            output_clip=has_text,
            output_vae=has_vae,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            metadata=dict(header.metadata),
        )
        if vae is not None:
            vae.throw_exception_if_invalid()
    except CheckpointError:
        raise
    except Exception as error:  # ComfyUI's loaders raise what torch raises
        raise UnknownModelError(header.source, f"its text encoders or VAE cannot be loaded ({error!s:.300})") from error
    return clip, vae
