"""The small VAE in TAESD's layout, which ComfyUI loads: a linear encoder set by construction and a trained decoder.

The encoder projects each 8 x 8 patch onto 16 components. Training encodes a batch with one matmul; the exported file
has the same projection in TAESD's convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS, FACTOR, PATCH = 16, 8, 192
# ComfyUI applies SD3's latent format around the VAE; these undo it.
VAE_SCALE, VAE_SHIFT = 1.5305, 0.0609


def patches(images: Tensor) -> Tensor:
    """[B, H, W, 3] -> [B, H/8, W/8, 192], each patch in the order (row, column, colour)."""
    batch, height, width, _ = images.shape
    grid = images.reshape(batch, height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, height // FACTOR, width // FACTOR, PATCH)


def encode(images: Tensor, projection: Tensor, bias: Tensor) -> Tensor:
    """Images [B, H, W, 3] in [0, 1] -> latents [B, 16, H/8, W/8]; projection [16, 192], bias [16]."""
    return (patches(images) @ projection.T + bias).permute(0, 3, 1, 2)


def fit_projection(images: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the principal components of patches, partly whitened, with unit variance overall.

    The first component is brightness; flat backgrounds make its variance large. Its standard deviation is limited to
    1.4, so that nearly all latents are below the decoder's soft clamp at 3.
    Returns: projection [16, 192] and bias [16].
    """
    flat = patches(images).reshape(-1, PATCH).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    std = values.pow(0.25)
    std = (std / std[1:].square().mean().sqrt()).clamp(max=1.4)
    scale = std / values.sqrt()
    projection = (vectors * scale).T
    return projection.float(), (-projection @ mean).float()


class Clamp(nn.Module):
    """TAESD's soft clamp of latents to (-3, 3)."""

    def forward(self, latent: Tensor) -> Tensor:
        """Clamp a latent of any shape."""
        return torch.tanh(latent / 3) * 3


class Block(nn.Module):
    """TAESD's residual block of three convolutions."""

    def __init__(self, width: int = 64):
        super().__init__()
        layers = [conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return F.relu(self.conv(x) + x)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def build_encoder(width: int = 64) -> nn.Sequential:
    """TAESD's encoder: images [B, 3, 8h, 8w] in [0, 1] -> latents [B, 16, h, w]; see `encoder_state`."""
    layers: list[nn.Module] = [conv(3, width), Block(width)]
    for _ in range(3):
        layers += [conv(width, width, stride=2, bias=False), Block(width), Block(width), Block(width)]
    return nn.Sequential(*layers, conv(width, CHANNELS))


def build_decoder(width: int = 64) -> nn.Sequential:
    """TAESD's decoder: latents [B, 16, h, w] -> images [B, 3, 8h, 8w] in [0, 1]."""
    layers: list[nn.Module] = [Clamp(), conv(CHANNELS, width), nn.ReLU()]
    for _ in range(3):
        layers += [Block(width), Block(width), Block(width), nn.Upsample(scale_factor=2)]
        layers += [conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width), conv(width, 3))


def encoder_state(projection: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The linear encoder as tensors of TAESD's `Encoder` with 16 channels.

    The first convolution copies RGB. Each stride-2 convolution gathers 2 x 2 pixels into channels: 3 become 12, 48 and
    192; the last of them also applies the projection. Residual blocks with zero weights end with a ReLU, so the result
    is split into its positive and its negative part, which the last convolution subtracts.
    """
    width = 64
    state = {}
    for index in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        for layer in (0, 2, 4):
            state[f"{index}.conv.{layer}.weight"] = torch.zeros(width, width, 3, 3)
            state[f"{index}.conv.{layer}.bias"] = torch.zeros(width)
    first = torch.zeros(width, 3, 3, 3)
    first[range(3), range(3), 1, 1] = 1
    state["0.weight"], state["0.bias"] = first, torch.zeros(width)
    # A stride-2 convolution with padding 1 covers rows 2i - 1 .. 2i + 1: taps 1 and 2 are the cell's own pixels.
    for index, channels in ((2, 3), (6, 12)):
        gather = torch.zeros(width, width, 3, 3)
        for row in range(2):
            for column in range(2):
                block = (2 * row + column) * channels
                gather[range(block, block + channels), range(channels), row + 1, column + 1] = 1
        state[f"{index}.weight"] = gather
    gather = torch.zeros(width, width, 3, 3)
    # Bits of a pixel's row and column in its patch, from the coarsest to the finest.
    weights = projection.reshape(CHANNELS, 2, 2, 2, 2, 2, 2, 3)  # [z, row bits 4 2 1, column bits 4 2 1, colour]
    for row in range(2):
        for column in range(2):
            part = weights[:, row, :, :, column].permute(0, 1, 3, 2, 4, 5).reshape(CHANNELS, 48)
            gather[:CHANNELS, :48, row + 1, column + 1] = part
            gather[CHANNELS : 2 * CHANNELS, :48, row + 1, column + 1] = -part
    state["10.weight"] = gather
    last = torch.zeros(CHANNELS, width, 3, 3)
    last[range(CHANNELS), range(CHANNELS), 1, 1] = 1
    last[range(CHANNELS), range(CHANNELS, 2 * CHANNELS), 1, 1] = -1
    state["14.weight"], state["14.bias"] = last, bias.clone()
    return state
