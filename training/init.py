"""Weights to train from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdit_core import MMDiT


@torch.no_grad()
def init_weights(model: MMDiT) -> None:
    """AdaLN-Zero: every block starts as the identity, and the output starts at zero.

    Draws from torch's global generator.
    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers".
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, weight in model.named_parameters():
        if "_embedder.mlp" in name and name.endswith("weight"):
            nn.init.normal_(weight, std=0.02)
        elif "adaLN_modulation" in name or "final_layer.linear" in name:
            nn.init.zeros_(weight)
    model.pos_embed.copy_(sincos_positions(model.config.hidden_size, model.config.pos_embed_max_size))


def sincos_positions(dim: int, size: int) -> Tensor:
    """Fixed two-dimensional positions, as SD3 stores them: half the channels for the column, half for the row.

    Args: dim, a multiple of 4; size, the side of the grid in patches.
    Returns: [1, size * size, dim] float32, row by row.
    """
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=-1).float()
    columns = line[None, :, :].expand(size, size, -1)
    rows = line[:, None, :].expand(size, size, -1)
    return torch.cat((columns, rows), dim=-1).reshape(1, size * size, dim)
