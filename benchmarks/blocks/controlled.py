"""The transformer under block controls, as the nodes apply them, without a host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdit_core import MMDiT
from mmdit_core.control import BlockControl
from mmdit_core.hooks import NEGATIVE, POSITIVE, Call, Tally, compile_controls


class Controlled:
    """Stands in for a model in `Renderer.render`: positive rows first, then negative ones. All steps, no windows."""

    def __init__(self, model: MMDiT, controls: Sequence[BlockControl]):
        if any(control.start_percent > 0 or control.end_percent < 1 for control in controls):
            raise ValueError("Controlled: windows are not looked at here")
        self.model, self.controls, self.tally = model, controls, Tally()

    def __call__(self, x: Tensor, timesteps: Tensor, *, context: Tensor, y: Tensor) -> Tensor:
        call = Call(
            double=self.model.config.depth,
            single=0,
            branches=(POSITIVE, NEGATIVE),
            batch=x.shape[0],
            place=0.0,
            maps=(None, None),
        )
        hooks = compile_controls(self.controls, call, {}, self.tally)
        options = {"patches_replace": {"dit": hooks}, "cond_or_uncond": [POSITIVE, NEGATIVE]}
        with torch.inference_mode():
            return self.model(x, timesteps, context=context, y=y, transformer_options=options)
