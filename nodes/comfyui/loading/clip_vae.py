"""The text encoders and the VAE of a checkpoint, as ComfyUI's CLIP and VAE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.utils
import folder_paths
import torch

from ....mmdit_core.checkpoints.detect import components
from ....mmdit_core.checkpoints.header import read_header
from ....mmdit_core.checkpoints.load import load_component
from ....mmdit_core.text.encoders import TextWidths, assemble

ENCODERS = ("clip_l", "clip_g", "t5xxl")


class ComponentError(ValueError):
    """A checkpoint cannot provide a component. Attribute: file, the checkpoint's name."""

    def __init__(self, file: str):
        self.file = file
        super().__init__(f"{file}: {type(self).__doc__}")


class NoTextEncoders(ComponentError):
    """The checkpoint has no text encoders."""


class UnknownTextEncoders(ComponentError):
    """The text encoders do not have SD3's sizes, and the metadata does not give theirs."""


class NoVAE(ComponentError):
    """The checkpoint has no VAE."""


class StandInError(ValueError, AttributeError):
    """A stand-in was used. Also an AttributeError, so that `hasattr` on the stand-in is False instead of an error."""


class StandIn:
    """Takes the place of a component that a checkpoint cannot provide: only its use is an error."""

    def __init__(self, message: str):
        self._message = message

    def __getattr__(self, name: str) -> Any:
        raise StandInError(self._message)


class SizedTextEncoders(comfy.text_encoders.sd3_clip.SD3ClipModel):
    """SD3's three encoders at any widths; ComfyUI's class joins them at 4096 channels only."""

    def __init__(self, *, configs: Mapping[str, dict[str, Any]], device="cpu", dtype=None, model_options=None):
        options = dict(model_options or {})
        options.update({f"{name}_model_config": dict(values) for name, values in configs.items()})
        super().__init__(clip_l=True, clip_g=True, t5=True, device=device, dtype=dtype, model_options=options)
        self.widths = TextWidths(
            clip_l=configs["clip_l"]["hidden_size"],
            clip_g=configs["clip_g"]["hidden_size"],
            context=configs["t5xxl"]["d_model"],
        )

    def encode_token_weights(self, token_weight_pairs):
        """Encode tokens. Returns: context, pooled and extra options, as ComfyUI's text models do."""
        encoded = {}
        for name, key in (("clip_l", "l"), ("clip_g", "g"), ("t5xxl", "t5xxl")):
            encoder, tokens = getattr(self, name), token_weight_pairs[key]
            encoded[name] = encoder.encode_token_weights(tokens) if encoder is not None and len(tokens) else None
        t5, device = encoded["t5xxl"], comfy.model_management.intermediate_device()
        t5 = None if t5 is None else t5[0]
        return *assemble(encoded["clip_l"], encoded["clip_g"], t5, widths=self.widths, device=device), {}


def load_clip(path: str | PathLike[str]) -> comfy.sd.CLIP:
    """Load the text encoders of a checkpoint.

    The metadata `mmdit.text` gives the encoders' sizes; a file without it has SD3's.
    Raises: NoTextEncoders; UnknownTextEncoders; CheckpointError.
    """
    header = read_header(path)
    state_dict: dict[str, torch.Tensor] = {}
    for name in ENCODERS:
        if name in components(header):
            prefix = f"{name}.transformer."
            state_dict.update({prefix + key: value for key, value in load_component(path, f"text_encoders.{prefix}")})
    if not state_dict:
        raise NoTextEncoders(header.source.name)
    if "mmdit.text" in header.metadata:
        target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, SizedTextEncoders)
        target.params = {"configs": json.loads(header.metadata["mmdit.text"])}
    elif _has_sd3_sizes(state_dict):
        sd3 = comfy.supported_models.SD3({})
        target = sd3.clip_target({f"text_encoders.{name}": tensor for name, tensor in state_dict.items()})
    else:
        raise UnknownTextEncoders(header.source.name)
    return comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data=state_dict,
        parameters=comfy.utils.calculate_parameters(state_dict),
        state_dict=state_dict,
    )


def _has_sd3_sizes(state_dict: Mapping[str, torch.Tensor]) -> bool:
    sd3 = TextWidths()
    widths = {
        "clip_l.transformer.text_model.final_layer_norm.weight": sd3.clip_l,
        "clip_g.transformer.text_model.final_layer_norm.weight": sd3.clip_g,
        "t5xxl.transformer.encoder.final_layer_norm.weight": sd3.context,
    }
    return all(state_dict[name].shape == (width,) for name, width in widths.items() if name in state_dict)


def load_vae(path: str | PathLike[str]) -> comfy.sd.VAE:
    """Load the VAE of a checkpoint. Raises: NoVAE; CheckpointError."""
    header = read_header(path)
    if "vae" not in components(header):
        raise NoVAE(header.source.name)
    vae = comfy.sd.VAE(sd=dict(load_component(path, "first_stage_model.")), metadata=dict(header.metadata))
    vae.throw_exception_if_invalid()
    return vae


def decode_image(vae, latent: torch.Tensor) -> torch.Tensor:
    """Decode the first image of a latent, or the first frame of a video. Returns: [H, W, 3] in [0, 1], on the CPU."""
    decoded = vae.decode(latent)
    return decoded.reshape(-1, *decoded.shape[-3:])[0].float().cpu()
