"""Counts the calls of a core model, and cancels the run at one of them."""

from __future__ import annotations

import comfy.model_management


class Calls:
    """Counts the calls of a model inside a with statement; cancels at one of them."""

    def __init__(self, model, cancel_at: int | None = None):
        self.core, self.cancel_at, self.count = model.model.diffusion_model, cancel_at, 0

    def __enter__(self):
        self.handle = self.core.x_embedder.register_forward_hook(self._called)
        return self

    def _called(self, *_):
        self.count += 1
        if self.count == self.cancel_at:
            comfy.model_management.interrupt_current_processing(True)

    def __exit__(self, *_):
        self.handle.remove()
        comfy.model_management.interrupt_current_processing(False)
