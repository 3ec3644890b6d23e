"""How a model in a file would be sampled, told from the file's header: no weight is read."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_detection
import comfy.model_sampling
import comfy.supported_models
import comfy.utils
import torch

from ....mmdit_core.checkpoints.errors import CheckpointError
from ....mmdit_core.checkpoints.header import Header, read_header
from ....mmdit_core.checkpoints.load import DTYPES, check_transformer
from ..run.sampling import shifted
from .model import host_config

PREFIX = ""  # of the tensors once the file's own is gone


def read_sampling(path: Path, *, own_loader: bool) -> Any | None:
    """The host's model_sampling of a flow-matching model in a safetensors file; None for any other file.

    Args: own_loader, whether MMDiTLoader loads it, or one of the host's loaders.
    """
    status = path.stat()
    return _read_sampling(str(path), own_loader, status.st_mtime_ns, status.st_size)


def shifted_sampling(shift: float, like: Any | None) -> Any:
    """The host's model_sampling with a shift. Args: like, of the model; None where it is not known."""
    config = comfy.supported_models.SD3({})
    if like is None:
        like = comfy.model_base.model_sampling(config, comfy.model_base.ModelType.FLOW)
    return shifted(like, config, shift)


@lru_cache(maxsize=64)
def _read_sampling(path: str, own_loader: bool, changed: int, size: int) -> Any | None:
    """Time and size are there so that a changed file is read again."""
    try:
        header = read_header(path)
        if own_loader:
            config, _ = check_transformer(header)
            described = host_config(config, header.metadata)
            return comfy.model_base.model_sampling(described, comfy.model_base.ModelType.FLOW)
        sampling = _detected(header)
    except CheckpointError:
        return None
    return sampling if isinstance(sampling, comfy.model_sampling.CONST) else None


def _detected(header: Header) -> Any | None:
    """What the host would make of these tensors; they have shapes here and no values."""
    tensors = {
        name: torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta") for name, info in header.tensors.items()
    }
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    tensors = comfy.utils.state_dict_prefix_replace(tensors, {prefix: PREFIX}, filter_keys=True) or tensors
    try:
        described = comfy.model_detection.model_config_from_unet(tensors, PREFIX, metadata=header.metadata)
        if described is None:
            tensors = comfy.model_detection.convert_diffusers_mmdit(tensors, PREFIX) or {}
            described = comfy.model_detection.model_config_from_unet(tensors, PREFIX) if tensors else None
        if described is None:
            return None
        described.unet_config["disable_unet_model_creation"] = True
        described.set_inference_dtype(torch.float32, None)
        return described.get_model(tensors, PREFIX).model_sampling
    except Exception:  # another model than the host foresees; it will say so itself when it loads it
        return None
