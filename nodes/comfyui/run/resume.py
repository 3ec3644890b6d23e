"""The resume state that a run puts in its LATENT, so that another sampler can continue it, and when that is allowed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....mmdit_core.flow.sigma import same_sigma
from ....mmdit_core.solvers import SOLVERS, History
from ..fingerprint import fingerprint, of_model

KEY = "mmdit_resume"


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
    which the part outside a noise mask is made; solver, and the history that it needs; seeds and states of the
    generators of stochastic steps; flow of an inversion: with another flow its history has no meaning.
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

    def for_run(self, solver: str, cfg: float, model, positive, sigmas: Tensor, mask: Tensor | None) -> ResumeState:
        """The state for a run; without the history if that is another solver's, or of an inversion along another flow.

        Args: cfg: only at 1 the flow is that of one prompt; the others as for `flow_of`.
        """
        fits = self.solver == solver
        if self.flow is not None:
            reversible = cfg == 1 and SOLVERS[solver].reversible
            fits = fits and reversible and self.flow == flow_of(model, positive, sigmas, mask)
        return self if fits else replace(self, history=())


def resume_state(latent: dict[str, Any]) -> ResumeState | None:
    """The resume state in a LATENT; None if there is none, or if the samples were changed since."""
    found, samples = latent.get(KEY), latent["samples"]
    if found is None or samples.is_nested or samples.shape != found.samples.shape:
        return None
    return found if torch.equal(samples.cpu(), found.samples) else None
