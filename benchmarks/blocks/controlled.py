"""The transformer under block controls, as the nodes apply them, without ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdit_core import MMDiT
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.flow.sigma import shift_sigma


class Controlled:
    """A model for `Renderer.render` with block controls: rows of the positive prompts, then of the negative ones.

    Args: shift of the sampling's sigmas, which maps the controls' windows to sigmas.
    """

    def __init__(self, model: MMDiT, controls: Sequence[BlockControl], shift: float = 1.0):
        self.model, self.controls, self.shift, self.block_calls = model, controls, shift, BlockCallCount()

    def __call__(self, x: Tensor, timesteps: Tensor, *, context: Tensor, y: Tensor) -> Tensor:
        """As MMDiT's forward."""
        sigma = float(timesteps[0]) / 1000
        call = ModelCall(
            double=self.model.config.depth,
            single=0,
            branches=(POSITIVE, NEGATIVE),
            batch=x.shape[0],
            maps=(None, None),
        )
        at = (each.at(sigma, lambda percent: shift_sigma(1 - percent, self.shift)) for each in self.controls)
        active = [each for each in at if each is not None]
        hooks = compile_controls(active, call, {}, self.block_calls)
        options = {"patches_replace": {"dit": hooks}, "cond_or_uncond": [POSITIVE, NEGATIVE]}
        with torch.inference_mode():
            return self.model(x, timesteps, context=context, y=y, transformer_options=options)
