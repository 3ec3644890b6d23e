"""What a node that samples many times needs of the host: one progress bar over all, pictures, a model's name."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePath

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

PREVIEW_SIDE = 1280  # pixels; a sheet holds many pictures, so it is larger than the host's previews of one
PREVIEW_SHARE = 0.1  # of the time, at most, goes into drawing previews


class Progress:
    """One bar over the steps of many samplings; a cancel is raised from here, too."""

    def __init__(self, total: int, node_id: str | None):
        self.bar = comfy.utils.ProgressBar(total, node_id=node_id)
        self.done = 0
        self.due = 0.0  # when the next preview may be drawn

    def step(self) -> None:
        """One step of a sampling that runs."""
        self.bar.update_absolute(self.bar.current + 1)

    def finish(self, steps: int, draw: Callable[[], Image.Image]) -> None:
        """One sampling more is there, now or from an earlier run: show what `draw` makes, unless it was just drawn."""
        self.done += steps
        preview = None
        start = time.monotonic()
        if start >= self.due:
            drawn = draw()
            # The host would enlarge a smaller one.
            preview = ("JPEG", drawn, min(PREVIEW_SIDE, max(drawn.size)))
            end = time.monotonic()
            self.due = end + (end - start) / PREVIEW_SHARE
        self.bar.update_absolute(self.done, preview=preview)
        comfy.model_management.throw_exception_if_processing_interrupted()


def decode_image(vae, latent: Tensor) -> Tensor:
    """[H, W, 3] in [0, 1], on the CPU: the latent's (first) picture; of a video its first frame."""
    decoded = vae.decode(latent)
    return decoded.reshape(-1, *decoded.shape[-3:])[0].float().cpu()


def model_name(model) -> str:
    """The model's kind and, where the host knows it, its file."""
    kind = type(model.model).__name__
    given = getattr(model, "cached_patcher_init", None)
    path = given[1][0] if given and given[1] and isinstance(given[1][0], str) else None
    return f"{PurePath(path).name} ({kind})" if path else kind
