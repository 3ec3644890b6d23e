"""The samplers' inputs: what each is, what it may be, and what is said when it is something else."""

from __future__ import annotations

from typing import Any

from ...mmdit_core.flow.schedules import SCHEDULES
from ...mmdit_core.guidance.cfg import CURVES
from ...mmdit_core.solvers import SOLVERS
from ..comfyui.run.guider import FORMS
from ..widgets import MAX_SEED, MAX_STEPS

MODEL = ("MODEL", {"tooltip": "The model that removes the noise."})
LATENT = (
    "LATENT",
    {"tooltip": "An empty latent for a new picture, or an encoded picture with denoise below 1. Masks are kept."},
)
SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": MAX_SEED,
        "control_after_generate": True,
        "tooltip": "The noise that the picture grows from. Made on the CPU: one seed is the same noise anywhere.",
    },
)
DENOISE = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.0,
        "max": 1.0,
        "step": 0.01,
        "tooltip": "1 makes a new picture. Lower keeps more of the picture that came in; the steps stay the same.",
    },
)


def solver_widget():
    calls = "; ".join(f"{name} {method.calls_per_step}" for name, method in SOLVERS.items())
    return (
        list(SOLVERS),
        {
            "default": "euler",
            "tooltip": "How each step follows the flow. bosh3 and dopri5 choose their own steps between "
            "the ends of the schedule. Model calls a step: " + calls + ".",
        },
    )


SCHEDULE = (
    list(SCHEDULES),
    {
        "default": "linear",
        "tooltip": "How the noise levels are spread; the shift is applied to each. linear: even steps. "
        "sd3: the grid that SD3 shipped with (the host's 'normal'). beta and cosine: smaller first and "
        "last steps. karras: small steps at the end. log_snr: even in signal to noise. cosmap: the "
        "cosine schedule of diffusion models.",
    },
)
SHIFT = (
    "FLOAT",
    {
        "default": 0.0,
        "min": 0.0,
        "max": 100.0,
        "step": 0.05,
        "tooltip": "0: the model's own. Higher spends more steps on the layout, lower on detail; "
        "larger pictures want more. SD3 and SD3.5: 3.",
    },
)


def _number(kind: str, default: float, low: float, high: float, tooltip: str, *, advanced: bool = True, **more: Any):
    return (kind, {"default": default, "min": low, "max": high, "tooltip": tooltip, "advanced": advanced, **more})


def _share(default: float, tooltip: str, *, advanced: bool = True):
    return _number("FLOAT", default, 0.0, 1.0, tooltip, advanced=advanced, step=0.01)


def _choice(choices: list[str], tooltip: str, *, advanced: bool = True):
    return (choices, {"default": choices[0], "tooltip": tooltip, "advanced": advanced})


# Shared workflows store values by position: new inputs go to the end.
APPENDED = {
    "cfg_start": _share(
        0.0,
        "From which share of the sampling on cfg acts. Before it the negative prompt is not computed: a step there "
        "costs half.",
        advanced=False,
    ),
    "cfg_end": _share(
        1.0, "Up to which share of the sampling cfg acts. After it a step costs half.", advanced=False
    ),
    "guidance": _choice(
        list(FORMS),
        "How cfg is applied. cfg: plainly. rescale: less contrast at high cfg. cfg_zero_star: from a negative scaled "
        "to fit. apg: without what only makes colours stronger.",
        advanced=False,
    ),
    "eta": _share(1.0, "How much fresh noise the solvers add that add some (euler_ancestral, dpmpp_2m_sde). 0: none."),
    "start_step": _number(
        "INT",
        0,
        0,
        MAX_STEPS,
        "The first step to run, from 0: for the second of two samplers that share one run. It goes on exactly where "
        "the first one ended.",
    ),
    "end_step": _number(
        "INT",
        MAX_STEPS,
        0,
        MAX_STEPS,
        "The step to stop before: for the first of two samplers that share one run. The noise that is left stays in.",
    ),
    "variation_seed": _number("INT", 0, 0, MAX_SEED, "The seed that variation_strength leads to."),
    "variation_strength": _share(
        0.0, "How far the noise goes from the seed's to the variation seed's. Small values vary the picture a little."
    ),
    "reuse": (
        "BOOLEAN",
        {
            "default": False,
            "tooltip": "Take the steps that a change cannot affect from the last run: a TextBoost from 40% on, or "
            "another cfg_end, re-runs only the steps from there. The picture is the same, bit for bit.",
        },
    ),
    "sigmas": (
        "SIGMAS",
        {"tooltip": "Noise levels of your own, in the place of steps, schedule and denoise. No shift is applied."},
    ),
    "custom_sigmas": (
        "STRING",
        {
            "default": "",
            "advanced": True,
            "tooltip": "The same, written: falling levels such as 1, 0.9, 0.6, 0. Empty: the schedule's.",
        },
    ),
    "cfg_curve": _choice(
        list(CURVES), "How cfg goes over its window: constant, from 1 up to cfg (rising), or down to 1 (falling)."
    ),
    "rescale": _share(0.7, "How much of the guidance named rescale."),
    "zero_steps": _number(
        "INT",
        0,
        0,
        MAX_STEPS,
        "With cfg_zero_star: in the first steps the picture stays and the model is not asked. Its authors advise about "
        "4% of the steps.",
    ),
    "size_shift": _choice(
        ["off", "flux", "sd3"],
        "Shift by the picture's size. flux: FLUX's rule, in the place of shift. sd3: the shift (the model's own at 0) "
        "is meant for 1024 x 1024, and goes with the square root of the pixels.",
    ),
    "batch_noise": _choice(
        ["shared", "per image"],
        "In a batch. shared: one seed's noise is drawn on through it, as in KSampler. per image: picture k is the one "
        "that seed + k gives alone; with a variation, variation_seed + k.",
    ),
    "add_noise": _choice(
        ["auto", "enable", "disable"],
        "auto: unless the latent comes from a run that ended early, or from FlowInvert. disable: the latent has its "
        "noise already, from KSampler Advanced or a file. enable: always.",
    ),
    "step_noise_seed": _number(
        "INT", -1, -1, MAX_SEED, "The seed of the noise that stochastic solvers add. -1: from the seed."
    ),
    "tolerance": _number(
        "FLOAT",
        1e-3,
        1e-6,
        1.0,
        "The error that bosh3 and dopri5 allow themselves. Lower: more model calls.",
        step=1e-4,
        round=1e-6,
    ),
}  # fmt: skip
