"""Float8 weights with a scale for each layer: a layer's weight is its float8 weight times its scale.

Files store the scale of a layer L as L.scale_weight, with one tensor `scaled_fp8` for the whole model, or as
L.weight_scale, with L.comfy_quant (a JSON text as bytes) or an entry for L in the metadata "_quantization_metadata".
Source: the published files and comfy/utils.py (convert_old_quants) of ComfyUI.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bounded_json import MOST_TEXT, parse
from .errors import TensorsError, UnreadableError, are, listing
from .header import Header, TensorInfo

MARKER = "scaled_fp8"  # one tensor of a model; of two elements if a layer has to multiply in full precision
METADATA = "_quantization_metadata"
AS_PUBLISHED = TensorsError.usual
FORMATS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_ROLES = {
    "scale_weight": "weight_scale",
    "weight_scale": "weight_scale",
    "scale_input": "input_scale",
    "input_scale": "input_scale",
    "comfy_quant": "comfy_quant",
}
# Tensors that only other formats have: 4-bit and 8-bit integers, bitsandbytes, SVDQuant.
_OTHER_FORMATS = re.compile(
    r"(.*\.)?(weight_scale_2|pre_quant_scale|absmax|quant_map|quant_state\..*|SCB|qweight|qzeros|wscales|wzeros)"
)


class QuantisedError(TensorsError):
    """The weights are quantised in a format that is not float8 with a scale for each layer."""


class ScaledLayer(NamedTuple):
    """A layer with a float8 weight. Names are those in the file.

    Fields: weight; scale; input_scale, of its input, None to take it from the input; settings, ComfyUI's: "format" and
    "full_precision_matrix_mult".
    """

    weight: str
    scale: str
    input_scale: str | None
    settings: Mapping[str, Any]


def is_quantisation(name: str) -> bool:
    """Whether a tensor, by its name, tells how weights are quantised."""
    leaf = name.rpartition(".")[2]
    return leaf in _ROLES or leaf == MARKER or _OTHER_FORMATS.fullmatch(name) is not None


def scaled_layers(
    header: Header, names: Mapping[str, str], prefix: str, read: Callable[[TensorInfo], bytes | bytearray]
) -> dict[str, ScaledLayer]:
    """The layers of a model that have a scale, by name.

    Args: names, name in the model -> name in the file; prefix of the model's names in the file; read, a tensor's bytes.
    Raises: QuantisedError for another format; TensorsError for scales that fit no weight; UnreadableError for settings
        that are no JSON.
    """
    others = [stored for name, stored in names.items() if _OTHER_FORMATS.fullmatch(name)]
    if others:
        raise _other_format(header, f"{are(len(others))} of another format: {listing(others)}", others)
    roles: dict[str, dict[str, str]] = {}
    for name, stored in names.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in _ROLES:
            roles.setdefault(layer, {})[_ROLES[leaf]] = stored
    given = _settings_of_metadata(header, prefix)  # also of layers of the file's other parts
    full_precision = MARKER in names and header.tensors[names[MARKER]].shape == (2,)
    layers = {}
    for layer in given:
        if f"{layer}.weight" in names:
            roles.setdefault(layer, {})
    for layer, found in roles.items():
        settings = dict(given.get(layer, {}))
        if "comfy_quant" in found:
            settings = _settings_of_tensor(header, found["comfy_quant"], read)
        weight = names.get(f"{layer}.weight", "")
        dtype = header.tensors[weight].dtype if weight else ""
        settings.setdefault("format", FORMATS.get(dtype, dtype))
        if settings["format"] not in FORMATS.values():
            wrong = f"{weight or layer} has the format {settings['format']!s:.60}"
            raise _other_format(header, wrong, [weight or layer])
        if dtype in FORMATS and settings["format"] != FORMATS[dtype]:
            wrong = f"{prefix}{layer} is named {settings['format']!s:.60}, but its weight is {dtype}"
            raise TensorsError(header.source, wrong, names=[weight])
        if "weight_scale" not in found or dtype not in FORMATS:
            lack = "it has no scale" if dtype in FORMATS else f"its weight is {dtype or 'missing'}, not float8"
            raise TensorsError(header.source, f"{prefix}{layer} is named as quantised, but {lack}", names=[weight])
        for name in (found["weight_scale"], found.get("input_scale", found["weight_scale"])):
            scale = header.tensors[name]
            if math.prod(scale.shape) != 1 or scale.dtype not in ("F32", "F16", "BF16"):
                wrong = f"{name} is {list(scale.shape)} {scale.dtype}; expected one floating-point number"
                raise _other_format(header, wrong, [name])
        if full_precision:
            settings["full_precision_matrix_mult"] = True
        layers[layer] = ScaledLayer(weight, found["weight_scale"], found.get("input_scale"), settings)
    return layers


def dequantised(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of a layer, computed in float32. weight float8 [out, in], scale of one element."""
    return (weight.float() * scale.float()).to(dtype)


def as_tensors(layer: str, found: ScaledLayer, scale: Tensor, input_scale: Tensor | None) -> dict[str, Tensor]:
    """What ComfyUI's quantised layers load beside the weight, by name."""
    text = json.dumps(dict(found.settings)).encode()
    tensors = {
        f"{layer}.weight_scale": scale.float().reshape(()),
        f"{layer}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8),
    }
    # ComfyUI's older files store 1 where there is none.
    if input_scale is not None and float(input_scale) != 1.0:
        tensors[f"{layer}.input_scale"] = input_scale.float().reshape(())
    return tensors


def _settings_of_metadata(header: Header, prefix: str) -> dict[str, Mapping[str, Any]]:
    if METADATA not in header.metadata:
        return {}
    layers = _parsed(header, f"the metadata {METADATA}", header.metadata[METADATA]).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(each, dict) for each in layers.values()):
        raise UnreadableError(header.source, f"the metadata {METADATA} has no layers", AS_PUBLISHED)
    return {name.removeprefix(prefix): settings for name, settings in layers.items()}


def _settings_of_tensor(header: Header, name: str, read: Callable[[TensorInfo], bytes | bytearray]) -> dict[str, Any]:
    info = header.tensors[name]
    size = info.end - info.start
    if size > MOST_TEXT:
        found = f"{name} has {size} bytes, and a JSON text at most {MOST_TEXT}"
        raise UnreadableError(header.source, found, AS_PUBLISHED)
    return _parsed(header, name, read(info))


def _parsed(header: Header, name: str, text: str | bytes | bytearray) -> dict[str, Any]:
    try:
        values = parse(text)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        return values
    except ValueError as error:
        raise UnreadableError(header.source, f"{name} cannot be read ({error!s:.200})", AS_PUBLISHED) from error


def _other_format(header: Header, found: str, names: list[str]) -> QuantisedError:
    right = "Only float8 with one scale for each layer is read here: take the bf16, the fp16 or an fp8 version"
    return QuantisedError(header.source, f"the weights are quantised: {found}", right, names=names)
