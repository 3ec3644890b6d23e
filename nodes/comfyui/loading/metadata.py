"""What a file's metadata say of the model in it, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ....mmdit_core.checkpoints.bounded_json import parse
from ....mmdit_core.checkpoints.errors import UnreadableError
from ....mmdit_core.checkpoints.header import Header
from ....mmdit_core.config import KNOWN_MODELS, MMDiTConfig

SHIFT, PREVIEW, TEXT, CONFIG = "mmdit.shift", "mmdit.latent_rgb_factors", "mmdit.text", "mmdit.config"
WIDTHS = {"clip_l": "hidden_size", "clip_g": "hidden_size", "t5xxl": "d_model"}


class Preview(NamedTuple):
    """The colours of a preview: factors, [red, green, blue] of each latent channel; bias of the three."""

    factors: list[list[float]]
    bias: list[float]


class Metadata(NamedTuple):
    """Each None if the file does not say it. text: the config of each text encoder."""

    shift: float | None
    preview: Preview | None
    text: Mapping[str, Mapping[str, Any]] | None


def read_metadata(header: Header, channels: int | None = None) -> Metadata:
    """The metadata of a file. Args: channels of the latent, None if unknown.

    Raises: UnreadableError with the file and the key for a value that cannot be used.
    """
    return Metadata(
        _value(header, SHIFT, _shift),
        _value(header, PREVIEW, lambda text: _preview(text, channels)),
        _value(header, TEXT, _text),
    )


def says_shift(header: Header, config: MMDiTConfig | None) -> bool:
    """Whether the shift of a model is known: from its metadata, or because it is a published one."""
    return SHIFT in header.metadata or config in KNOWN_MODELS.values()


def kept_metadata(header: Header, config: MMDiTConfig) -> dict[str, str]:
    """What a saved model takes along: what no tensor's name or shape says."""
    kept = {key: header.metadata[key] for key in (SHIFT, PREVIEW, TEXT, CONFIG) if key in header.metadata}
    if config.qk_norm is None:  # a diffusers file says its heads in another way
        kept[CONFIG] = json.dumps({"num_heads": config.num_heads})
    return kept


def _value(header: Header, key: str, parse: Callable[[str], Any]) -> Any:
    if key not in header.metadata:
        return None
    try:
        return parse(header.metadata[key])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        right = "Take the original file, or remove this entry of its metadata"
        raise UnreadableError(header.source, f"the metadata {key} cannot be used ({error!s:.200})", right) from error


def _shift(text: str) -> float:
    shift = float(text)
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"{text} is no shift, which is a number above 0")
    return shift


def _preview(text: str, channels: int | None) -> Preview:
    values = parse(text)
    rows = [_colours(row) for row in values["factors"]]
    if channels is not None and len(rows) != channels:
        raise ValueError(f"it has colours of {len(rows)} channels; the latent has {channels}")
    return Preview(rows, _colours(values["bias"]))


def _colours(row: Any) -> list[float]:
    colours = [float(value) for value in row]
    if len(colours) != 3 or not all(map(math.isfinite, colours)):
        raise ValueError(f"{row!s:.60} are not three numbers")
    return colours


def _text(text: str) -> dict[str, dict[str, Any]]:
    configs = parse(text)
    for name, width in WIDTHS.items():
        if type(configs[name][width]) is not int or configs[name][width] < 1:
            raise ValueError(f"{width} of {name} is {configs[name][width]!r}; it must be a whole number above 0")
    for name, heads, layers in (
        *((name, "num_attention_heads", "num_hidden_layers") for name in ("clip_l", "clip_g")),
        ("t5xxl", "num_heads", "num_layers"),
    ):
        for key in (heads, layers):
            if type(configs[name][key]) is not int or configs[name][key] < 1:
                raise ValueError(f"{key} of {name} is {configs[name][key]!r}; it must be a whole number above 0")
        if name != "t5xxl" and configs[name][WIDTHS[name]] % configs[name][heads]:
            raise ValueError(
                f"{heads} of {name} is {configs[name][heads]}; it must divide {configs[name][WIDTHS[name]]}"
            )
    return configs
