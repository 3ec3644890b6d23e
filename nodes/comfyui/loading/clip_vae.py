"""Text encoders and VAE of a checkpoint, in the host's own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


class MissingPartError(ValueError, AttributeError):
    """A part that the checkpoint does not hold was used.

    Also an AttributeError, so that the host's `hasattr` probes on the stand-in find nothing instead of failing.
    """


class MissingPart:
    """Stands for an output that the checkpoint cannot fill: the graph runs until something uses it."""

    def __init__(self, message: str):
        self._message = message

    def __getattr__(self, name: str) -> Any:
        raise MissingPartError(self._message)


class SizedTextEncoders(comfy.text_encoders.sd3_clip.SD3ClipModel):
    """The host's three SD3 encoders at widths that a file's metadata gives; the host's own join is fixed at 4096."""

    def __init__(self, *, configs: Mapping[str, dict[str, Any]], device="cpu", dtype=None, model_options=None):
        options = dict(model_options or {})
        options.update({f"{name}_model_config": dict(values) for name, values in configs.items()})
        super().__init__(
            clip_l="clip_l" in configs,
            clip_g="clip_g" in configs,
            t5="t5xxl" in configs,
            device=device,
            dtype=dtype,
            model_options=options,
        )
        self.widths = TextWidths(
            clip_l=configs["clip_l"]["hidden_size"],
            clip_g=configs["clip_g"]["hidden_size"],
            context=configs["t5xxl"]["d_model"],
        )

    def encode_token_weights(self, token_weight_pairs):
        encoded = {}
        for name, key in (("clip_l", "l"), ("clip_g", "g"), ("t5xxl", "t5xxl")):
            encoder, tokens = getattr(self, name), token_weight_pairs[key]
            encoded[name] = encoder.encode_token_weights(tokens) if encoder is not None and len(tokens) else None
        t5 = encoded["t5xxl"]
        context, pooled = assemble(
            encoded["clip_l"],
            encoded["clip_g"],
            None if t5 is None else t5[0],
            widths=self.widths,
            device=comfy.model_management.intermediate_device(),
        )
        return context, pooled, {}


def load_clip(path: str):
    """The checkpoint's text encoders as a host CLIP, or a stand-in that raises on use.

    A file with the metadata `mmdit.text` says its encoders' sizes itself; others have SD3's.
    """
    header = read_header(path)
    present = [name for name in ENCODERS if name in components(header)]
    if not present:
        return MissingPart(
            f"MMDiTLoader: CLIP: {header.source.name} holds no text encoders. Load them with TripleCLIPLoader "
            "(clip_l.safetensors, clip_g.safetensors and t5xxl_fp16.safetensors, or a t5xxl fp8 file, in "
            "models/text_encoders) or with DualCLIPLoader set to sd3, and connect its CLIP in place of this one"
        )
    state_dict: dict[str, torch.Tensor] = {}
    for name in present:
        prefix = f"{name}.transformer."
        state_dict.update({prefix + key: value for key, value in load_component(path, f"text_encoders.{prefix}")})
    if "mmdit.text" not in header.metadata and not _sizes_are_sd3s(state_dict):
        return MissingPart(
            f"MMDiTLoader: CLIP: the text encoders in {header.source.name} are not of SD3's size, and it does not "
            "say how they are built (ComfyUI's save nodes leave that out). Connect the CLIP of the file that it was "
            "made from: a second MMDiTLoader with that file"
        )
    if "mmdit.text" in header.metadata:
        configs = json.loads(header.metadata["mmdit.text"])
        target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, SizedTextEncoders)
        target.params = {"configs": configs}
    else:
        described = comfy.supported_models.SD3({})
        target = described.clip_target({f"text_encoders.{name}": tensor for name, tensor in state_dict.items()})
    return comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data=state_dict,
        parameters=comfy.utils.calculate_parameters(state_dict),
        state_dict=state_dict,
    )


def _sizes_are_sd3s(state_dict: Mapping[str, torch.Tensor]) -> bool:
    widths = {
        "clip_l.transformer.text_model.final_layer_norm.weight": TextWidths().clip_l,
        "clip_g.transformer.text_model.final_layer_norm.weight": TextWidths().clip_g,
        "t5xxl.transformer.encoder.final_layer_norm.weight": TextWidths().context,
    }
    return all(state_dict[name].shape == (width,) for name, width in widths.items() if name in state_dict)


def load_vae(path: str):
    """The checkpoint's VAE as a host VAE, or a stand-in that raises on use."""
    header = read_header(path)
    if "vae" not in components(header):
        return MissingPart(
            f"MMDiTLoader: VAE: {header.source.name} holds no VAE. Load the model's 16-channel VAE with VAELoader "
            "(for SD3 and SD3.5: sd3_vae.safetensors, or diffusion_pytorch_model.safetensors of the release's vae "
            "folder, in models/vae) and connect its VAE in place of this one"
        )
    vae = comfy.sd.VAE(sd=dict(load_component(path, "first_stage_model.")), metadata=dict(header.metadata))
    vae.throw_exception_if_invalid()
    return vae
