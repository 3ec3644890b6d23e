"""Text to latent with Qwen-Image."""

import math

import torch
from common import options, report

from mmdit_core import QwenImage, QwenImageConfig, load_model, sigmas, solve
from mmdit_core.guidance.cfg import cfg

given = options(
    __doc__, QwenImage(QwenImageConfig(hidden_size=64, num_heads=2, depth=2, context_dim=32, axes_dim=(4, 14, 14)))
)

model = load_model(given.checkpoint, device=given.device)
like = {"dtype": model.dtype, "device": given.device}
context = torch.randn(2, 20, model.config.context_dim, **like)  # the encoded prompt and negative prompt
mask = torch.arange(20, device=given.device) < torch.tensor([[20], [6]], device=given.device)  # of 20 and of 6 tokens
levels = sigmas(given.steps, shift=math.exp(1.15))


def velocity(x, sigma):
    x, timesteps = x.repeat(2, 1, 1, 1), 1000 * sigma.repeat(2)
    both = model(x, timesteps, context=context, attention_mask=mask, transformer_options=cache)
    return cfg(*both.chunk(2), scale=4.0)


noise = torch.randn(1, model.config.in_channels, 32, 32, **like)  # 8 pixels of the image each
with torch.inference_mode(), model.adaln_cache(1000 * levels[:-1]) as cache:  # a third of the weights is read once
    report(solve(velocity, noise, levels, solver="euler"))
