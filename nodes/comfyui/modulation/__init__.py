"""The modulation layers of ComfyUI's networks: linear layers that turn a timestep's vector into shifts and scales.

They hold up to a third of the weights, and a run needs few of their outputs: a row for each timestep and conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ....mmdit_core.models.sd3 import MMDiT
from ..families import SUPPORTED, family_of, network_of, why_refused

MEMORY_MB = 512  # of a run's table, where no node sets another limit
SMALL = "of its weights are modulation layers: not worth a table"
ONE_LAYER = "one layer makes the modulation of all its blocks, as in Wan 2.1: not worth a table"
# Families without a table -> why. Fractions of published models: `python -m benchmarks.weights`.
NO_TABLE = {
    "FLUX.2": f"2.0 to 4.1% {SMALL}",
    "Ideogram 4": f"3.5% {SMALL}",
    "Chroma": f"3.1% {SMALL}",
    "Chroma Radiance": f"2.9% {SMALL}",
    "Z-Image": f"2.1% {SMALL}",
    "Krea 2": f"1.8% {SMALL}",
    "ERNIE-Image": f"1.7% {SMALL}",
    "LTX-Video": f"0.8 to 1.3% {SMALL}",
    "LTX-2": f"1.2% {SMALL}",
    "Wan 2.1, 2.2": f"1.0 to 1.1% {SMALL}",
    "Wan Camera": f"1.1% {SMALL}",
    **dict.fromkeys(("Wan S2V", "Wan HuMo", "Wan Animate", "WanDancer", "SCAIL", "SCAIL 2"), ONE_LAYER),
    "Z-Image Pixel Space": "its blocks have the small modulation layers of Z-Image",
    "MiniMax H3": "ComfyUI reads its modulation from a table where the file holds one",
    "JoyImage": f"0.6% {SMALL}",
    "Mochi": "each block makes the input of its modulation layers itself",
    "Anima": "its modulation is two layers in a row",
    "Cosmos-Predict2": "its modulation is two layers in a row",
}


@dataclass(frozen=True)
class PrecomputedModulation:
    """A value on a MODEL: its modulation is computed ahead of the steps. Fields: memory_limit_mb, of the table."""

    memory_limit_mb: int = MEMORY_MB
    does_nothing: bool = False


@dataclass(frozen=True, eq=False)
class Layer:
    """A modulation layer.

    Fields: name, of the linear layer; owner, the module with it that is given the vector; linear, the layer; half, True
    if it is given the first half of the rows where a reference image adds a second half, at timestep 0.
    """

    name: str
    owner: nn.Module
    linear: Any
    half: bool = False


@dataclass(frozen=True)
class Weights:
    """Sizes. Fields: whole, layers: parameters; row, elements of a row of the table; count, of the layers."""

    whole: int
    layers: int
    row: int
    count: int

    @property
    def fraction(self) -> float:
        """The fraction of the weights that the steps do not read."""
        return self.layers / max(self.whole, 1)


def layers_of(base) -> tuple[Layer, ...]:
    """The modulation layers of ComfyUI's model, in order; () for a family without a table."""
    family, network = family_of(base), network_of(base)
    if family is None or not family.modulation:
        return ()
    return find_layers(network, family)


def find_layers(network: nn.Module, family) -> tuple[Layer, ...]:
    """The layers that a family's row names. Another node's module without a linear layer is left alone."""
    found = []
    for name, module in network.named_modules():
        if any(fnmatchcase(name, pattern) for pattern in family.modulation):
            # ComfyUI's quantised layers are no torch.nn.Linear.
            linears = [(own, each) for own, each in module.named_modules(prefix=name) if hasattr(each, "in_features")]
            half = any(fnmatchcase(name, pattern) for pattern in family.half_modulation)
            found += [Layer(own, module, linear, half) for own, linear in linears] if len(linears) == 1 else []
    return tuple(found)


def weights_of(network: nn.Module, layers: tuple[Layer, ...]) -> Weights:
    """The sizes of a network and its modulation layers."""
    whole = sum(weight.numel() for weight in network.parameters())
    own = sum(weight.numel() for layer in layers for weight in layer.linear.parameters())
    return Weights(whole, own, row_width(layers), len(layers))


def row_width(layers: tuple[Layer, ...]) -> int:
    """Elements of a row of a table: the outputs of all layers for one vector."""
    return sum(layer.linear.out_features for layer in layers)


def why_none(base) -> str:
    """Why a model gets no table of its own, in words; "" if it gets one."""
    family = family_of(base)
    if family is None:
        return f"{why_refused(base)}. Models with a table are among {SUPPORTED}"
    if isinstance(network_of(base), MMDiT):
        return "a model of MMDiTLoader computes its modulation once a run with every sampler, without this node"
    if not family.modulation:
        return f"{family.label}: {NO_TABLE[family.label]}"
    return "" if layers_of(base) else f"another node replaced the modulation layers of {family.label}"


def names_last(base) -> tuple[str, ...]:
    """The names of the layers, in ComfyUI's model, that a run with a table reads once."""
    return tuple(f"diffusion_model.{layer.name}" for layer in layers_of(base))


@contextmanager
def replaced(module: Any, make: Callable[[Callable[..., Any]], Callable[..., Any]], name: str = "forward") -> Iterator:
    """An object with another method for a while, put back also after an error. Args: make, of the present method."""
    before = module.__dict__.get(name)
    setattr(module, name, make(getattr(module, name)))
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)
