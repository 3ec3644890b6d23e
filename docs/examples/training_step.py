"""One step of training on a batch of latents, with the loss before and after it."""

import torch
from common import options

from mmdit_core import MMDiT, MMDiTConfig, flow_loss, interpolate, load_model, sample_timesteps

tiny = MMDiTConfig(hidden_size=64, num_heads=1, depth=2, context_dim=32, pooled_dim=16, pos_embed_max_size=24)
given = options(__doc__, MMDiT(tiny))

model = load_model(given.checkpoint, dtype=torch.float32, device=given.device).train().requires_grad_(True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
data = torch.randn(4, model.config.in_channels, 16, 16, device=given.device)  # latents of images
text = {
    "context": torch.randn(4, 20, model.config.context_dim, device=given.device),
    "y": torch.randn(4, model.config.pooled_dim, device=given.device),
}
sigma, noise = sample_timesteps(4, shift=3.0, device=given.device), torch.randn_like(data)


def loss():
    return flow_loss(model(interpolate(data, noise, sigma), 1000 * sigma, **text), data, noise)


before = loss()
before.backward()
optimizer.step()
print(f"loss {before:.4f} -> {loss():.4f}")
