"""The transformer under block controls, as the nodes apply them, without a host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdit_core import MMDiT
from mmdit_core.control.hooks import NEGATIVE, POSITIVE, BlockCallCount, ModelCall, compile_controls
from mmdit_core.control.spec import BlockControl

SLACK = 1e-4  # of a place: noise levels are float32


class Controlled:
    """Stands in for a model in `Renderer.render`: positive rows first, then negative ones.

    shift: of the sampling; it turns a noise level into a place, and so opens and closes the controls' windows.
    """

    def __init__(self, model: MMDiT, controls: Sequence[BlockControl], shift: float = 1.0):
        self.model, self.controls, self.shift, self.block_calls = model, controls, shift, BlockCallCount()

    def __call__(self, x: Tensor, timesteps: Tensor, *, context: Tensor, y: Tensor) -> Tensor:
        sigma = float(timesteps[0]) / 1000
        place = 1 - sigma / (self.shift - (self.shift - 1) * sigma)
        call = ModelCall(
            double=self.model.config.depth,
            single=0,
            branches=(POSITIVE, NEGATIVE),
            batch=x.shape[0],
            place=place,
            maps=(None, None),
        )
        active = [each for each in self.controls if _holds(each, place)]
        hooks = compile_controls(active, call, {}, self.block_calls)
        options = {"patches_replace": {"dit": hooks}, "cond_or_uncond": [POSITIVE, NEGATIVE]}
        with torch.inference_mode():
            return self.model(x, timesteps, context=context, y=y, transformer_options=options)


def _holds(control: BlockControl, place: float) -> bool:
    return control.start_percent <= place + SLACK and (control.end_percent >= 1 or place < control.end_percent - SLACK)
