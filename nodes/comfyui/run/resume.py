"""What a run that ends early hands on in its LATENT, so that the next sampler goes on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....mmdit_core.solvers import History
from ..fingerprint import fingerprint, of_model

KEY = "mmdit_unfinished"
LEVEL_DIGITS = 6  # of noise levels that are the same; the host's SIGMAS are float32


@dataclass(frozen=True)
class Unfinished:
    """Where a run stands; all tensors on the CPU.

    samples: the LATENT's, as the run left them. Host nodes copy a LATENT's other keys along with samples that they
    changed, so what is said here holds for these very values alone.
    sigma: the noise level; x [B, C, H, W] there, float32, in the model's own scale; noise and image: the noise and the
    LATENT's samples [B, C, H, W] that the run began with, which the part outside a noise mask is made of.
    history: what the solver of that name remembers; seeds and states: of the generators of stochastic steps; flow: of
    an inversion, what it followed (`flow_of`): elsewhere its history means nothing.
    """

    samples: Tensor
    sigma: float
    x: Tensor
    noise: Tensor
    image: Tensor
    history: History = ()
    seeds: tuple[int, ...] = ()
    states: tuple[Tensor, ...] = ()
    flow: Any = None
    solver: str = ""


def unfinished(latent: dict[str, Any]) -> Unfinished | None:
    """The run that a LATENT comes from, where it is unfinished and nobody changed the LATENT since."""
    found, samples = latent.get(KEY), latent["samples"]
    if found is None or samples.is_nested or samples.shape != found.samples.shape:
        return None
    return found if torch.equal(samples.cpu(), found.samples) else None


def without_history(start: Unfinished) -> Unfinished:
    return replace(start, history=())


def flow_of(model, positive, levels: Tensor, mask: Tensor | None = None) -> Any:
    """What decides where a run at cfg 1 leads, whichever way it goes, compared with ==.

    Args: model, positive and the noise mask as they came into the node; levels [steps + 1], rising or falling.
    """
    rounded = tuple(sorted(round(level, LEVEL_DIGITS) for level in levels.tolist()))
    return of_model(model), fingerprint(positive), fingerprint(mask), rounded
