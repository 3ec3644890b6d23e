"""Our core as an ordinary host MODEL."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import comfy.latent_formats
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import torch

from ....mmdit_core.checkpoints.detect import names_under
from ....mmdit_core.checkpoints.header import TensorInfo, read_header
from ....mmdit_core.checkpoints.load import DTYPES, check_transformer, load_checkpoint
from ....mmdit_core.config import MMDiTConfig
from ....mmdit_core.models.adaln import row_width
from ....mmdit_core.models.sd3 import MMDiT
from .. import patching
from ..run import adaln_cache as prepared
from . import offloading

# The widget's choices -> how the weights are held. The fast form lets the host multiply in fp8 where the GPU can.
WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


class HostMMDiT(MMDiT):
    """The core's model with the host's wrappers around each call, which its own SD3 model lacks (EasyCache, ...)."""

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
        """As the core's; options, if any, stand in the place of transformer_options."""
        if options is None:
            options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(super().forward, self, wrappers)
        # EasyCache adds to what it is given in place. In float32 that is the very latent that the host goes on with.
        x = x.clone() if wrappers else x
        # The options come last and by position: that is where wrappers written for the host's models look for them.
        return run.execute(x, timesteps, context, y, guidance, control, options, **kwargs)


class MMDiTBase(comfy.model_base.SD3):
    """The host's SD3 around our core. A subclass of SD3, because the host's LoRA key maps ask for that class."""

    def __init__(self, model_config, config: MMDiTConfig):
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, unet_model=partial(_build, config)
        )
        # Asked now: other nodes may put something else in the diffusion model's place.
        self._modulation_width = row_width(self.diffusion_model)

    def memory_required(self, *args, **kwargs):
        # More than the host's own SD3 by what a run prepares.
        ahead = prepared.bytes_of(self._modulation_width, self.get_dtype_inference())
        return super().memory_required(*args, **kwargs) + ahead

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        given = {} if transformer_options is None else transformer_options
        # The host's TorchCompileModel lets torch believe that nothing under the name of transformer_options ever
        # changes. Hooks come and go within a run, so here they go by another name, and torch sees it when they do.
        if isinstance(getattr(self.diffusion_model, "_orig_mod", None), HostMMDiT):
            given, kwargs["options"] = {}, given
        return super()._apply_model(x, t, c_concat, c_crossattn, control, given, **kwargs)


def _build(config: MMDiTConfig, *, operations, dtype=None, **_: Any) -> HostMMDiT:
    # Built without memory; the file's tensors are assigned afterwards. The host's own description of the model, which
    # comes as the other arguments, says nothing that the config does not.
    return HostMMDiT(
        config,
        device="meta",
        dtype=dtype,
        operations=operations,
        attention=comfy.ldm.modules.attention.optimized_attention,
    )


def host_config(config: MMDiTConfig, metadata: Mapping[str, str]) -> comfy.supported_models.SD3:
    """The host's description of the model; a file's metadata may bring its own shift and preview colours."""
    described = comfy.supported_models.SD3(
        {
            "in_channels": config.in_channels,
            "patch_size": config.patch_size,
            # The host's LoRA key maps take the width to be 64 * depth and the number of blocks from num_blocks.
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
    """Load a checkpoint's transformer as a host MODEL.

    Args: path of a safetensors file in any layout the core knows; weight_dtype, a key of WEIGHT_DTYPES.
    Returns: a ModelPatcher.
    Raises: CheckpointError.
    """
    header = read_header(path)
    config, part = check_transformer(header)
    described = host_config(config, header.metadata)
    if weight_dtype == "fp8_e4m3fn_fast":
        described.optimizations["fp8"] = True
    device = comfy.model_management.get_torch_device()
    stored = [header.tensors[name] for name in names_under(header.tensors, part.prefix)]
    dtype = WEIGHT_DTYPES[weight_dtype]
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=sum(math.prod(info.shape) for info in stored),
            supported_dtypes=described.supported_inference_dtypes,
            weight_dtype=_main_dtype(stored),
        )
    cast = comfy.model_management.unet_manual_cast(dtype, device, described.supported_inference_dtypes)
    described.set_inference_dtype(dtype, cast, device=device)

    _, state_dict = load_checkpoint(path, dtype=dtype)
    if dtype.itemsize == 1:
        # Positions are no weights of a layer: nothing brings back what fp8 would take from them.
        state_dict["pos_embed"] = load_checkpoint(path, allow_mixed=True)[1]["pos_embed"].to(torch.bfloat16)
    model = MMDiTBase(described, config)
    model.diffusion_model.load_state_dict(state_dict, strict=True, assign=True)
    model.diffusion_model.requires_grad_(False)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher_class = offloading.last_in(patcher_class)
    patcher = patcher_class(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    patching.install(patcher)
    patcher.cached_patcher_init = (load_model, (path, weight_dtype))
    return patcher


def _main_dtype(stored: Iterable[TensorInfo]) -> torch.dtype:
    """The dtype that most of a file's bytes are in."""
    sizes: Counter[str] = Counter()
    for info in stored:
        sizes[info.dtype] += info.end - info.start
    return DTYPES[sizes.most_common(1)[0][0]]


def core_config(model) -> MMDiTConfig | None:
    """The config of a host MODEL whose diffusion model is our core; None for the host's own models."""
    return getattr(model.model.diffusion_model, "config", None) if _is_core(model) else None


def _is_core(model) -> bool:
    return isinstance(model.model.diffusion_model, MMDiT)
