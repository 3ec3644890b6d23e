"""The core's model as an ordinary ComfyUI MODEL, with LoRA keys and memory estimates."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import torch

from ....mmdit_core.checkpoints.families import SD3
from ....mmdit_core.checkpoints.header import SETTINGS, Header, read_header
from ....mmdit_core.checkpoints.load import DTYPES, Transformer, check_transformer, load_checkpoint
from ....mmdit_core.config import MMDiTConfig
from ....mmdit_core.models.adaln import TILE, row_width
from ....mmdit_core.models.sd3 import MMDiT
from .. import patching
from . import offloading
from .metadata import kept_metadata, read_metadata

log = logging.getLogger(__name__)

# The widget's choices -> the dtype of the weights in memory. With "fast", ComfyUI multiplies in fp8 where the GPU can.
WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


class ComfyMMDiT(MMDiT):
    """The core's model with ComfyUI's DIFFUSION_MODEL wrappers around each call, which its own SD3 model lacks."""

    takes_options = True  # an input `options`, see patching

    def forward(
        self,
        x,
        timesteps,
        context=None,
        y=None,
        guidance=None,
        control=None,
        transformer_options: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        """As the core's model; options, if given, replace transformer_options."""
        given = (transformer_options or {}) if options is None else options
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, given)
        if not wrappers:
            return super().forward(x, timesteps, context, y, guidance, control, given, **kwargs)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(super().forward, self, wrappers)
        # A copy of x, because EasyCache adds to it in place and in float32 it is the sampler's own latent. The options
        # come last and by position, where wrappers that are written for ComfyUI's models expect them.
        return run.execute(x.clone(), timesteps, context, y, guidance, control, given, **kwargs)


class MMDiTBase(comfy.model_base.SD3):
    """ComfyUI's SD3 around the core's model. A subclass of SD3, because ComfyUI maps LoRA keys by that class."""

    def __init__(self, model_config, config: MMDiTConfig, metadata: Mapping[str, str]):
        # Without memory: the tensors of the file are assigned later. ComfyUI's quantised layers have no memory for
        # weights either, and put what they load on the device that they are made on.
        device = "cpu" if model_config.quant_config else "meta"
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, unet_model=partial(_build, config, device)
        )
        # Computed here: other nodes may exchange the diffusion model.
        self._row_width = row_width(self.diffusion_model)
        self._metadata = dict(metadata)

    def memory_required(self, *args, **kwargs):
        """As ComfyUI's SD3, and the AdaLN cache: one tile of its table."""
        cache = TILE * self._row_width * self.get_dtype_inference().itemsize
        return super().memory_required(*args, **kwargs) + cache

    def state_dict_for_saving(self, *args, **kwargs):
        """As ComfyUI's SD3, and what the file's metadata said, which ComfyUI's save nodes drop, as a tensor."""
        tensors = super().state_dict_for_saving(*args, **kwargs)
        if self._metadata:
            text = json.dumps(self._metadata).encode()
            tensors[SETTINGS] = torch.tensor(list(text), dtype=torch.uint8)
        return tensors


def sd3_config(found: Transformer) -> MMDiTConfig:
    """The config of a transformer of the SD3 family."""
    assert isinstance(found.config, MMDiTConfig)
    return found.config


def _build(config: MMDiTConfig, where: str, *, operations, dtype=None, **_: Any) -> ComfyMMDiT:
    # ComfyUI's description of the model, which comes as the other arguments, adds nothing to the config.
    return ComfyMMDiT(config, where, dtype, operations, comfy.ldm.modules.attention.optimized_attention)


def comfy_config(config: MMDiTConfig, header: Header) -> comfy.supported_models.SD3:
    """ComfyUI's description of the model. Metadata of the file may hold its shift and the colours of its preview.

    Raises: UnreadableError for metadata that cannot be used.
    """
    described = comfy.supported_models.SD3(
        {
            "in_channels": config.in_channels,
            "patch_size": config.patch_size,
            # ComfyUI's LoRA key maps compute the width as 64 * depth and read the number of blocks from num_blocks.
            "depth": config.hidden_size // 64,
            "num_blocks": config.depth,
            "adm_in_channels": config.pooled_dim,
            "pos_embed_max_size": config.pos_embed_max_size,
            "qk_norm": config.qk_norm,
            "x_block_self_attn_layers": list(config.dual_attention),
        }
    )
    metadata = read_metadata(header, config.in_channels)
    if metadata.shift is not None:
        described.sampling_settings["shift"] = metadata.shift
    if metadata.preview is not None:
        described.latent_format.latent_rgb_factors = metadata.preview.factors
        described.latent_format.latent_rgb_factors_bias = metadata.preview.bias
        described.latent_format.taesd_decoder_name = None  # SD3's preview decoder does not fit this VAE
    return described


def load_model(path: str | Header, weight_dtype: str = "default", disable_dynamic: bool = False):
    """Load the transformer of a checkpoint as a MODEL.

    Args: path of a safetensors file in any layout that the core loads, or its header; weight_dtype, a key of
        WEIGHT_DTYPES; disable_dynamic, ComfyUI's request for a patcher without dynamic loading.
    Returns: a ModelPatcher.
    Raises: CheckpointError.
    """
    header = read_header(path)
    found = check_transformer(header, (SD3,))
    config = sd3_config(found)
    described = comfy_config(config, header)
    described.optimizations["fp8"] = weight_dtype == "fp8_e4m3fn_fast"
    scaled = bool(found.scaled) and (WEIGHT_DTYPES[weight_dtype] is None or _is_as_wanted(header, found, weight_dtype))
    if scaled:
        described.quant_config = {"mixed_ops": True}
    device = comfy.model_management.get_torch_device()
    dtype = _weight_dtype(header, found, described, weight_dtype, scaled)
    cast = comfy.model_management.unet_manual_cast(
        None if scaled else dtype, device, described.supported_inference_dtypes
    )
    takes_device = "device" in inspect.signature(described.set_inference_dtype).parameters  # not in ComfyUI 0.24.0
    described.set_inference_dtype(dtype, cast, **({"device": device} if takes_device else {}))

    model = MMDiTBase(described, config, kept_metadata(header, config))
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher_class = offloading.adaln_last(patcher_class)
    patcher = patcher_class(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    # ComfyUI leaves weights mapped to their file only where it loads them dynamically.
    copy = comfy.utils.DISABLE_MMAP or not patcher.is_dynamic()
    converted = dtype if found.scaled and not scaled else None
    state_dict = load_checkpoint(header, dtype=converted, allow_mixed=True, keep_scales=scaled, copy=copy)[1]
    for name, tensor in state_dict.items():
        if scaled and name.rpartition(".")[0] + ".comfy_quant" in state_dict:
            continue
        # No layer casts the positions, so fp8 would lose their precision.
        held = torch.bfloat16 if name == "pos_embed" and dtype.itemsize == 1 else dtype
        state_dict[name] = tensor.to(held)
    model.diffusion_model.load_state_dict(state_dict, strict=True, assign=True)
    model.diffusion_model.requires_grad_(False)
    log.info("%s: weights in %s, computed in %s on %s", header.source, dtype, cast or dtype, device)
    patching.install(patcher)
    patcher.cached_patcher_init = (load_model, (str(header.source), weight_dtype))
    return patcher


def _is_as_wanted(header: Header, found: Transformer, weight_dtype: str) -> bool:
    """Whether all linear layers have scaled weights of the dtype that is asked for: then they stay as they are."""
    linear = {name for rule in found.rules.values() for name in rule.diffusers if len(header.tensors[name].shape) == 2}
    dtypes = {DTYPES[header.tensors[name].dtype] for name in found.scaled}
    return linear <= found.scaled.keys() and dtypes == {WEIGHT_DTYPES[weight_dtype]}


def _weight_dtype(header: Header, found: Transformer, described, weight_dtype: str, scaled: bool) -> torch.dtype:
    """The dtype of the weights in memory; of a file whose weights keep their scales, of the others."""
    wanted = WEIGHT_DTYPES[weight_dtype]
    if wanted is not None and not scaled:
        return wanted
    elements: Counter[str] = Counter()
    for info in (header.tensors[name] for rule in found.rules.values() for name in rule.diffusers):
        elements[info.dtype] += math.prod(info.shape)
    return comfy.model_management.unet_dtype(
        model_params=elements.total(),
        supported_dtypes=described.supported_inference_dtypes,
        weight_dtype=None if scaled else DTYPES[elements.most_common(1)[0][0]],
    )


def core_config(model) -> MMDiTConfig | None:
    """The config of a MODEL whose diffusion model is the core's; None for ComfyUI's own models."""
    core = model.model.diffusion_model
    return core.config if isinstance(core, MMDiT) else None
