"""One progress bar with previews over many samplings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePath

import comfy.model_management
import comfy.utils
from PIL import Image

PREVIEW_SIDE = 1280  # pixels; a contact sheet needs more than ComfyUI's previews of one image
PREVIEW_TIME = 0.1  # largest fraction of the time spent on previews


def raise_if_cancelled() -> None:
    """Raises: ComfyUI's interrupt if the run is cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Progress:
    """The bar counts the steps of all samplings."""

    def __init__(self, total: int, node_id: str | None):
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)
        self._done = 0  # steps of finished samplings
        self._next_preview = 0.0

    def step(self) -> None:
        """Count one step of the current sampling."""
        self._bar.update_absolute(self._bar.current + 1)

    def finish(self, steps: int, draw: Callable[[], Image.Image]) -> None:
        """Count one finished sampling, or one reused from an earlier run, and show a preview unless one was just drawn.

        Raises: ComfyUI's interrupt if the run is cancelled.
        """
        raise_if_cancelled()
        self._done += steps
        preview = None
        start = time.monotonic()
        if start >= self._next_preview:
            image = draw()
            preview = ("JPEG", image, min(PREVIEW_SIDE, max(image.size)))  # ComfyUI enlarges smaller ones
            end = time.monotonic()
            self._next_preview = end + (end - start) / PREVIEW_TIME
        self._bar.update_absolute(self._done, preview=preview)
        raise_if_cancelled()


def model_name(model) -> str:
    """The class of a MODEL and, if ComfyUI knows it, its file: "sd3.5_medium.safetensors (SD3)"."""
    kind = type(model.model).__name__
    init = getattr(model, "cached_patcher_init", None)
    path = init[1][0] if init and init[1] and isinstance(init[1][0], str) else None
    return f"{PurePath(path).name} ({kind})" if path else kind
