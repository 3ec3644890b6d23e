"""Text to latent with FLUX.1."""

import math

import torch
from common import options, report

from mmdit_core import Flux, FluxConfig, load_model, sigmas, solve

tiny = FluxConfig(64, 2, 2, 2, context_dim=32, pooled_dim=16, axes_dim=(4, 14, 14), guidance_embed=True)
given = options(__doc__, Flux(tiny))

model = load_model(given.checkpoint, device=given.device)
like = {"dtype": model.dtype, "device": given.device}
text = {
    "context": torch.randn(1, 256, model.config.context_dim, **like),  # the prompt, encoded by T5
    "y": torch.randn(1, model.config.pooled_dim, **like),  # CLIP-L's pooled text
    "guidance": torch.tensor([3.5], device=given.device) if model.config.guidance_embed else None,  # dev, not schnell
}


def velocity(x, sigma):
    return model(x, 1000 * sigma.expand(1), **text)


noise = torch.randn(1, model.config.channels_out, 32, 32, **like)  # 8 pixels of the image each
report(solve(velocity, noise, sigmas(given.steps, shift=math.exp(1.15)), solver="euler"))
