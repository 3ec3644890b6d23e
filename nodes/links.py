"""Checks of what comes in by links, which another node can make of anything: before any work, and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from .comfyui.loading.clip_vae import refuse_stand_in
from .comfyui.loading.part_checks import is_finite
from .comfyui.run.sampling import latent_channels_of
from .errors import require

NOTHING = "nothing came in"
# Numbers among the options of a prompt.
NUMBERS = {"strength", "start_percent", "end_percent", "mask_strength", "guidance"}


def require_model(node: str, model: Any, name: str = "model") -> None:
    """Raises: InputError for what is no MODEL."""
    fits = hasattr(model, "model")
    require(fits, node, name, _not(model, "a MODEL"), "Connect the MODEL of a loader")


def require_clip(node: str, clip: Any, right: str, name: str = "clip") -> None:
    """Raises: InputError for what is no CLIP; the loader's own words if its file holds none."""
    refuse_stand_in(clip)
    require(hasattr(clip, "tokenize"), node, name, _not(clip, "a CLIP"), right)


def require_vae(node: str, vae: Any, model: Any, name: str = "vae") -> None:
    """Raises: InputError for what is no VAE, or one of another model; the loader's own words if its file holds none."""
    refuse_stand_in(vae)
    right = "Connect the VAE that belongs to the model"
    require(hasattr(vae, "decode"), node, name, _not(vae, "a VAE"), right)
    own, channels = latent_channels_of(model), getattr(vae, "latent_channels", None)
    found = f"it decodes latents of {channels} channels, and the model makes {own}"
    require(None in (own, channels) or own == channels, node, name, found, right)


def require_conditioning(node: str, name: str, conditioning: Any) -> None:
    """Raises: InputError for what is no CONDITIONING, and for texts and options that are not finite."""
    demand = partial(require, node=node, name=name)
    right = "Connect the output of TripleTextEncode"
    demand(isinstance(conditioning, list | tuple), found=_not(conditioning, "a prompt"), right=right)
    demand(conditioning, found="it holds no prompt", right=right)
    for index, entry in enumerate(conditioning):
        pair = isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)
        demand(pair and isinstance(entry[0], Tensor), found=f"entry {index} is no text with options", right=right)
        context, options = entry
        demand(context.numel(), found=f"the text is of shape {list(context.shape)}", right=right)
        pooled = options.get("pooled_output")
        empty = isinstance(pooled, Tensor) and not pooled.is_nested and not pooled.numel()
        demand(not empty, found="its pooled text is empty", right=right)
        texts = list(_tensors((context, pooled)))
        small = next((each.dtype for each in texts if each.dtype.itemsize == 1), None)
        demand(small is None, found=f"the text's values are {small}", right="Convert it to float16 or float32")
        check = "Check the precision of the text encoder and the strengths of prompt weights"
        finite = all(map(is_finite, texts))
        demand(finite, found="the text holds values that are not finite", right=check)
        wrong = _wrong_option(options)
        demand(not wrong, found=f"its {wrong}", right="Check the node that set it")


def _wrong_option(options: Mapping[str, Any]) -> str:
    """What is wrong with the options of a prompt besides its pooled text, "" if nothing is."""
    for key, value in options.items():
        if not isinstance(key, str):
            return f"option {key!r:.60} is no word"
        if key != "pooled_output" and not all(map(is_finite, _tensors((value,)))):
            return f"{key} holds values that are not finite"
    given = {key: value for key, value in options.items() if value is not None}
    for key in NUMBERS & given.keys():
        if not (isinstance(given[key], Real) and math.isfinite(given[key])):
            return f"{key} is {given[key]!r:.60}"
    if "control" in options:  # ComfyUI takes one from each prompt that has the key
        given["control"] = options["control"]
    for key, fits in PARTS.items():
        if key in given and not fits(given[key]):
            return f"{key} cannot be used: {given[key]!r:.60}"
    return ""


def _is_area(area: Any) -> bool:
    """True for (height, width, y, x), for a video with the frames, and for ("percentage", ...) of these."""
    numbers = area[1:] if isinstance(area, tuple | list) and area[:1] == type(area)(["percentage"]) else area
    if not isinstance(numbers, tuple | list) or len(numbers) not in (4, 6):
        return False
    wanted = (int,) if numbers is area else (int, float)
    valid = all(type(each) in wanted and math.isfinite(each) and each >= 0 for each in numbers)
    return valid and (numbers is not area or all(numbers[: len(numbers) // 2]))


def _is_gligen(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 3 and hasattr(value[1], "model_patches_models")


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.numel() > 0 and value.is_floating_point()


# Option of a prompt -> whether a value of it has the form of ComfyUI's own.
PARTS: dict[str, Callable[[Any], bool]] = {
    "area": _is_area,
    "mask": _is_mask,
    "gligen": _is_gligen,
    "hooks": lambda value: hasattr(value, "hooks"),
    "control": lambda value: hasattr(value, "get_control"),
}


def require_areas_inside(node: str, name: str, conditioning: Any, size: Sequence[int]) -> None:
    """Refuse areas and masks that do not fit the latent.

    Args: size, of the latent, [..., H, W]. Raises: InputError for an area that begins outside, and for a mask of more
        dimensions.
    """
    for _, options in conditioning:
        if (mask := options.get("mask")) is not None:
            found = f"its mask is of shape {list(mask.shape)}, and the latent has {list(size)}"
            require(mask.ndim <= len(size) + 1, node, name, found, "Connect a MASK of [images, height, width]")
        numbers = list(options.get("area") or ())
        ends: Sequence[float] = size
        if numbers[:1] == ["percentage"]:
            numbers, ends = numbers[1:], [1] * len(size)
        begins = numbers[len(numbers) // 2 :]
        inside = all(begin < end for begin, end in zip(reversed(begins), reversed(ends), strict=False))
        found = f"its area begins at {begins}, and the latent has {list(size)}"
        require(inside, node, name, found, "Set x and y of the area inside the image")


def require_tensor(node: str, name: str, value: Any, what: str, right: str) -> None:
    """Raises: InputError for what is no tensor. Args: what it should be, in words."""
    require(isinstance(value, Tensor), node, name, _not(value, what), right)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The plain tensors in lists."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and not value.is_nested:
            yield value


def _not(value: Any, what: str) -> str:
    return NOTHING if value is None else f"{type(value).__name__} is not {what}"
