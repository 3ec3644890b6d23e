"""Guidance inside the host's guider: when the negative prompt is computed, and how two predictions become one.

All that other nodes put between the model and the sampler keeps its place: the predictions come from the host's own
`sampling_function`, and a form of guidance is the `sampler_cfg_function` that the host foresees for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
from torch import Tensor

from ....mmdit_core.caching.step_cache import PredictionCount as Spared
from ....mmdit_core.control.model_call import BlockCallCount
from ....mmdit_core.flow.sigma import PercentToSigma, percent_of_sigma
from ....mmdit_core.flow.window import Window
from ....mmdit_core.guidance.cfg import apg, cfg, cfg_zero_star, rescale, scale_at
from .. import patching

KEY = "mmdit_count"
CFG_FUNCTION = "sampler_cfg_function"
ROUNDING = 1e-6  # of a scale that a curve makes of a float32 noise level: a negative is not computed for that
KINDS = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed, when, and in which form.

    start, end: the window in which the scale is not 1, in [0, 1] of the sampling; curve: how the scale goes over it,
    a name of the core's CURVES; form: a name in FORMS; rescale: how much of the form of that name, in [0, 1].
    """

    cfg: float
    form: str = "cfg"
    start: float = 0.0
    end: float = 1.0
    curve: str = "constant"
    rescale: float = 0.7

    @property
    def is_even(self) -> bool:
        return self.start <= 0 and self.end >= 1 and self.curve == "constant"

    def scale(self, sigma: float, to_sigma: PercentToSigma) -> float:
        """The scale at a noise level; at 1 the negative plays no part."""
        if not Window(self.start, self.end).holds(sigma, to_sigma):
            return 1.0
        if self.curve == "constant":
            return self.cfg
        place = min(self.end, max(self.start, percent_of_sigma(sigma, to_sigma)))
        scale = scale_at(place, self.cfg, self.curve, start=self.start, end=self.end)
        return 1.0 if abs(scale - 1) < ROUNDING else scale


Form = Callable[[dict[str, Any], Guidance], Tensor]


def _rescaled(args: dict[str, Any], guidance: Guidance) -> Tensor:
    return rescale(cfg(args["cond"], args["uncond"], args["cond_scale"]), args["cond"], guidance.rescale)


def _zero_star(args: dict[str, Any], guidance: Guidance) -> Tensor:
    return cfg_zero_star(args["cond"], args["uncond"], args["cond_scale"])


def _projected(args: dict[str, Any], guidance: Guidance) -> Tensor:
    return args["input"] - apg(args["cond_denoised"], args["uncond_denoised"], args["cond_scale"])


# The host asks for the guided x - denoised; "cond" and "uncond" are the same of the predictions: sigma * velocity.
# None: the host's own arithmetic, or that of a node before ours.
FORMS: dict[str, Form | None] = {"cfg": None, "rescale": _rescaled, "cfg_zero_star": _zero_star, "apg": _projected}


@dataclass
class Count:
    """What really ran. rows: pictures that went through the model, by branch (0 positive, 1 negative)."""

    calls: int = 0
    rows: Counter[int] = field(default_factory=Counter)

    def add(self, batch: int, branches: list[int]) -> None:
        self.calls += 1
        for branch in branches:
            self.rows[branch] += batch // len(branches)


class FlowGuider(comfy.samplers.CFGGuider):
    """The host's guider with a scale that may change on the way; it counts what it asks of the model.

    guided and alone: predictions with the negative and without; block_calls: of the block controls, None where there
    are none; spared: what a step cache on the model did, None where there is none.
    """

    def __init__(self, model, positive, negative, guidance: Guidance):
        super().__init__(model)
        self.set_conds(positive, negative)
        self.set_cfg(guidance.cfg)
        self.guidance = guidance
        self.guided = self.alone = 0
        self.block_calls: BlockCallCount | None = None
        self.spared: Spared | None = None
        self._asked, self._computed = Count(), Count()
        form = FORMS[guidance.form]
        if form is not None:
            self.model_options = comfy.model_patcher.create_model_options_clone(self.model_options)
            self.model_options[CFG_FUNCTION] = partial(form, guidance=guidance)

    @property
    def count(self) -> Count:
        """What the model computed. Some of the host's models do not let on that a cache answered in their place."""
        return self._computed if self._computed.calls else self._asked

    def outer_sample(self, *args, **kwargs):
        # Here the wrappers of all other nodes are in: ours come last, next to the model, and see what reaches it.
        wrappers = self.model_options["transformer_options"].setdefault("wrappers", {})
        for kind, wrapper in ((KINDS.APPLY_MODEL, self._around_call), (KINDS.DIFFUSION_MODEL, self._around_model)):
            wrappers.setdefault(kind, {})[KEY] = [wrapper]
        return super().outer_sample(*args, **kwargs)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        model_options = model_options or {}
        scale = self.cfg
        if not self.guidance.is_even:
            to_sigma = self.inner_model.model_sampling.percent_to_sigma
            scale = self.guidance.scale(float(timestep.max()), to_sigma)
        options = model_options.get("transformer_options", {})
        if (run := patching.run_of(options)) is not None:
            self.block_calls = run.block_calls if run.block_calls.total else None
            self.spared = run.predictions
        if math.isclose(scale, 1.0) and not model_options.get("disable_cfg1_optimization", False):
            self.alone += 1
        else:
            self.guided += 1
        conds = (self.conds.get("negative"), self.conds.get("positive"))
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, *conds, scale, model_options=model_options, seed=seed
        )

    def _around_call(self, executor, x, *args, **kwargs):
        self._add(self._asked, x, args, kwargs)
        return executor(x, *args, **kwargs)

    def _around_model(self, executor, x, *args, **kwargs):
        self._add(self._computed, x, args, kwargs)
        return executor(x, *args, **kwargs)

    @staticmethod
    def _add(count: Count, x: Tensor, args, kwargs) -> None:
        options = (value for value in (*args, *kwargs.values()) if isinstance(value, dict))
        branches = next((value["cond_or_uncond"] for value in options if "cond_or_uncond" in value), [0])
        count.add(x.shape[0], branches)
