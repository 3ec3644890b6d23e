"""The core's model as an ordinary ComfyUI MODEL, with LoRA keys and memory estimates."""

from __future__ import annotations

import json
import logging
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

from ....mmdit_core.checkpoints.header import read_header
from ....mmdit_core.checkpoints.load import load_checkpoint
from ....mmdit_core.config import MMDiTConfig
from ....mmdit_core.models.adaln import TILE, row_width
from ....mmdit_core.models.sd3 import MMDiT
from .. import patching
from . import offloading

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

    def __init__(self, model_config, config: MMDiTConfig):
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, unet_model=partial(_build, config)
        )
        # Computed here: other nodes may exchange the diffusion model.
        self._row_width = row_width(self.diffusion_model)

    def memory_required(self, *args, **kwargs):
        """As ComfyUI's SD3, and the AdaLN cache: one tile of its table."""
        cache = TILE * self._row_width * self.get_dtype_inference().itemsize
        return super().memory_required(*args, **kwargs) + cache


def _build(config: MMDiTConfig, *, operations, dtype=None, **_: Any) -> ComfyMMDiT:
    # Without memory: the tensors of the file are assigned later. ComfyUI's description of the model, which comes as the
    # other arguments, adds nothing to the config.
    return ComfyMMDiT(config, "meta", dtype, operations, comfy.ldm.modules.attention.optimized_attention)


def comfy_config(config: MMDiTConfig, metadata: Mapping[str, str]) -> comfy.supported_models.SD3:
    """ComfyUI's description of the model. Metadata of the file may hold its shift and the colours of its preview."""
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
    if "mmdit.shift" in metadata:
        described.sampling_settings["shift"] = float(metadata["mmdit.shift"])
    if "mmdit.latent_rgb_factors" in metadata:
        preview = json.loads(metadata["mmdit.latent_rgb_factors"])
        described.latent_format.latent_rgb_factors = preview["factors"]
        described.latent_format.latent_rgb_factors_bias = preview["bias"]
        described.latent_format.taesd_decoder_name = None  # SD3's preview decoder does not fit this VAE
    return described


def load_model(path: str, weight_dtype: str = "default", disable_dynamic: bool = False):
    """Load the transformer of a checkpoint as a MODEL.

    Args: path of a safetensors file in any layout that the core loads; weight_dtype, a key of WEIGHT_DTYPES;
        disable_dynamic, ComfyUI's request for a patcher without dynamic loading.
    Returns: a ModelPatcher.
    Raises: CheckpointError.
    """
    config, state_dict = load_checkpoint(path, allow_mixed=True)
    described = comfy_config(config, read_header(path).metadata)
    described.optimizations["fp8"] = weight_dtype == "fp8_e4m3fn_fast"
    device = comfy.model_management.get_torch_device()
    dtype = WEIGHT_DTYPES[weight_dtype] or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict),
        supported_dtypes=described.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(state_dict),
    )
    cast = comfy.model_management.unet_manual_cast(dtype, device, described.supported_inference_dtypes)
    described.set_inference_dtype(dtype, cast, device=device)

    for name, tensor in state_dict.items():
        # No layer casts the positions, so fp8 would lose their precision.
        held = torch.bfloat16 if name == "pos_embed" and dtype.itemsize == 1 else dtype
        state_dict[name] = tensor.to(held)
    model = MMDiTBase(described, config)
    model.diffusion_model.load_state_dict(state_dict, strict=True, assign=True)
    model.diffusion_model.requires_grad_(False)
    log.info("%s: weights in %s, computed in %s on %s", path, dtype, cast or dtype, device)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher_class = offloading.adaln_last(patcher_class)
    patcher = patcher_class(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    patching.install(patcher)
    patcher.cached_patcher_init = (load_model, (path, weight_dtype))
    return patcher


def core_config(model) -> MMDiTConfig | None:
    """The config of a MODEL whose diffusion model is the core's; None for ComfyUI's own models."""
    core = model.model.diffusion_model
    return core.config if isinstance(core, MMDiT) else None
