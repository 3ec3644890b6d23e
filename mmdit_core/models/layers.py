"""The parts that MMDiT blocks are made of: attention, MLP, modulation, embeddings of time, position and latent."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
# Tokens that a CPU norms at once: what comes in between stays in its caches, and new pages cost more than arithmetic.
NORM_TOKENS = 128
IN_PLACE = ("cpu", "cuda")  # where torch itself brings each operation's in-place form; other backends may lack one


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Scaled dot-product attention with the calling convention of ComfyUI's `optimized_attention`.

    Args: q, k, v [B, L, heads * d], or [B, heads, L, d] with skip_reshape; mask broadcast to [B, heads, Lq, Lk],
        added to the logits; transformer_options may hold "optimized_attention_override", a function
        g(attention, q, k, v, heads, ...) that is called in this one's place.
    Returns: [B, Lq, heads * d], or [B, heads, Lq, d] with skip_output_reshape.
    """
    override = (transformer_options or {}).get("optimized_attention_override")
    if override is not None:
        inner = {name: value for name, value in transformer_options.items() if name != "optimized_attention_override"}  # type: ignore[union-attr]
        kwargs.update(skip_reshape=skip_reshape, skip_output_reshape=skip_output_reshape, transformer_options=inner)
        return override(attention, q, k, v, heads, mask=mask, **kwargs)
    if not skip_reshape:
        q, k, v = (s.unflatten(-1, (heads, -1)).transpose(1, 2) for s in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kwargs.get("scale"))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift; x [B, L, D], shift and scale [B, 1, D]."""
    return torch.addcmul(shift, x, 1 + scale)


def side_by_side(x: Tensor) -> Tensor:
    """x; on a CPU with its rows one after the other in memory, which there saves more time than the copy takes."""
    return x.contiguous() if x.device.type == "cpu" else x


def may_write(maker: nn.Module) -> bool:
    """Whether what this layer has just made may be changed in place: no compiler, gradient or hook follows it.

    A layer that somebody put there must make a new tensor in each call, as a linear layer does.
    """
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled() or maker._forward_hooks)


def timestep_embedding(timesteps: Tensor, dim: int = 256, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features of the timestep, always in float32: a half-precision timestep of 1000 errs by 0.04.

    Args: timesteps [B] in 0..1000; dim, even.
    Returns: [B, dim] float32, cosines first.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(max_period) / half)
    )
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def sincos_positions(dim: int, size: int) -> Tensor:
    """Fixed two-dimensional positions, as SD3 stores them: half the channels for the column, half for the row.

    Args: dim, a multiple of 4; size, the grid's side in patches.
    Returns: [1, size * size, dim] float32, row by row.
    """
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=-1).float()
    columns = line[None, :, :].expand(size, size, -1)
    rows = line[:, None, :].expand(size, size, -1)
    return torch.cat((columns, rows), dim=-1).reshape(1, size * size, dim)


class Embedder(nn.Module):
    """Linear, SiLU, linear: the embedding of a vector (timestep features, pooled text, guidance features)."""

    def __init__(self, in_dim: int, hidden_size: int, *, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(in_dim, hidden_size, device=device, dtype=dtype),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, device=device, dtype=dtype),
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, in_dim] -> [B, D]
        return self.mlp(x)


class PatchEmbed(nn.Module):
    """Latent [B, C, H, W] -> tokens [B, L, D], one for each patch; H and W are multiples of the patch."""

    def __init__(
        self, in_channels: int, hidden_size: int, patch_size: int, *, device=None, dtype=None, operations: Any = nn
    ):
        super().__init__()
        self.proj = operations.Conv2d(
            in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)  # then the tokens come out as rows
        # Rows in memory as they are read: left transposed, the stream would be copied before every norm of every block.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, mlp_ratio: float, *, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.fc1 = operations.Linear(hidden_size, inner, device=device, dtype=dtype)
        self.fc2 = operations.Linear(inner, hidden_size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)  # the largest tensor of a step: where it can be, there is no second one beside it
        gelu = torch.ops.aten.gelu_ if hidden.device.type in IN_PLACE and may_write(self.fc1) else F.gelu
        return self.fc2(gelu(hidden, approximate="tanh"))


class AttentionProjections(nn.Module):
    """What one stream brings to an attention and takes from it: queries, keys and values, and the projection after.

    A stream whose output nobody reads (the last block's text) has no projection.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        qk_norm: str | None,
        qkv_bias: bool,
        with_projection: bool = True,
        device=None,
        dtype=None,
        operations: Any = nn,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qkv = operations.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias, **factory)
        self.proj = operations.Linear(hidden_size, hidden_size, **factory) if with_projection else None
        self.ln_q = self.ln_k = None
        if qk_norm == "rms":
            self.ln_q = operations.RMSNorm(hidden_size // num_heads, eps=NORM_EPS, **factory)
            self.ln_k = operations.RMSNorm(hidden_size // num_heads, eps=NORM_EPS, **factory)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] -> q, k, v, each [B, heads, L, d] (views: no copy is made)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        # Normed while rows lie as they were computed, which is faster than after the transposition.
        if self.ln_q is not None and self.ln_k is not None:
            over = q.device.type == "cpu" and may_write(self.qkv)
            q, k = _normed(self.ln_q, q, over), _normed(self.ln_k, k, over)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _normed(norm: nn.Module, x: Tensor, over: bool) -> Tensor:
    """norm(x); over: in pieces written over x [B, L, heads, d], bit for bit, unless somebody sees the norm's calls."""
    if not over or x.shape[1] <= NORM_TOKENS or _watched(norm):
        return norm(x)
    for part in x.split(NORM_TOKENS, dim=1):
        part.copy_(norm(part))
    return x


def _watched(norm: nn.Module) -> bool:
    return bool(norm._forward_hooks or norm._forward_pre_hooks or getattr(norm, "weight_function", None))
