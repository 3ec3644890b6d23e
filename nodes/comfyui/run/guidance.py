"""Classifier-free guidance inside ComfyUI's guider: its scale by sigma, and the formula for two predictions.

The predictions come from ComfyUI's own `sampling_function`, so that what other nodes put between the model and the
sampler keeps its effect. A formula is the `sampler_cfg_function` that ComfyUI provides for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ....mmdit_core.flow.sigma import PercentToSigma, percent_of_sigma
from ....mmdit_core.flow.window import Window
from ....mmdit_core.guidance.cfg import apg, cfg, cfg_zero_star, rescale, scale_at

CFG_FUNCTION = "sampler_cfg_function"
ROUNDING = 1e-6  # of a scale computed from a float32 sigma; so near to 1 the uncond prediction is not computed


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed, when, and by which formula.

    Fields: cfg, the largest scale; form, a name in FORMS; window, outside of which the scale is 1; curve, the scale
    over the window, a name in the core's CURVES; rescale, strength of the form of that name, in [0, 1].
    """

    cfg: float
    form: str = "cfg"
    window: Window = Window()
    curve: str = "constant"
    rescale: float = 0.7

    def scale(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """The scale at a sigma; at 1 the uncond prediction is not needed."""
        start, end = self.window.start, self.window.end
        if not self.window.holds(sigma, percent_to_sigma):
            return 1.0
        if self.curve == "constant":
            return self.cfg
        percent = min(end, max(start, percent_of_sigma(sigma, percent_to_sigma)))
        scale = scale_at(percent, self.cfg, self.curve, start=start, end=end)
        return 1.0 if abs(scale - 1) < ROUNDING else scale

    def strength_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """The scale as a fraction of the way from 1 to cfg, in [0, 1]; cfg is not 1."""
        return (self.scale(sigma, percent_to_sigma) - 1) / (self.cfg - 1)


Form = Callable[[dict[str, Any], Guidance], Tensor]


def _rescale(args: dict[str, Any], guidance: Guidance) -> Tensor:
    return rescale(cfg(args["cond"], args["uncond"], args["cond_scale"]), args["cond"], guidance.rescale)


def _cfg_zero_star(args: dict[str, Any], guidance: Guidance) -> Tensor:
    return cfg_zero_star(args["cond"], args["uncond"], args["cond_scale"])


def _apg(args: dict[str, Any], guidance: Guidance) -> Tensor:
    return args["input"] - apg(args["cond_denoised"], args["uncond_denoised"], args["cond_scale"])


# A form returns the guided x - denoised. "cond" and "uncond" are that of the predictions: sigma * velocity.
# None: ComfyUI's own arithmetic, or that of another node.
FORMS: dict[str, Form | None] = {"cfg": None, "rescale": _rescale, "cfg_zero_star": _cfg_zero_star, "apg": _apg}


def make_guider(model, positive, negative, guidance: Guidance) -> comfy.samplers.CFGGuider:
    """ComfyUI's guider with a form of guidance; the solver run sets its scale before each call."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(guidance.cfg)
    form = FORMS[guidance.form]
    if form is not None:
        guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        guider.model_options[CFG_FUNCTION] = lambda args: form(args, guidance)
    return guider
