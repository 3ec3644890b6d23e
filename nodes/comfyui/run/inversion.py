"""A picture's latent integrated up to noise along the model's own velocity, inside the host's guider."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ....mmdit_core.editing.inversion import masked_velocity
from ....mmdit_core.solvers import History, Point, solve_with_history
from . import nan_check as guard
from .guider import FlowGuider, Guidance
from .resume import Unfinished
from .sampling import Prepared


def invert_flow(
    model,
    positive,
    prepared: Prepared,
    *,
    solver: str,
    levels: Tensor,
    guarded_by: str,
    flow: Any = None,
    callback: Callable[..., None] | None = None,
) -> tuple[Unfinished, int]:
    """Follow the velocity of the prompt alone (cfg 1) from a picture to noise.

    Under a noise mask only what it shows is inverted. What it hides goes straight from the picture to the noise, as the
    model is shown it when the masked picture is sampled.

    Args: prepared, its noise for what a mask hides; levels [steps + 1] on the CPU, rising from 0 to 1; guarded_by, the
        node in whose name the first value that is not finite ends the run; flow, as handover.flow_of gives it;
        callback(step, x, x, steps), in place of the host's progress bar and preview.
    Returns: the state at the last level, at which a sampler begins in place of noise; the number of model calls.
    """
    guider = FlowGuider(_with_velocity_at_zero(model), positive, positive, Guidance(1.0))
    climb = _Climb(solver, levels, guarded_by)
    samples = guider.sample(
        prepared.noise,
        prepared.samples,
        climb,
        levels.float(),
        denoise_mask=prepared.mask,
        callback=callback or latent_preview.prepare_callback(model, len(levels) - 1),
        disable_pbar=callback is not None or not comfy.utils.PROGRESS_BAR_ENABLED,
    )
    end = Unfinished(
        samples=samples.cpu(),
        sigma=float(levels[-1]),
        x=climb.x.cpu(),
        noise=(climb.x if prepared.mask is None else prepared.noise).cpu(),
        image=prepared.samples.cpu(),
        solver=solver,
        history=tuple(Point(point.sigma, point.x.cpu(), point.velocity.cpu()) for point in climb.history),
        flow=flow,
    )
    return end, guider.alone


def _divisor(sigma: Tensor) -> Tensor:
    """What x - denoised is divided by to get the velocity: sigma, and 1 at sigma 0."""
    return torch.where(sigma > 0, sigma, 1.0)


def _with_velocity_at_zero(model):
    """A clone of the MODEL that at sigma 0, where an inversion begins, gives x - velocity for the denoised latent.

    That one is x there, and tells nothing of the velocity. All other levels are left to the host: areas, other nodes'
    patches and its rounding are then those of the way back.
    """
    original = model.get_model_object("model_sampling")
    sampling = copy.copy(original)
    sampling.calculate_denoised = lambda sigma, output, x: original.calculate_denoised(_divisor(sigma), output, x)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


class _Climb(comfy.samplers.Sampler):
    """A sampler as the host's guider calls them, without the host's division by 1 - sigma, which is 0 at the end.

    x, history: where it ended, in the model's own scale.
    """

    def __init__(self, solver: str, levels: Tensor, guarded_by: str):
        self.solver, self.levels, self.guarded_by = solver, levels, guarded_by
        self.x: Tensor
        self.history: History = ()

    def sample(
        self, model, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            _turn_keyframes(model, float(sigma))
            return self._finite(model, x, sigma, extra_args)

        def report(step: int, steps: int, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
            if callback is not None:
                callback(step, x, x, steps)  # the picture as it dissolves: the denoised one would hardly change

        if denoise_mask is not None:
            options = extra_args.get("model_options", {})
            velocity = masked_velocity(velocity, _mask_at(model, denoise_mask, options, sigmas), latent_image, noise)
        self.x, self.history = solve_with_history(velocity, latent_image, self.levels, self.solver, callback=report)
        return self.x

    def _finite(self, model, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
        def predict(x: Tensor, sigma: Tensor, **changed: Any) -> Tensor:
            return (x - model(x, sigma.expand(len(x)), **{**extra_args, **changed})) / _divisor(sigma)

        velocity = predict(x, sigma)
        if guard.is_finite(velocity):
            return velocity
        said = guard.explain(
            [guard.Call(x, sigma, velocity)],
            lambda call, options: predict(call.x, call.sigma, model_options=options),
            extra_args.get("model_options", {}),
            model.inner_model,
        )
        raise guard.NotFiniteError(
            f"{self.guarded_by}: sigma {float(sigma):.4g} gives a value that is not finite: {said}. {guard.REMEDY}"
        )


def _turn_keyframes(guider, sigma: float) -> None:
    """Set the hooks in a guider's conditioning to their keyframes of a noise level.

    The host only ever turns them forward, from noise to data, where it meets a level that it did not see last.
    """
    conds = [cond for part in guider.conds.values() for cond in part if "hooks" in cond]
    groups = [hook.hook_keyframe for cond in conds for hook in cond["hooks"].hooks]
    turned = False
    for group in groups:
        if group.is_empty():
            continue
        begun = [index for index, frame in enumerate(group.keyframes) if frame.start_t >= sigma]
        index = max(begun, default=0)
        turned = turned or index != group._current_index
        group._current_index, group._current_keyframe = index, group.keyframes[index]
        group._current_strength, group._curr_t = group.keyframes[index].strength, sigma
    if turned:  # the weights with these hooks are to be made anew
        guider.model_patcher.patch_hooks(None)
        guider.model_patcher.cached_hook_patches.clear()


Velocity = Callable[[Tensor, Tensor], Tensor]


def _mask_at(model, mask: Tensor, options: dict[str, Any], sigmas: Tensor) -> Velocity:
    """The mask at a noise level, of which another node may make a function, as differential diffusion does."""
    changed = options.get("denoise_mask_function")
    if changed is None:
        return lambda x, sigma: mask
    falling = sigmas.flip(0)  # how such a function knows them
    return lambda x, sigma: changed(sigma.expand(len(x)), mask, extra_options={"model": model, "sigmas": falling})
