"""A node pack for tests: values that no node of ComfyUI gives, on an output that fits every input; and a check.

`OddValue` makes the value of a name, some of them from a good one in `base`. `CheckFinite` fails unless all tensors in
what it is given are finite, and shows nothing else.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

import comfy.sd
import comfy.taesd.taesd
import numpy
import torch

ANY = "*"


def _latent(size: tuple[int, ...] = (1, 16, 8, 8), value: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"samples": torch.full(size, value), **more}


def _other(conditioning: Any, **options: Any) -> list[Any]:
    """A conditioning with other options in each entry."""
    return [[context, {**own, **options}] for context, own in conditioning]


def _text(conditioning: Any, change: Callable[[torch.Tensor], Any]) -> list[Any]:
    """A conditioning with another text in each entry."""
    return [[change(context), own] for context, own in conditioning]


def _vae_of_four_channels() -> Any:
    return comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "nan": lambda _: math.nan,
    "inf": lambda _: math.inf,
    "-inf": lambda _: -math.inf,
    "huge int": lambda _: 10**400,
    "huge negative int": lambda _: -(10**400),
    "2**64": lambda _: 2**64,
    "-1": lambda _: -1,
    "0": lambda _: 0,
    "1": lambda _: 1,
    "1.0": lambda _: 1.0,
    "2.5": lambda _: 2.5,
    "1e308": lambda _: 1e308,
    "5e-324": lambda _: 5e-324,
    "-0.0": lambda _: -0.0,
    "true": lambda _: True,
    "numpy int64": lambda _: numpy.int64(2),
    "numpy float32": lambda _: numpy.float32(0.5),
    "numpy float64 nan": lambda _: numpy.float64("nan"),
    "numpy bool": lambda _: numpy.bool_(True),
    "numpy array": lambda _: numpy.array([1.0, 2.0]),
    "tensor": lambda _: torch.tensor(1.0),
    "tensor of two": lambda _: torch.tensor([1.0, 2.0]),
    "complex": lambda _: 1j,
}
TEXTS: dict[str, Callable[[Any], Any]] = {
    "empty text": lambda _: "",
    "long word": lambda _: "a" * 20_000,
    "long text": lambda _: "a red circle " * 1_600,
    "very long text": lambda _: "0, " * 333_333,
    "half a surrogate": lambda _: "a \ud800 circle",
    "null": lambda _: "a\0b",
    "bytes": lambda _: b"red",
}
OTHERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: None,
    "empty list": lambda _: [],
    "list": lambda _: [1, 2.0, "x"],
    "dict": lambda _: {},
    "object": lambda _: object(),
    "as it is": lambda base: base,
}
LATENTS: dict[str, Callable[[Any], Any]] = {
    "latent nan": lambda _: _latent(value=math.nan),
    "latent inf": lambda _: _latent(value=math.inf),
    "latent huge": lambda _: _latent(value=1e30),
    "latent height 0": lambda _: _latent((1, 16, 0, 8)),
    "latent batch 0": lambda _: _latent((0, 16, 8, 8)),
    "latent without samples": lambda _: {"noise_mask": torch.ones(1, 8, 8)},
    "latent none": lambda _: {"samples": None},
    "latent numpy": lambda _: {"samples": numpy.zeros((1, 16, 8, 8))},
    "latent int": lambda _: {"samples": torch.ones(1, 16, 8, 8, dtype=torch.int64)},
    "latent half": lambda _: {"samples": torch.ones(1, 16, 8, 8, dtype=torch.float16)},
    "latent 2-D": lambda _: _latent((8, 8)),
    "latent 3-D": lambda _: _latent((16, 8, 8)),
    "latent video": lambda _: _latent((1, 16, 2, 8, 8)),
    "latent 6-D": lambda _: _latent((1, 16, 1, 1, 8, 8)),
    "latent 4 channels": lambda _: _latent((1, 4, 8, 8)),
    "latent odd size": lambda _: _latent((1, 16, 7, 5)),
    "latent 1 pixel": lambda _: _latent((1, 16, 1, 1)),
    "latent empty, 4 channels": lambda _: _latent((1, 4, 8, 8), 0.0),
    "latent batch": lambda _: _latent((2, 16, 8, 8), batch_index=[3, 1]),
    "latent index []": lambda _: _latent(batch_index=[]),
    "latent index -1": lambda _: _latent(batch_index=[-1]),
    "latent index huge": lambda _: _latent(batch_index=[10**9]),
    "latent index text": lambda _: _latent(batch_index=["a"]),
    "latent index nan": lambda _: _latent(batch_index=[math.nan]),
    "latent index tensor": lambda _: _latent(batch_index=torch.tensor([0])),
    "latent index of three": lambda _: _latent((2, 16, 8, 8), batch_index=[0, 1, 2]),
    "latent empty mask": lambda _: _latent(noise_mask=torch.ones(0, 8, 8)),
    "latent nan mask": lambda _: _latent(noise_mask=torch.full((1, 8, 8), math.nan)),
    "latent 1-D mask": lambda _: _latent(noise_mask=torch.ones(8)),
    "latent 5-D mask": lambda _: _latent(noise_mask=torch.ones(1, 1, 1, 8, 8)),
    "latent huge mask": lambda _: _latent(noise_mask=torch.full((1, 8, 8), 1e30)),
    "latent odd mask": lambda _: _latent(noise_mask=torch.rand(3, 5, 7)),
    "latent bool mask": lambda _: _latent(noise_mask=torch.ones(1, 8, 8, dtype=torch.bool)),
    "latent list mask": lambda _: _latent(noise_mask=[1]),
    "latent ratio nan": lambda _: _latent(value=0.0, downscale_ratio_spacial=math.nan),
    "latent ratio inf": lambda _: _latent(value=0.0, downscale_ratio_spacial=math.inf),
    "latent ratio huge": lambda _: _latent(value=0.0, downscale_ratio_spacial=1e9),
    "latent ratio tiny": lambda _: _latent(value=0.0, downscale_ratio_spacial=1e-9),
    "latent ratio 0": lambda _: _latent(value=0.0, downscale_ratio_temporal=0),
    "latent ratio text": lambda _: _latent(value=0.0, downscale_ratio_spacial="8"),
    "latent resume": lambda _: _latent(mmdit_resume="x"),
    "latent list": lambda _: [_latent()],
}
CONDITIONINGS: dict[str, Callable[[Any], Any]] = {
    "conditioning empty": lambda _: [],
    "conditioning without options": lambda base: [[base[0][0]]],
    "conditioning of texts": lambda _: ["a red circle"],
    "conditioning none": lambda _: [[None, {}]],
    "conditioning without pooled": lambda base: [[context, {"other": 1}] for context, _ in base],
    "conditioning nan": lambda base: _text(base, lambda context: context * math.nan),
    "conditioning huge": lambda base: _text(base, lambda context: context * 1e30),
    "conditioning wide": lambda base: _text(base, lambda context: torch.cat((context, context), -1)),
    "conditioning 2-D": lambda base: _text(base, lambda context: context[0]),
    "conditioning 4-D": lambda base: _text(base, lambda context: context[None]),
    "conditioning no tokens": lambda base: _text(base, lambda context: context[:, :0]),
    "conditioning one token": lambda base: _text(base, lambda context: context[:, :1]),
    "conditioning batch": lambda base: _text(base, lambda context: context.repeat(3, 1, 1)),
    "conditioning int": lambda base: _text(base, lambda context: context.long()),
    "conditioning half": lambda base: _text(base, lambda context: context.half()),
    "pooled nan": lambda base: _other(base, pooled_output=torch.full((1, 64), math.nan)),
    "pooled wide": lambda base: _other(base, pooled_output=torch.ones(1, 65)),
    "pooled 1-D": lambda base: _other(base, pooled_output=torch.ones(64)),
    "pooled 3-D": lambda base: _other(base, pooled_output=torch.ones(1, 2, 64)),
    "pooled list": lambda base: _other(base, pooled_output=[1]),
    "area": lambda base: _other(base, area=(4, 4, 2, 2), strength=1.0),
    "area outside": lambda base: _other(base, area=(8, 8, 100, 100), strength=1.0),
    "area negative": lambda base: _other(base, area=(-4, 4, 0, 0)),
    "area zero": lambda base: _other(base, area=(0, 0, 0, 0)),
    "area short": lambda base: _other(base, area=(4,)),
    "area nan": lambda base: _other(base, area=("percentage", math.nan, 1.0, 0.0, 0.0)),
    "area text": lambda base: _other(base, area="all"),
    "mask": lambda base: _other(base, mask=torch.ones(1, 8, 8), mask_strength=1.0),
    "mask nan": lambda base: _other(base, mask=torch.full((1, 8, 8), math.nan), mask_strength=1.0),
    "mask zero": lambda base: _other(base, mask=torch.zeros(1, 8, 8), mask_strength=1.0),
    "mask empty": lambda base: _other(base, mask=torch.ones(0, 8, 8), mask_strength=1.0),
    "mask 1-D": lambda base: _other(base, mask=torch.ones(8), mask_strength=1.0),
    "mask list": lambda base: _other(base, mask=[1], mask_strength=1.0),
    "mask without strength": lambda base: _other(base, mask=torch.ones(1, 8, 8)),
    "strength nan": lambda base: _other(base, strength=math.nan),
    "strength 0": lambda base: _other(base, strength=0.0),
    "strength huge": lambda base: _other(base, strength=1e30),
    "range nan": lambda base: _other(base, start_percent=math.nan),
    "range none of it": lambda base: _other(base, start_percent=1.0, end_percent=0.0),
    "range outside": lambda base: _other(base, start_percent=-5.0, end_percent=7.0),
    "range text": lambda base: _other(base, start_percent="0"),
    "hooks": lambda base: _other(base, hooks="x"),
    "control": lambda base: _other(base, control="x"),
    "gligen": lambda base: _other(base, gligen=("position", None, [])),
    "guidance nan": lambda base: _other(base, guidance=math.nan),
    "reference": lambda base: _other(base, reference_latents=[torch.ones(1, 16, 4, 4)]),
    "concat": lambda base: _other(base, concat_latent_image=torch.ones(1, 16, 8, 8)),
    "token map": lambda base: _other(base, mmdit_tokens="x"),
    "unknown option": lambda base: _other(base, x=torch.full((1,), math.nan)),
}
SIGMAS: dict[str, Callable[[Any], Any]] = {
    "sigmas rising": lambda _: torch.tensor([0.0, 0.5, 1.0]),
    "sigmas nan": lambda _: torch.tensor([1.0, math.nan, 0.0]),
    "sigmas empty": lambda _: torch.tensor([]),
    "sigmas one": lambda _: torch.tensor([1.0]),
    "sigmas 2-D": lambda _: torch.tensor([[1.0, 0.0]]),
    "sigmas 0-D": lambda _: torch.tensor(1.0),
    "sigmas equal": lambda _: torch.tensor([1.0, 1.0, 0.0]),
    "sigmas above 1": lambda _: torch.tensor([14.6, 1.0, 0.0]),
    "sigmas whole": lambda _: torch.tensor([1, 0]),
    "sigmas good": lambda _: torch.tensor([1.0, 0.4, 0.0]),
    "sigmas to 0.5": lambda _: torch.tensor([1.0, 0.5]),
    "sigmas many": lambda _: torch.linspace(1, 0, 2_000_000),
    "sigmas list": lambda _: [1.0, 0.0],
}
VAES: dict[str, Callable[[Any], Any]] = {
    "vae of 4 channels": lambda _: _vae_of_four_channels(),
}
VALUES = {**NUMBERS, **TEXTS, **OTHERS, **LATENTS, **CONDITIONINGS, **SIGMAS, **VAES}


class OddValue:
    """A value by its name."""

    CATEGORY, FUNCTION = "tests", "make"
    RETURN_TYPES = (ANY,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}, "optional": {"base": (ANY, {})}}

    def make(self, name: str, base: Any = None) -> tuple[Any]:
        return (VALUES[name](base),)


class CheckFinite:
    """Fails unless all tensors in a value are finite."""

    CATEGORY, FUNCTION = "tests", "check"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (ANY, {})}}

    def check(self, value: Any) -> dict[str, Any]:
        _leave_imports_alone()
        return {"ui": {"finite": [all(bool(each.isfinite().all()) for each in _tensors(value))]}}


@functools.cache
def _leave_imports_alone() -> None:
    """Leave what is imported by now out of garbage collections: ComfyUI makes one at each run, of half a second."""
    gc.collect()
    gc.freeze()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        # What a node took along unchanged is not its result.
        yield from _tensors(value.get("samples", value.get("pooled_output")))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


NODE_CLASS_MAPPINGS = {"OddValue": OddValue, "CheckFinite": CheckFinite}
