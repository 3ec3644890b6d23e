"""Inversion: an image's latent is integrated up to noise along the model's own velocity, inside ComfyUI's guider."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ....mmdit_core.editing.inversion import masked_velocity
from ....mmdit_core.editing.rf_inversion import drawn_to_noise
from ....mmdit_core.solvers import History, Point, solve_with_history
from .. import patching
from ..families import network_of
from ..fingerprint import fingerprint
from ..run import nan_check
from ..run.guidance import Guidance, make_guider
from ..run.resume import Flow, ResumeState
from ..run.sampling import Callback, PreparedLatent, call
from ..run.solver import RunSteps

Velocity = Callable[[Tensor, Tensor], Tensor]


def invert_flow(
    model,
    positive,
    prepared: PreparedLatent,
    *,
    solver: str,
    sigmas: Tensor,
    node: str,
    flow: Flow | None = None,
    toward: Tensor | None = None,
    gamma: float = 0.0,
    callback: Callback | None = None,
) -> tuple[ResumeState, int]:
    """Follow the velocity of the prompt alone (cfg 1) from an image to noise.

    Under a noise mask only the part inside it is inverted. Outside, x goes straight from the image to the noise, as the
    model gets it when the masked image is sampled.

    Args: prepared, its noise for the part outside a mask; sigmas [steps + 1] on the CPU, rising from 0 to 1; node,
        whose name the error has when a value is not finite; flow, as resume.flow_of gives it; toward, noise that the
        inversion is drawn to with strength gamma. Its history is then not the flow's, and is dropped.
    Returns: the state at the last sigma, from which a sampler starts instead of from noise; the number of predictions.
    """
    guider = make_guider(_with_velocity_at_zero(model), positive, positive, Guidance(1.0))
    run = InversionRun(solver, sigmas, node, toward, gamma)
    # MiniMax H3 makes noise for its references from the seed, and fails without one.
    samples = guider.sample(**call(prepared, model, run, sigmas, callback), seed=0)
    end = ResumeState(
        samples=samples.cpu(),
        sigma=float(sigmas[-1]),
        x=run.x.cpu(),
        noise=(run.x if prepared.mask is None else prepared.noise).cpu(),
        image=prepared.samples.cpu(),
        solver=solver,
        history=tuple(Point(point.sigma, point.x.cpu(), point.velocity.cpu()) for point in run.history if not gamma),
        flow=flow,
        mask=fingerprint(prepared.mask),
    )
    return end, run.predictions


def _divisor(sigma: Tensor) -> Tensor:
    """What x - denoised is divided by to get the velocity: sigma, and 1 at sigma 0."""
    return torch.where(sigma > 0, sigma, 1.0)


def divides_by_sigma(model) -> bool:
    """True if the network makes the velocity of an image that it predicts, which is not possible at sigma 0."""
    network = network_of(model.model)
    return type(network).__name__ == "NextDiTPixelSpace" or hasattr(network, "__x0__")  # Chroma Radiance's buffer


def _with_velocity_at_zero(model):
    """A clone of the MODEL whose denoised latent at sigma 0, where an inversion begins, is x - velocity.

    ComfyUI's is x there, from which no velocity can be computed. At all other sigmas ComfyUI's arithmetic stays: areas,
    other nodes' patches and rounding are those of the way back.
    """
    original = model.get_model_object("model_sampling")
    sampling = copy.copy(original)
    sampling.calculate_denoised = lambda sigma, output, x: original.calculate_denoised(_divisor(sigma), output, x)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


class InversionRun(comfy.samplers.Sampler):
    """A sampler for ComfyUI's guider. KSAMPLER would divide by 1 - sigma, which is 0 at the end.

    Attributes: x and history at the end, in the model's own scale; predictions, how many were made; evaluated, the
    sigmas at which the model is called, in order, for `patching.Run`.
    """

    def __init__(self, solver: str, sigmas: Tensor, node: str, toward: Tensor | None = None, gamma: float = 0.0):
        """Args: as `invert_flow`'s."""
        self.toward, self.gamma = toward, gamma
        self.steps, self.node = RunSteps(solver, sigmas, Guidance(1.0), ()), node
        self.evaluated = self.steps.all_evaluated
        self.predictions = 0
        self.x: Tensor
        self.history: History = ()

    def sample(
        self, model, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Run the inversion. Args: as ComfyUI's guider calls a sampler. Returns: x at the last sigma."""
        options: dict[str, Any] = extra_args.get("model_options", {})
        run = patching.run_of(options.get("transformer_options", {}))

        def predict(x: Tensor, sigma: Tensor, **changed: Any) -> Tensor:
            return (x - model(x, sigma.expand(len(x)), **{**extra_args, **changed})) / _divisor(sigma)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            _set_keyframes(model, float(sigma))
            if run is not None:
                run.sigma = float(sigma)
            self.predictions += 1
            found = predict(x, sigma)
            if nan_check.is_finite(found):
                return found
            raise nan_check.error(
                f"{self.node}: sigma {float(sigma):.4g}",
                [nan_check.Call(x, sigma, found)],
                lambda call, changed: predict(call.x, call.sigma, model_options=changed),
                options,
                model.inner_model,
            )

        def report(step: int, steps: int, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
            callback(step, x, x, steps)  # x itself as the preview: the denoised image hardly changes

        followed: Velocity = velocity
        if self.toward is not None:
            scale = noise_scale(model.inner_model.model_sampling)
            followed = drawn_to_noise(velocity, scale * self.toward.to(latent_image), self.gamma)
        if denoise_mask is not None:
            mask = mask_at(model, denoise_mask, options, sigmas.flip(0))
            followed = masked_velocity(followed, mask, latent_image, noise)
        steps = self.steps
        self.x, self.history = solve_with_history(followed, latent_image, steps.sigmas, steps.solver, callback=report)
        return self.x


def _set_keyframes(guider, sigma: float) -> None:
    """Set the hooks in a guider's conditioning to their keyframes of a sigma.

    ComfyUI only moves them forward, from noise to data, when it meets a sigma that differs from the last one.
    """
    conds = [cond for part in guider.conds.values() for cond in part if "hooks" in cond]
    groups = [hook.hook_keyframe for cond in conds for hook in cond["hooks"].hooks]
    changed = False
    for group in groups:
        if group.is_empty():
            continue
        started = [index for index, frame in enumerate(group.keyframes) if frame.start_t >= sigma]
        index = max(started, default=0)
        changed = changed or index != group._current_index
        group._current_index, group._current_keyframe = index, group.keyframes[index]
        group._current_strength, group._curr_t = group.keyframes[index].strength, sigma
    if changed:  # drop the weights that were made with the hooks of the last keyframe
        guider.model_patcher.patch_hooks(None)
        guider.model_patcher.cached_hook_patches.clear()


def noise_scale(sampling) -> float:
    """What ComfyUI's model_sampling multiplies noise by; most have none."""
    return float(getattr(sampling, "noise_scale", 1.0))


def mask_at(model, mask: Tensor, options: dict[str, Any], falling: Tensor) -> Velocity:
    """The mask at a sigma; another node may make it a function of sigma, as differential diffusion does.

    Args: falling, the sigmas of the run in the order in which such a function expects them.
    """
    changed = options.get("denoise_mask_function")
    if changed is None:
        return lambda x, sigma: mask
    extra = {"model": model, "sigmas": falling}
    return lambda x, sigma: changed(sigma.to(x.device).expand(len(x)), mask, extra_options=extra)
