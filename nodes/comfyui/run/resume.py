"""The resume state that a run puts in its LATENT, so that another sampler can continue it, and when that is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....mmdit_core.flow.sigma import same_sigma
from ....mmdit_core.solvers import SOLVERS, History
from ..fingerprint import fingerprint, of_model
from ..step_cache import Stored

KEY = "mmdit_resume"
# A key that ComfyUI's samplers remove from the LATENT that they return, and that all other nodes copy along with the
# resume state. With None it has no meaning. While it is there, no sampler of ComfyUI's went on from the run.
NOT_SAMPLED = "downscale_ratio_temporal"
NO_MASK = fingerprint(None)


@dataclass(frozen=True, eq=False)
class Flow:
    """What decides where a run at cfg 1 leads, in either direction.

    Fields: decided_by, compared with ==; sigmas of the schedule, rising.
    """

    decided_by: Any
    sigmas: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        """True if both runs follow the same velocities through the same sigmas."""
        if not isinstance(other, Flow):
            return NotImplemented
        same_steps = len(self.sigmas) == len(other.sigmas) and all(map(same_sigma, self.sigmas, other.sigmas))
        return same_steps and self.decided_by == other.decided_by


def flow_of(model, positive, sigmas: Tensor, mask: Tensor | None = None) -> Flow:
    """Args: model, positive and the noise mask as they came into the node; sigmas [steps + 1], rising or falling."""
    return Flow((of_model(model), fingerprint(positive), fingerprint(mask)), tuple(sorted(sigmas.tolist())))


@dataclass(frozen=True)
class ResumeState:
    """The state of a run between two steps; all tensors on the CPU.

    Fields: samples, the LATENT's as the run returned them. ComfyUI's nodes copy a LATENT's other keys along with
    samples that they changed, so the state is valid for exactly these samples. sigma; x [B, C, H, W] there, float32, in
    the model's own scale; noise and image, the noise and the LATENT's samples [B, C, H, W] at the run's start, from
    which the part outside a noise mask is made; mask, its fingerprint; solver, and the history that it needs; seeds and
    states of the generators of stochastic steps; flow of an inversion: with another flow its history has no meaning;
    schedule, all sigmas of the run up to this one, () after an inversion; stored predictions of a step cache, and the
    fingerprint of the MODEL that made them: they have no meaning for another.
    """

    samples: Tensor
    sigma: float
    x: Tensor
    noise: Tensor
    image: Tensor
    solver: str = ""
    history: History = ()
    seeds: tuple[int, ...] = ()
    states: tuple[Tensor, ...] = ()
    flow: Flow | None = None
    mask: Any = NO_MASK
    schedule: tuple[float, ...] = ()
    stored: Stored = field(default_factory=dict)
    stored_of: Any = None

    def for_run(self, solver: str, cfg: float, model, positive, sigmas: Tensor, mask: Tensor | None) -> ResumeState:
        """The state for a run, without what is another's.

        That is the history of another solver, or of an inversion along another flow, and another MODEL's predictions.
        Args: cfg: only at 1 the flow is that of one prompt; the others as for `flow_of`.
        """
        fits = self.solver == solver
        if self.flow is not None:
            reversible = cfg == 1 and SOLVERS[solver].reversible
            fits = fits and reversible and self.flow == flow_of(model, positive, sigmas, mask)
        stored = self.stored if self.stored and self.stored_of == of_model(model) else {}
        return replace(self, history=self.history if fits else (), stored=stored)


def resume_state(latent: dict[str, Any]) -> ResumeState | None:
    """The resume state in a LATENT; None if there is none, or if the samples were changed since."""
    found = _state_in(latent)
    return found if found is not None and _same(latent["samples"], found.samples) else None


def changed_since(latent: dict[str, Any]) -> ResumeState | None:
    """The resume state in a LATENT whose samples a node changed since, such as one that resizes or flips them.

    None if they are the run's own, and if a sampler of ComfyUI's went on from them: it may have made an image.
    """
    found = _state_in(latent)
    return None if found is None or NOT_SAMPLED not in latent or _same(latent["samples"], found.samples) else found


def sampled_since(latent: dict[str, Any]) -> bool:
    """True if a sampler of ComfyUI's went on from the run that the LATENT has a resume state of."""
    return _state_in(latent) is not None and resume_state(latent) is None and changed_since(latent) is None


def _state_in(latent: dict[str, Any]) -> ResumeState | None:
    found = latent.get(KEY)
    return found if isinstance(found, ResumeState) else None


def _same(samples: Any, others: Tensor) -> bool:
    """True for equal samples; False for latents of several kinds, which no resume state has."""
    return not samples.is_nested and samples.shape == others.shape and torch.equal(samples.cpu(), others)
