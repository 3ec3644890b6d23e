"""The text encoders and the VAE of a checkpoint, as ComfyUI's CLIP and VAE."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import comfy.diffusers_convert
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.utils
import folder_paths
import torch

from ....mmdit_core.checkpoints.detect import Part, components
from ....mmdit_core.checkpoints.errors import TensorsError, UnreadableError, are, listing
from ....mmdit_core.checkpoints.header import Header, read_header
from ....mmdit_core.checkpoints.load import DTYPES, READABLE, load_component, read_bytes, read_one
from ....mmdit_core.checkpoints.quantised import as_tensors, dequantised, is_quantisation, scaled_layers
from ....mmdit_core.text.encoders import TextWidths, assemble
from ..frontend.progress import raise_if_cancelled
from .metadata import TEXT, read_metadata
from .part_checks import WHOLE, check_tensors

ENCODERS = ("clip_l", "clip_g", "t5xxl")
# What SD3 never computes with: files lack it, and ComfyUI then saves whatever was in memory.
UNUSED = ("logit_scale", "clip_l.transformer.text_projection.weight")
DIFFUSERS_VAE = "decoder.up_blocks.0.resnets.0.norm1.weight"


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


def refuse_stand_in(component: Any) -> None:
    """Raises: StandInError for a stand-in: what will be used later fails now."""
    if isinstance(component, StandIn):
        raise StandInError(component._message)


class CancellableData(dict[str, Any]):
    """Data of tokenizers. ComfyUI reads it for each of the three that it makes, which take a second together."""

    def get(self, *key_and_default: Any) -> Any:
        """As of a dict. Raises: ComfyUI's interrupt if the run is cancelled."""
        raise_if_cancelled()
        return super().get(*key_and_default)


class SizedTextEncoders(comfy.text_encoders.sd3_clip.SD3ClipModel):
    """SD3's three encoders at any widths; ComfyUI's class joins them at 4096 channels only."""

    def __init__(
        self,
        *,
        configs: Mapping[str, dict[str, Any]],
        present: Collection[str],
        device="cpu",
        dtype=None,
        model_options=None,
    ):
        options = dict(model_options or {})
        options.update({f"{name}_model_config": dict(values) for name, values in configs.items()})
        parts = {"clip_l": "clip_l" in present, "clip_g": "clip_g" in present, "t5": "t5xxl" in present}
        super().__init__(**parts, device=device, dtype=dtype, model_options=options)
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


def load_clip(path: str | PathLike[str] | Header, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load the text encoders of a checkpoint.

    The metadata `mmdit.text` gives the sizes of encoders that are not of SD3's.
    Args: path as for `read_header`; disable_dynamic, ComfyUI's request for a patcher without dynamic loading.
    Raises: NoTextEncoders; UnknownTextEncoders; CheckpointError, also for tensors that are missing, of a wrong shape or
        dtype, or not finite.
    """
    header = read_header(path)
    found = components(header)
    state_dict: dict[str, torch.Tensor] = {}
    # An encoder, and not a tensor that was left of one, has matrices.
    present = {name for name in ENCODERS if name in found and _has_matrices(header, found[name])}
    for name in present:
        state_dict |= _read_encoder(header, name, found[name])
    if not state_dict:
        raise NoTextEncoders(header.source.name)
    text = read_metadata(header).text
    plain = {f"text_encoders.{name}": tensor for name, tensor in state_dict.items() if not is_quantisation(name)}
    scaled = len(plain) < len(state_dict)
    sd3 = comfy.supported_models.SD3({})
    if _has_sd3_sizes(state_dict):
        target = sd3.clip_target({f"text_encoders.{name}": tensor for name, tensor in state_dict.items()})
        _check_encoders(header, sd3.clip_target(plain), state_dict)
    elif text is not None:
        target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, SizedTextEncoders)
        target.params = {"configs": text, "present": present}
        _check_encoders(header, target, state_dict)
    else:
        raise UnknownTextEncoders(header.source.name)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data=CancellableData(state_dict),
        parameters=comfy.utils.calculate_parameters(state_dict),
        state_dict=state_dict,
        model_options={"t5xxl_quantization_metadata": {"mixed_ops": True}} if scaled else {},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_clip_patcher, (str(header.source),))
    return clip


def _clip_patcher(path: str, disable_dynamic: bool = False) -> Any:
    """For ComfyUI, which loads text encoders again for another GPU and for hooks."""
    return load_clip(path, disable_dynamic).patcher


def _vae_patcher(path: str, disable_dynamic: bool = False) -> Any:
    """For ComfyUI, which loads a VAE again for another GPU; it has no VAE without dynamic loading."""
    return load_vae(path).patcher


def _has_matrices(header: Header, part: Part) -> bool:
    infos = (header.tensors[name] for name in part.names.values())
    return any(len(info.shape) == 2 and info.dtype in DTYPES for info in infos)


def _require_readable(header: Header, name: str, part: Part) -> None:
    """Raises: TensorsError for a tensor of a dtype that torch does not compute with."""
    wrong = [stored for stored in part.names.values() if header.tensors[stored].dtype not in READABLE]
    if wrong:
        found = f"unsupported dtype in its {name}: {wrong[0]} is {header.tensors[wrong[0]].dtype}"
        raise TensorsError(header.source, found, WHOLE, names=wrong)


def _read_encoder(header: Header, name: str, part: Part) -> dict[str, torch.Tensor]:
    """The tensors of a text encoder by ComfyUI's names.

    ComfyUI has quantised layers for T5 alone: of the CLIPs the scales are multiplied out, in float32.
    Raises: TensorsError for a dtype or a quantisation that is not read.
    """
    _require_readable(header, name, part)
    layers = scaled_layers(header, part.names, part.prefix, read_bytes)
    # Quantised layers keep what they are given, whatever ComfyUI copies.
    copy = comfy.utils.DISABLE_MMAP or bool(layers)
    tensors = {
        key: tensor for key, tensor in load_component(header, part.prefix, copy=copy) if not is_quantisation(key)
    }
    for layer, scaled in layers.items():
        scale = read_one(header.tensors[scaled.scale])
        if name == "t5xxl" and header.tensors[scaled.weight].shape[1:2]:
            given = None if scaled.input_scale is None else read_one(header.tensors[scaled.input_scale])
            tensors |= as_tensors(layer, scaled, scale, given)
        else:
            tensors[f"{layer}.weight"] = dequantised(tensors[f"{layer}.weight"], scale, torch.float32)
    return {f"{name}.transformer.{key}": tensor for key, tensor in tensors.items()}


def _check_encoders(header: Header, target: Any, state_dict: Mapping[str, torch.Tensor]) -> None:
    try:
        model = target.clip(device=torch.device("meta"), dtype=torch.float32, model_options={}, **target.params)
    except Exception as error:  # the metadata may hold anything
        found = f"the metadata {TEXT} cannot be used: it describes no text encoders ({error!r:.200})"
        raise UnreadableError(header.source, found, "Take the original file") from error
    expected = model.state_dict()
    absent = {name for name in ENCODERS if getattr(model, name) is None}
    lost = [
        f"{key}.final_layer_norm.weight" for key in absent if any(each.startswith(f"{key}.") for each in state_dict)
    ]
    if lost:
        raise TensorsError(header.source, f"{are(len(lost))} missing in its text encoders: {listing(lost)}", WHOLE)
    check_tensors(header, "text encoders", "text_encoders.", state_dict, expected, UNUSED)
    blocks = [name for name in state_dict if name not in expected and re.search(r"\.(layers|block)\.\d+\.", name)]
    blocks = [name for name in blocks if not is_quantisation(name)]
    if blocks and target.params:
        found = f"its text encoders have more than the metadata {TEXT} says: {listing(blocks)}"
        raise TensorsError(header.source, found, "Take the original file", names=blocks)


def _has_sd3_sizes(state_dict: Mapping[str, torch.Tensor]) -> bool:
    sd3 = TextWidths()
    widths = {
        "clip_l.transformer.text_model.final_layer_norm.weight": sd3.clip_l,
        "clip_g.transformer.text_model.final_layer_norm.weight": sd3.clip_g,
        "t5xxl.transformer.encoder.final_layer_norm.weight": sd3.context,
    }
    return all(state_dict[name].shape == (width,) for name, width in widths.items() if name in state_dict)


def load_vae(path: str | PathLike[str] | Header) -> comfy.sd.VAE:
    """Load the VAE of a checkpoint.

    Args: path as for `read_header`.
    Raises: NoVAE; CheckpointError, also for tensors that are missing, of a wrong shape or dtype, or not finite.
    """
    header = read_header(path)
    part = components(header).get("vae")
    if part is None:
        raise NoVAE(header.source.name)
    _require_readable(header, "VAE", part)
    tensors = dict(load_component(header, part.prefix, copy=comfy.utils.DISABLE_MMAP))
    try:
        # A copy: ComfyUI renames tensors of the diffusers layout in it.
        vae = comfy.sd.VAE(sd=dict(tensors), metadata=dict(header.metadata))
        vae.throw_exception_if_invalid()
    except Exception as error:  # ComfyUI raises what torch raises
        found = f"its VAE ({part.prefix}*) cannot be loaded: {' '.join(str(error).split())[:300]}"
        raise TensorsError(header.source, found, WHOLE) from error
    # As ComfyUI renames the diffusers layout.
    named = comfy.diffusers_convert.convert_vae_state_dict(dict(tensors)) if DIFFUSERS_VAE in tensors else tensors
    check_tensors(header, "VAE", part.prefix, named, vae.first_stage_model.state_dict())
    vae.patcher.cached_patcher_init = (_vae_patcher, (str(header.source),))
    return vae


def decode_image(vae, latent: torch.Tensor) -> torch.Tensor:
    """Decode the first image of a latent, or the first frame of a video.

    Returns: [H, W, 3] in [0, 1], on the CPU.
    Raises: ComfyUI's interrupt if the run is cancelled, also between two layers of the VAE.
    """
    with _cancellable(getattr(vae, "first_stage_model", None)):
        decoded = vae.decode(latent)
    return decoded.reshape(-1, *decoded.shape[-3:])[0].float().cpu()


@contextmanager
def _cancellable(network: Any) -> Iterator[None]:
    """A cancel ends a network's forward at its next layer while the body runs; ComfyUI checks between decodes only.

    A compiled network is left alone: it would be compiled again with the hooks.
    """
    layers = list(network.modules()) if isinstance(network, torch.nn.Module) else []
    if any(hasattr(layer, "_orig_mod") or layer._compiled_call_impl is not None for layer in layers):
        layers = []
    hooks = [layer.register_forward_pre_hook(lambda *_: raise_if_cancelled()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
