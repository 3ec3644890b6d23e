"""The inputs of FlowMatchingSampler: one field an input, with its widget and its range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...mmdit_core.flow.schedules import SCHEDULES
from ...mmdit_core.flow.window import Window
from ...mmdit_core.guidance.cfg import CURVES
from ...mmdit_core.solvers import SOLVERS
from ..comfyui.run.guidance import FORMS, Guidance
from ..comfyui.run.noise import Seeds
from ..errors import require
from ..widgets import (
    MAX_SEED,
    MAX_STEPS,
    SHIFT,
    Widget,
    cfg_widget,
    check_fields,
    choice,
    fraction,
    integer,
    number,
    seed_widget,
    steps_widget,
    switch,
    text,
    widget,
    widgets_of,
)

NODE = "FlowMatchingSampler"
MIN_DENOISE = 1e-4  # below it no step is run

MODEL: Widget = ("MODEL", {"tooltip": "The model that removes the noise."})
LATENT: Widget = (
    "LATENT",
    {"tooltip": "An empty latent for a new image, or an encoded image with denoise below 1. Noise masks are kept."},
)
SEED = seed_widget("The seed of the noise. Noise is made on the CPU: one seed gives the same noise on every machine.")
DENOISE = fraction(
    1.0, "1 makes a new image. A lower value keeps more of the image that comes in; the number of steps stays the same."
)
CALLS = "; ".join(f"{name} {method.calls_per_step}" for name, method in SOLVERS.items())


def advanced(make: Callable[..., Widget], *values: Any, **options: Any) -> Any:
    """A field with a widget that most users never change."""
    return widget(make(*values, **options, advanced=True))


# Shared workflows store values by position: new inputs go to the end.
# fmt: off
@dataclass(frozen=True, kw_only=True)
class SamplerInputs:
    """All inputs besides the model, the prompts and the latent.

    Raises: InputError for a value that its widget would not allow, and for a guidance window that ends before it
    starts.
    """

    seed: int = widget(SEED)
    steps: int = widget(steps_widget(28))
    cfg: float = widget(cfg_widget(4.5))
    solver: str = widget(choice(tuple(SOLVERS), "euler",
        "The integration method. bosh3 and dopri5 choose their own steps between the ends of the schedule. Model calls "
        f"a step: {CALLS}."))
    schedule: str = widget(choice(tuple(SCHEDULES), "linear",
        "How the sigmas are spaced; the shift is applied to each schedule. linear: even steps. sd3: the schedule that "
        "SD3 was published with (ComfyUI's 'normal'). beta and cosine: smaller first and last steps. karras: small "
        "steps at the end. log_snr: even in the signal-to-noise ratio. cosmap: the cosine schedule of diffusion "
        "models."))
    shift: float = widget(SHIFT)
    denoise: float = widget(DENOISE)
    cfg_start: float = widget(fraction(0.0,
        "Where in the sampling cfg begins to act. Before it the negative prompt is not computed; a step costs half."))
    cfg_end: float = widget(fraction(1.0, "Where in the sampling cfg stops acting. After it a step costs half."))
    guidance: str = widget(choice(tuple(FORMS), "cfg",
        "How cfg is applied. cfg: the plain formula. rescale: less contrast at high cfg. cfg_zero_star: the negative "
        "prediction is first scaled to fit the positive one. apg: leaves out what only makes colours stronger."))
    eta: float = advanced(fraction, 1.0,
        "How much new noise the stochastic solvers (euler_ancestral, dpmpp_2m_sde) add in each step. 0: none.")
    start_step: int = advanced(integer, 0, 0, MAX_STEPS,
        "The first step to run, counted from 0. Set it in the second of two samplers that share one run; it continues "
        "exactly where the first one ended.")
    end_step: int = advanced(integer, MAX_STEPS, 0, MAX_STEPS,
        "The step to stop before. Set it in the first of two samplers that share one run; the remaining noise stays "
        "in the latent.")
    variation_seed: int = advanced(integer, 0, 0, MAX_SEED, "The seed that variation_strength leads to.")
    variation_strength: float = advanced(fraction, 0.0,
        "How far the noise goes from the seed's to the variation seed's. Small values vary the image a little.")
    reuse: bool = widget(switch(False,
        "Keep the states of the last runs and start at the first step that a change affects: with another TextBoost "
        "from 40% on, or another cfg_end, only the steps from there run again; an earlier setting runs none. The image "
        "is the same, bit for bit. Up to 1 GB of memory, not of the graphics card's."))
    sigmas: Tensor | None = widget(("SIGMAS", {
        "tooltip": "Sigmas to use instead of steps, schedule and denoise. No shift is applied to them."}))
    custom_sigmas: str = advanced(text, "",
        "Sigmas to use instead of steps, schedule and denoise, as text: falling numbers such as 1, 0.9, 0.6, 0. Empty: "
        "the schedule's.")
    cfg_curve: str = advanced(choice, tuple(CURVES), "constant",
        "How cfg changes over its window: constant, from 1 up to cfg (rising), or down to 1 (falling).")
    rescale: float = advanced(fraction, 0.7, "The strength of the guidance named rescale.")
    zero_steps: int = advanced(integer, 0, 0, MAX_STEPS,
        "With cfg_zero_star: in this many first steps the velocity is zero and the model is not called. Its authors "
        "advise about 4% of the steps.")
    size_shift: str = advanced(choice, ("off", "flux", "sd3"), "off",
        "Choose the shift by the size of the image. flux: FLUX's rule, instead of shift. sd3: shift (the model's own "
        "at 0) is for 1024 x 1024 and is scaled with the square root of the number of pixels.")
    batch_noise: str = advanced(choice, ("shared", "per image"), "shared",
        "In a batch. shared: one seed's noise continues through the batch, as in KSampler. per image: image k is the "
        "one that seed + k gives alone; with a variation, variation_seed + k.")
    add_noise: str = advanced(choice, ("auto", "enable", "disable"), "auto",
        "auto: add noise unless the latent comes from a run that ended early, or from FlowInvert; it is an error if a "
        "node changed such a latent since. disable: the latent already holds noise, from KSampler (Advanced) or a "
        "file. enable: always add noise.")
    step_noise_seed: int = advanced(integer, -1, -1, MAX_SEED,
        "The seed of the noise that stochastic solvers add. -1: made from the seed.")
    tolerance: float = advanced(number, 1e-3, 1e-6, 1.0, 1e-4,
        "The error that bosh3 and dopri5 allow in a step. Lower: more model calls.", round=1e-6)
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(NODE, self)
        found = f"{self.cfg_end:g} is before cfg_start, {self.cfg_start:g}"
        require(self.cfg_start <= self.cfg_end, NODE, "cfg_end", found, "Set it to cfg_start or later")

    @property
    def cfg_guidance(self) -> Guidance:
        """The guidance: scale, form, window and curve."""
        window = Window(self.cfg_start, self.cfg_end)
        return Guidance(self.cfg, self.guidance, window, self.cfg_curve, self.rescale)

    @property
    def seeds(self) -> Seeds:
        """The seeds of all noise of the run."""
        return Seeds(
            self.seed,
            each=self.batch_noise == "per image",
            variation=self.variation_strength,
            variation_seed=self.variation_seed,
            steps=None if self.step_noise_seed < 0 else self.step_noise_seed,
        )

    @property
    def solver_options(self) -> dict[str, float]:
        """The inputs that are options of the solver, by name."""
        known = {option.name for option in SOLVERS[self.solver].options}
        return {name: getattr(self, name) for name in ("eta", "tolerance") if name in known}

    def part(self, steps: int) -> tuple[int, int]:
        """The first step to run of a schedule, and the step to stop before."""
        last = min(self.end_step, steps)
        return min(self.start_step, last), last


WIDGETS = widgets_of(SamplerInputs)
REQUIRED = ("seed", "steps", "cfg", "solver", "schedule", "shift", "denoise")
