"""FlowMatchingSampler and MMDiTSampler."""

from __future__ import annotations

from ..mmdit_core.model import VAE_FACTOR
from ..mmdit_core.schedule import SCHEDULES, sigmas
from ..mmdit_core.solvers import SOLVERS
from .errors import InputError
from .host import sampling as host
from .host.models import core_config

MAX_SEED = 0xFFFFFFFFFFFFFFFF
MIN_DENOISE = 1e-4

MODEL = ("MODEL", {"tooltip": "The model that removes the noise."})
POSITIVE = ("CONDITIONING", {"tooltip": "What the picture should show."})
NEGATIVE = ("CONDITIONING", {"tooltip": "What it should not show. Not computed where cfg is 1."})
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


def steps_widget(default: int):
    return ("INT", {"default": default, "min": 1, "max": 10000, "tooltip": "More steps follow the flow more exactly."})


def cfg_widget(default: float):
    return (
        "FLOAT",
        {
            "default": default,
            "min": 0.0,
            "max": 100.0,
            "step": 0.1,
            "round": 0.01,
            "tooltip": "How strongly the prompt is followed. 1 ignores the negative prompt and is twice as fast; "
            "3.5 to 5 suits SD3 and SD3.5; 1 suits Turbo; far higher burns the picture.",
        },
    )


class FlowMatchingSampler:
    """Samples by following the rectified flow's velocity with a choice of solver, schedule and shift."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Samples SD3, SD3.5, FLUX and other flow-matching models. Solver, sigma schedule and shift in one node; "
        "masks, areas, ControlNet and hooks work as in KSampler."
    )
    SEARCH_ALIASES = ["ksampler", "rectified flow", "sampler", "sd3 sampler", "shift"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent, for VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls):
        calls = "; ".join(f"{name} {method.calls_per_step}" for name, method in SOLVERS.items())
        return {
            "required": {
                "model": MODEL,
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "latent_image": LATENT,
                "seed": SEED,
                "steps": steps_widget(28),
                "cfg": cfg_widget(4.5),
                "solver": (
                    list(SOLVERS),
                    {
                        "default": "euler",
                        "tooltip": "How each step follows the flow. bosh3 and dopri5 choose their own steps between "
                        "the ends of the schedule. Model calls a step: " + calls + ".",
                    },
                ),
                "schedule": (
                    list(SCHEDULES),
                    {
                        "default": "linear",
                        "tooltip": "How the noise levels are spread; the shift is applied to each. linear: even steps. "
                        "sd3: the grid that SD3 shipped with (the host's 'normal'). beta and cosine: smaller first and "
                        "last steps. karras: small steps at the end. log_snr: even in signal to noise. cosmap: the "
                        "cosine schedule of diffusion models.",
                    },
                ),
                "shift": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.05,
                        "tooltip": "0: the model's own. Higher spends more steps on the layout, lower on detail; "
                        "larger pictures want more. SD3 and SD3.5: 3.",
                    },
                ),
                "denoise": DENOISE,
            }
        }

    def sample(self, model, positive, negative, latent_image, seed, steps, cfg, solver, schedule, shift, denoise):
        node = "FlowMatchingSampler"
        if not host.is_flow(model):
            raise InputError(
                node,
                "model",
                f"{type(model.model).__name__} is not a flow-matching model",
                "Connect SD3, SD3.5, FLUX or another rectified-flow model, or use KSampler",
            )
        prepared = host.prepare(model, latent_image, seed)
        check_inputs(node, model, positive, negative, prepared.samples)
        if denoise < MIN_DENOISE:
            return (latent_image,)
        if shift:
            model = host.with_shift(model, shift)
        levels = sigmas(steps, schedule, host.shift_of(model), denoise=denoise)
        samples = host.sample_flow(
            model, positive, negative, prepared, seed=seed, cfg=cfg, solver=solver, sigmas=levels
        )
        return (host.finish(latent_image, samples),)


class MMDiTSampler:
    """The host's samplers and schedulers, with this pack's checks and defaults that suit MMDiT models."""

    CATEGORY = "MMDiT"
    DESCRIPTION = "KSampler with defaults that suit SD3 and SD3.5, and errors that say what to change."
    SEARCH_ALIASES = ["ksampler", "sampler", "sd3 sampler"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent, for VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "latent_image": LATENT,
                "seed": SEED,
                "steps": steps_widget(28),
                "cfg": cfg_widget(4.5),
                "sampler_name": (
                    host.sampler_names(),
                    {"default": "euler", "tooltip": "The host's sampling method."},
                ),
                "scheduler": (
                    host.scheduler_names(),
                    {"default": "simple", "tooltip": "The host's spread of noise levels."},
                ),
                "denoise": DENOISE,
            }
        }

    def sample(self, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, denoise):
        prepared = host.prepare(model, latent_image, seed)
        check_inputs("MMDiTSampler", model, positive, negative, prepared.samples)
        samples = host.sample_host(
            model,
            positive,
            negative,
            prepared,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
        )
        return (host.finish(latent_image, samples),)


def check_inputs(node: str, model, positive, negative, samples) -> None:
    """Refuse what our core cannot run before anything is loaded onto the GPU. The host's own models check themselves.

    Raises: InputError for text of another model, a latent of other channels, a picture larger than the positions.
    """
    for name, conditioning in (("positive", positive), ("negative", negative)):
        if not conditioning:
            raise InputError(node, name, "it holds no prompt", "Connect the output of TripleTextEncode")
    config = core_config(model)
    if config is None:
        return
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for context, options in conditioning:
            found = context.shape[-1]
            if found != config.context_dim:
                raise InputError(
                    node,
                    name,
                    f"the text is {found} channels wide, the model takes {config.context_dim}",
                    "Encode the prompt with the CLIP that belongs to this model",
                )
            pooled = options.get("pooled_output")
            if pooled is not None and pooled.shape[-1] != config.pooled_dim:
                raise InputError(
                    node,
                    name,
                    f"the pooled text is {pooled.shape[-1]} channels wide, the model takes {config.pooled_dim}",
                    "Encode the prompt with the CLIP that belongs to this model",
                )
    if samples.ndim != 4:
        raise InputError(
            node,
            "latent_image",
            f"the latent has {samples.ndim} dimensions, as video latents do",
            "Connect the latent of a picture",
        )
    if samples.shape[1] != config.in_channels:
        raise InputError(
            node,
            "latent_image",
            f"the latent has {samples.shape[1]} channels, the model takes {config.in_channels}",
            "Encode the picture with the VAE that belongs to this model",
        )
    height, width = samples.shape[-2] * VAE_FACTOR, samples.shape[-1] * VAE_FACTOR
    most = config.pos_embed_max_size * config.patch_size * VAE_FACTOR
    if max(height, width) > most:
        raise InputError(
            node,
            "latent_image",
            f"the picture is {width} x {height} pixels, this model covers at most {most} x {most}",
            "Set a smaller width and height in the latent node",
        )


NODES = {
    "FlowMatchingSampler": (FlowMatchingSampler, "Flow Matching Sampler"),
    "MMDiTSampler": (MMDiTSampler, "MMDiT Sampler (host samplers)"),
}
