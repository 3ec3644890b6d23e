"""FlowEdit: an image is changed along the difference of two velocities, without inversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .inversion import Field, masked_velocity

Noise = Callable[[int, int], Tensor]  # (step, draw) -> standard normal noise of the image's shape
Report = Callable[[int, Tensor], object]


@dataclass(frozen=True)
class EditState:
    """An edit between two steps. Fields: step, the next one; x [B, ...], the image so far, noisy while refining."""

    step: int
    x: Tensor


def flow_edit(
    source: Field,
    target: Field,
    image: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    refine_steps: int = 0,
    average: int = 1,
    mask_at: Field | None = None,
    start: EditState | None = None,
    report: Report | None = None,
) -> Tensor:
    """Edit an image so that it changes as the target's velocity differs from the source's.

    In each step, with new noise n: noisy = (1 - sigma) * image + sigma * n, and
    z <- z + (sigma' - sigma) * (target(noisy + (z - image)) - source(noisy)).
    In this form equal velocities give the image bit for bit. In the last `refine_steps` the noisy edit is sampled with
    the target alone, by Euler's method.

    Args: source, target (x, sigma) -> velocity, sigma 0-d on the CPU; image [B, ...]; sigmas of the steps to run
        [n + 1], falling; noise(step, draw) of a step, counted from 0; refine_steps in [0, n]; average >= 1, draws of
        noise in each step; mask_at(x, sigma) in [0, 1], 1 where the image may change; start, to continue; report(step,
        z), called after each step.
    Returns: the edited image [B, ...].
    Raises: ValueError for refine_steps or average out of range.
    Source: Kulikov et al. 2024, "FlowEdit", arXiv 2412.08629, algorithm 1, and the authors' code for n_min.
    """
    steps = len(sigmas) - 1
    if not 0 <= refine_steps <= steps:
        raise ValueError(f"flow_edit: refine_steps is {refine_steps}; it must be from 0 to {steps}")
    if average < 1:
        raise ValueError(f"flow_edit: average is {average}; it must be 1 or more")
    first_refined = steps - refine_steps
    begin, x = (0, image) if start is None else (start.step, start.x)
    refining: Field = target
    if refine_steps and mask_at is not None:
        refining = masked_velocity(target, mask_at, image, noise(first_refined, 0))
    for step in range(begin, steps):
        sigma, following = sigmas[step], sigmas[step + 1]
        at = torch.tensor(sigma, dtype=torch.float64)  # on the CPU: reading it waits for no device
        if step < first_refined:
            difference = _difference(source, target, image, x, sigma, [noise(step, draw) for draw in range(average)])
            if mask_at is not None:
                difference = difference * mask_at(x, at)
            x = x + (following - sigma) * difference
        else:
            if step == first_refined:
                x = _noisy(image, sigma, noise(step, 0)) + (x - image)
            x = x + (following - sigma) * refining(x, at)
        if report is not None:
            report(step, x)
    return x


def _difference(source: Field, target: Field, image: Tensor, z: Tensor, sigma: float, noises: list[Tensor]) -> Tensor:
    """The target's velocity less the source's, averaged over draws of noise."""
    found, at = [], torch.tensor(sigma, dtype=torch.float64)
    for noise in noises:
        noisy = _noisy(image, sigma, noise)
        found.append(target(noisy + (z - image), at) - source(noisy, at))
    return found[0] if len(found) == 1 else sum(found[1:], found[0]) / len(found)


def _noisy(image: Tensor, sigma: float, noise: Tensor) -> Tensor:
    return (1 - sigma) * image + sigma * noise
