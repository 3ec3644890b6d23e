"""What tests of the model share: tiny random models, their inputs, and a count of the layers that are read."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import torch

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.flow.schedules import sigmas

TINY = dict(hidden_size=128, num_heads=2, depth=4, context_dim=48, pooled_dim=40, pos_embed_max_size=12)
CONFIGS = {
    "plain": MMDiTConfig(**TINY),
    "qk-norm": MMDiTConfig(**TINY, qk_norm="rms"),
    "dual": MMDiTConfig(**TINY, qk_norm="rms", dual_attention=(0, 1)),
    "guidance": MMDiTConfig(**TINY, guidance_embed=True),
}
TOLERANCE = 1e-6  # in float32, of the largest value of the velocity
LEVELS = 1000 * sigmas(8, "linear", 3.0)[:-1].float()


def random_model(config: MMDiTConfig, seed: int = 0) -> MMDiT:
    torch.manual_seed(seed)
    model = MMDiT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    model.pos_embed.normal_()
    return model


def inputs(batch: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"x": torch.randn(batch, 16, 8, 12), "context": torch.randn(batch, 21, 48), "y": torch.randn(batch, 40)}


def call(model, timestep, given, options=None, **more):
    batch = len(given["x"])
    time = timestep if torch.is_tensor(timestep) and timestep.ndim else torch.full((batch,), float(timestep))
    return model(timesteps=time, transformer_options=options or {}, **given, **more)


def error(found, expected) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@contextmanager
def reads(model, kinds=("adaln", "text", "vector")):
    """How often each kind of layer is called, and with it read, while this is open."""
    counts: Counter[str] = Counter()

    def counted(kind: str):
        return lambda *_: counts.update([kind] if kind in kinds else [])

    handles = [model.context_embedder.register_forward_hook(counted("text"))]
    for name, layer in model.named_modules():
        if name.endswith("adaLN_modulation.1"):
            handles.append(layer.register_forward_hook(counted("adaln")))
        elif name in ("t_embedder", "y_embedder", "guidance_embedder"):
            handles.append(layer.register_forward_hook(counted("vector")))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def adaln_layers(model) -> int:
    return 2 * model.config.depth + 1
