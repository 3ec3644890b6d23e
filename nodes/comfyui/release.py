"""The releases of ComfyUI that the pack runs on. On an older one its import ends here, before it registers anything."""

from __future__ import annotations

import importlib
import inspect
import re

import comfy.sample

OLDEST = (0, 24, 0)


def require() -> None:
    """Refuse a ComfyUI that is too old.

    The version decides. Where it is not known, as in a copy without its version file, what the pack calls decides.

    Raises: ImportError with what was found, what is needed, and what to do.
    """
    version = found_version()
    if version is None:
        refused, found = not _fills_empty_latents(), "it lacks what came with that release"
    else:
        refused, found = _numbers(version) < OLDEST, f"it is {version}"
    if refused:
        needed = ".".join(map(str, OLDEST))
        raise ImportError(
            f"MMDiT needs ComfyUI {needed} or newer, and this ComfyUI is older: {found}. No node of MMDiT was added. "
            "Update ComfyUI and start it again."
        )


def found_version() -> str | None:
    """ComfyUI's version as it states it; None if it states none that begins with numbers."""
    try:
        stated = str(importlib.import_module("comfyui_version").__version__)
    except (ImportError, AttributeError):
        return None
    return stated if _numbers(stated) else None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, () for none. A suffix such as rc1 or +local does not count."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found[1].split("."))) if found else ()


def _fills_empty_latents() -> bool:
    """Whether ComfyUI fits an empty latent to a model in space and time."""
    return "downscale_ratio_temporal" in inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
