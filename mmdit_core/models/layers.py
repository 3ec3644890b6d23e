"""The layers of an MMDiT: modulation, projections, MLP, embeddings of timestep, position and latent, the output.

Each layer takes `operations`, a namespace with Linear, Conv2d, LayerNorm and RMSNorm, and the factory arguments device
and dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MMDiTConfig
from . import adaln
from .patches import Options

NORM_EPS = 1e-6
TIME_FEATURES = 256  # of a timestep's embedding
ABSENT: Any = None  # in place of what a stream does not have


class Modulation(NamedTuple):
    """AdaLN's vectors for one sublayer, each [B, 1, D]; a sublayer whose output is unused has no gate."""

    shift: Tensor
    scale: Tensor
    gate: Tensor = ABSENT


def modulate(x: Tensor, mod: Modulation) -> Tensor:
    """x * (1 + scale) + shift; x [B, L, D]."""
    return torch.addcmul(mod.shift, x, 1 + mod.scale)


def gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update; x and update [B, L, D], gate [B, 1, D]. One operation, so that no product is stored."""
    return torch.addcmul(x, gate, update)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of the timestep, always in float32: a half-precision timestep of 1000 errs by 0.04.

    Args: timesteps [B] in 0..1000; dim, even.
    Returns: [B, dim] float32, cosines first.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rotary_embedding(ids: Tensor, axes_dim: Sequence[int], theta: float) -> Tensor:
    """The rotations of queries and keys at each position (RoPE, with some channels of a head for each axis).

    Args: ids [B, L, axes], positions; axes_dim, even, the channels of each axis; theta, the base of the frequencies.
    Returns: [B, 1, L, d / 2, 2, 2] float32, a 2 x 2 matrix for each pair of channels: the form of ComfyUI's models.
    Source: Su et al. 2021, arXiv 2104.09864, equation 15.
    """
    # Positions of some hundreds lose digits in float32; Apple's GPUs have no float64.
    exact = torch.float32 if ids.device.type == "mps" else torch.float64
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponents = torch.arange(0, dim, 2, dtype=exact, device=ids.device) / dim
        angles.append(ids[..., axis, None].to(exact) * theta**-exponents)
    angle = torch.cat(angles, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)).float().unsqueeze(1)


def rotate(x: Tensor, pe: Tensor) -> Tensor:
    """x [B, heads, L, d] with each pair of channels rotated by `rotary_embedding`; computed in float32."""
    first, second = x.to(pe.dtype).unflatten(-1, (-1, 1, 2)).unbind(-1)  # [..., d / 2, 1]
    return torch.addcmul(pe[..., 0] * first, pe[..., 1], second).flatten(-2).to(x.dtype)


def finite(x: Tensor) -> Tensor:
    """x with float16's overflows at its largest values, as ComfyUI does in FLUX's blocks; x itself in other dtypes."""
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x


class Embedder(nn.Module):
    """Linear, SiLU, linear: the embedding of a vector (timestep features, pooled text, guidance features)."""

    def __init__(self, in_dim: int, hidden_size: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(in_dim, hidden_size, **factory),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim] -> [B, D]."""
        return self.mlp(x)


class PatchEmbed(nn.Module):
    """Latent [B, C, H, W] -> tokens [B, L, D], one for each patch; H and W are multiples of the patch size."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.proj = operations.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, D]."""
        # Contiguous: left transposed, the stream would be copied before every norm of every block.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class Mlp(nn.Module):
    """Linear, GELU (tanh), linear, on each token."""

    def __init__(self, hidden_size: int, mlp_ratio: float, *, operations: Any = nn, **factory: Any):
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.fc1 = operations.Linear(hidden_size, inner, **factory)
        self.fc2 = operations.Linear(inner, hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class AttentionProjections(nn.Module):
    """The projections around an attention: to queries, keys and values, and of its output.

    A stream whose attention output is unused (the text of the last block) has no output projection.
    """

    def __init__(self, config: MMDiTConfig, *, has_output: bool = True, operations: Any = nn, **factory: Any):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = operations.Linear(size, 3 * size, bias=config.qkv_bias, **factory)
        if has_output:
            self.proj = operations.Linear(size, size, **factory)
        if config.qk_norm == "rms":
            self.ln_q = operations.RMSNorm(config.head_dim, eps=NORM_EPS, **factory)
            self.ln_k = operations.RMSNorm(config.head_dim, eps=NORM_EPS, **factory)
        else:
            self.ln_q, self.ln_k = nn.Identity(), nn.Identity()

    def to_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] -> q, k, v, each [B, heads, L, d]; q and k are normalised (QK-norm) in models that have it."""
        x = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # under the same name, so that the input is freed
        q, k, v = x.unbind(2)
        return self.ln_q(q).transpose(1, 2), self.ln_k(k).transpose(1, 2), v.transpose(1, 2)

    def pre_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] -> q and k [B, L, D], v [B, L, heads, d]: as ComfyUI's, for packs that rebuild a block."""
        q, k, v = (each.transpose(1, 2) for each in self.to_qkv(x))
        return q.flatten(2), k.flatten(2), v

    def post_attention(self, x: Tensor) -> Tensor:
        """The output projection. x [B, L, D] -> [B, L, D]."""
        return self.proj(x)


class FinalLayer(nn.Module):
    """Modulated norm and projection to the pixels of each patch."""

    def __init__(self, hidden_size: int, out_features: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.norm_final = operations.LayerNorm(hidden_size, elementwise_affine=False, eps=NORM_EPS, **factory)
        self.linear = operations.Linear(hidden_size, out_features, **factory)
        modulation = operations.Linear(hidden_size, 2 * hidden_size, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, img: Tensor, vec: Tensor, options: Options) -> Tensor:
        """img [B, L, D], vec [B, D] -> [B, L, out_features]."""
        vectors = adaln.modulation(self.adaLN_modulation, vec, options).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(img), Modulation(*vectors)))
