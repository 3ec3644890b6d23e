"""Text to latent with SD3 or SD3.5."""

import torch
from common import options, report

from mmdit_core import MMDiT, MMDiTConfig, load_model, sigmas, solve
from mmdit_core.guidance.cfg import cfg

tiny = MMDiTConfig(hidden_size=64, num_heads=1, depth=2, context_dim=32, pooled_dim=16, pos_embed_max_size=24)
given = options(__doc__, MMDiT(tiny))

model = load_model(given.checkpoint, device=given.device)
like = {"dtype": model.dtype, "device": given.device}
context = torch.randn(2, 154, model.config.context_dim, **like)  # the encoded prompt and negative prompt: CLIP, then T5
pooled = torch.randn(2, model.config.pooled_dim, **like)  # CLIP-L's and CLIP-G's pooled text


def velocity(x, sigma):
    cond, uncond = model(x.repeat(2, 1, 1, 1), 1000 * sigma.repeat(2), context=context, y=pooled).chunk(2)
    return cfg(cond, uncond, scale=4.5)


noise = torch.randn(1, model.config.in_channels, 32, 32, **like)  # 8 pixels of the image each
report(solve(velocity, noise, sigmas(given.steps, shift=3.0), solver="dpmpp_2m"))
