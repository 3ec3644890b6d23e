"""SweepXY and the plain nodes on a tiny random model."""

from __future__ import annotations

import json

import comfy.model_management
import torch

WINDOW = dict(start_percent=0.0, end_percent=1.0)
BOOST = dict(blocks="0", strength=2.0, mode="value", phrase="", part="all", branch="both", fade="constant", **WINDOW)
BASE = dict(seed=7, steps=3, cfg=3.0, solver="euler", schedule="linear", shift=0.0, denoise=1.0)


class Vae:
    """A VAE that decodes to the first three channels of the latent, enlarged. `calls` counts; it may cancel at one."""

    def __init__(self, cancel_at: int | None = None):
        self.calls, self.cancel_at = 0, cancel_at

    def decode(self, latent):
        self.calls += 1
        if self.calls == self.cancel_at:
            comfy.model_management.interrupt_current_processing(True)
        return (latent[:, :3] / 6 + 0.5).clamp(0, 1).movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)


def texts(seed=1):
    torch.manual_seed(seed)
    return [[[torch.randn(1, 20, 4096), {"pooled_output": torch.randn(1, 2048)}]] for _ in range(2)]


def empty(batch=1):
    return {"samples": torch.zeros(batch, 16, 8, 8)}


def sweep(node, model, *, conds=None, latent=None, vae=None, **changed):
    given = {**BASE, "x": "cfg", "x_values": "1, 3", "y": "none", "y_values": "", **changed}
    sheet, images, report = node.sweep(model, *(conds or texts()), latent or empty(), vae or Vae(), **given)
    return sheet, images, json.loads(report)


def latents(node) -> list[torch.Tensor]:
    """The finished latents in the order in which they were made."""
    return [made.latent for made in node._kept.values()]


def sampled(nodes, model, *, latent=None, **changed) -> torch.Tensor:
    """What FlowMatchingSampler gives."""
    return nodes["FlowMatchingSampler"]().sample(model, *texts(), latent or empty(), **{**BASE, **changed})[0][
        "samples"
    ]


def boosted(nodes, model, **changed):
    return nodes["TextBoost"]().apply(model, **{**BOOST, **changed})[0]


def skipped(nodes, model, **changed):
    return nodes["BlockSkip"]().apply(model, **{"blocks": "0", "branch": "both", **WINDOW, **changed})[0]
