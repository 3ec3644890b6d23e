"""The sampling of a model in a file (ComfyUI's model_sampling), from the file's header: no weight is read."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.supported_models
import torch

from ....mmdit_core.checkpoints.detect import is_sd3
from ....mmdit_core.checkpoints.errors import CheckpointError
from ....mmdit_core.checkpoints.families import SD3
from ....mmdit_core.checkpoints.header import Header, read_header
from ....mmdit_core.checkpoints.load import check_transformer
from ..run.sampling import shifted
from .model import comfy_config, sd3_config
from .other_models import detect


def read_sampling(path: Path, *, own_loader: bool) -> Any | None:
    """The model_sampling of a flow-matching model in a safetensors file; None for any other file.

    Args: own_loader, True if the pack's loader loads the file, False if one of ComfyUI's does.
    """
    try:
        status = path.stat()
    except OSError:  # gone since it was listed
        return None
    return _read_sampling(str(path), own_loader, status.st_mtime_ns, status.st_size)


def shifted_sampling(shift: float, original: Any | None) -> Any:
    """A model_sampling with another shift. Args: original, the model's, None if unknown."""
    config = comfy.supported_models.SD3({})
    if original is None:
        original = comfy.model_base.model_sampling(config, comfy.model_base.ModelType.FLOW)
    return shifted(original, config, shift)


@lru_cache(maxsize=64)
def _read_sampling(path: str, own_loader: bool, modified: int, size: int) -> Any | None:
    """As read_sampling; time and size are part of the cache's key, so that a changed file is read again."""
    try:
        header = read_header(path)
        if own_loader and is_sd3(header.tensors):
            config = comfy_config(sd3_config(check_transformer(header, (SD3,))), header)
            return comfy.model_base.model_sampling(config, comfy.model_base.ModelType.FLOW)
        sampling = _detect(header)
    except CheckpointError:
        return None
    return sampling if isinstance(sampling, comfy.model_sampling.CONST) else None


def _detect(header: Header) -> Any | None:
    """The model_sampling that ComfyUI's loaders give this file, detected from its tensors' names and shapes."""
    kind = detect(header)
    if kind is None:
        return None
    try:
        kind.config.unet_config["disable_unet_model_creation"] = True
        kind.config.set_inference_dtype(torch.float32, None)
        return kind.config.get_model(kind.tensors, "").model_sampling
    except Exception:  # some models read the tensors' values here
        return None
