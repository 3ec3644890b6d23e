"""Three small text encoders with the tensors of ComfyUI's CLIP and T5 classes, and SD3's joining of their outputs.

Own classes, because at these widths the overhead of a library's dominates a training step; a test compares them with
ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdit_core.text.encoders import TextWidths, assemble

from .tokens import CLIP_END, CLIP_START, LENGTH, T5_END, Vocabulary

WIDTHS = TextWidths(clip_l=32, clip_g=32, context=64)
CLIP_BASE = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 6}
# ComfyUI's `clip_l_model_config`, `clip_g_model_config` and `t5xxl_model_config` for the shipped file.
CONFIGS = {
    "clip_l": {**CLIP_BASE, "hidden_act": "quick_gelu", "projection_dim": 32},
    "clip_g": {**CLIP_BASE, "hidden_act": "gelu", "projection_dim": 32},
    "t5xxl": {"d_model": 64, "d_ff": 128, "d_kv": 32, "num_heads": 2, "num_layers": 4},
}
ENCODERS = tuple(CONFIGS)


class ClipLayer(nn.Module):
    """One transformer layer of CLIP."""

    def __init__(self, config: dict):
        super().__init__()
        width = config["hidden_size"]
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        inner = config["intermediate_size"]
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.heads, self.quick = config["num_attention_heads"], config["hidden_act"] == "quick_gelu"

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] -> [B, L, W]."""
        y = self.layer_norm1(x)
        q, k, v = (self.self_attn[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in QKV)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.self_attn["out_proj"](y)
        y = self.mlp["fc1"](self.layer_norm2(x))
        y = y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y)
        return x + self.mlp["fc2"](y)


QKV = ("q_proj", "k_proj", "v_proj")


class Clip(nn.Module):
    """CLIP's text model: tokens from the last layer but one, pooled output from the last."""

    def __init__(self, config: dict, vocabulary: int, *, projected: bool):
        super().__init__()
        width = config["hidden_size"]
        embeddings = {
            "token_embedding": nn.Embedding(vocabulary, width),
            "position_embedding": nn.Embedding(LENGTH, width),
        }
        layers = nn.ModuleList([ClipLayer(config) for _ in range(config["num_hidden_layers"])])
        self.text_model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(embeddings),
                "encoder": nn.ModuleDict({"layers": layers}),
                "final_layer_norm": nn.LayerNorm(width),
            }
        )
        self.text_projection = nn.Linear(width, width, bias=False) if projected else None
        for embedding in embeddings.values():
            nn.init.normal_(embedding.weight, std=0.5)

    def forward(self, rows: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """rows [B, L] of the embedding table, end [B], index of the end token -> tokens [B, L, W], pooled [B, W]."""
        table = self.text_model["embeddings"]
        x = table["token_embedding"](rows) + table["position_embedding"].weight[: rows.shape[1]]
        hidden = x
        for layer in self.text_model["encoder"]["layers"]:
            hidden, x = x, layer(x)
        pooled = self.text_model["final_layer_norm"](x[torch.arange(len(x)), end])
        return hidden, pooled if self.text_projection is None else self.text_projection(pooled)


class T5Norm(nn.Module):
    """RMS norm."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] -> [B, L, W]."""
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class T5Block(nn.Module):
    """One transformer block of T5's encoder."""

    def __init__(self, config: dict, *, first: bool):
        super().__init__()
        width, inner = config["d_model"], config["d_kv"] * config["num_heads"]
        attention = {name: nn.Linear(width, inner, bias=False) for name in "qkv"}
        attention["o"] = nn.Linear(inner, width, bias=False)
        if first:
            attention["relative_attention_bias"] = nn.Embedding(32, config["num_heads"])
        feed = {
            "wi_0": nn.Linear(width, config["d_ff"], bias=False),
            "wi_1": nn.Linear(width, config["d_ff"], bias=False),
            "wo": nn.Linear(config["d_ff"], width, bias=False),
        }
        halves = ({"SelfAttention": nn.ModuleDict(attention)}, {"DenseReluDense": nn.ModuleDict(feed)})
        self.layer = nn.ModuleList([nn.ModuleDict({**half, "layer_norm": T5Norm(width)}) for half in halves])
        self.heads = config["num_heads"]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, W], bias [1, heads, L, L] -> [B, L, W]."""
        attend, feed = self.layer[0]["SelfAttention"], self.layer[1]["DenseReluDense"]
        y = self.layer[0]["layer_norm"](x)
        q, k, v = (attend[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        x = x + attend["o"](y.transpose(1, 2).flatten(2))
        y = self.layer[1]["layer_norm"](x)
        return x + feed["wo"](F.gelu(feed["wi_0"](y), approximate="tanh") * feed["wi_1"](y))


class T5(nn.Module):
    """T5's encoder. Padding is not masked, as in ComfyUI."""

    def __init__(self, config: dict, vocabulary: int):
        super().__init__()
        width = config["d_model"]
        self.shared = nn.Embedding(vocabulary, width)
        blocks = nn.ModuleList([T5Block(config, first=index == 0) for index in range(config["num_layers"])])
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": T5Norm(width)})
        for block in blocks:  # attention logits are not scaled by the head size, so queries are initialized small
            nn.init.normal_(block.layer[0]["SelfAttention"]["q"].weight, std=(width * config["d_kv"]) ** -0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """rows [B, L] of the embedding table -> [B, L, W]."""
        blocks = self.encoder["block"]
        position = torch.arange(rows.shape[1], device=rows.device)
        table = blocks[0].layer[0]["SelfAttention"]["relative_attention_bias"]
        bias = table(relative_buckets(position[None, :] - position[:, None])).permute(2, 0, 1)[None]
        x = self.shared(rows)
        for block in blocks:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)


def relative_buckets(distance: Tensor) -> Tensor:
    """T5's 32 buckets of relative position (key - query): 8 exact and 8 logarithmic up to 128, for each sign.

    Source: Raffel et al. 2020, section 2.1.
    """
    size = distance.abs()
    far = 8 + (torch.log(size.clamp(min=1).float() / 8) / torch.log(torch.tensor(16.0)) * 8).long()
    return (distance > 0).long() * 16 + torch.where(size < 8, size, far.clamp(max=15))


@dataclass(frozen=True)
class TextBatch:
    """Rows of a batch: clip_l, clip_g [B, L] and t5 [B, M], None if absent; end [B], index of CLIP's end token."""

    clip_l: Tensor | None
    clip_g: Tensor | None
    t5: Tensor | None
    end: Tensor

    def to(self, device: str) -> TextBatch:
        """The same rows on a device."""
        clip_l, clip_g, t5 = (None if part is None else part.to(device) for part in (self.clip_l, self.clip_g, self.t5))
        return TextBatch(clip_l, clip_g, t5, self.end.to(device))


class TextEncoders(nn.Module):
    """CLIP-L-like, CLIP-G-like and T5-like encoders with compact vocabularies, and SD3's joining of the three."""

    def __init__(self, clip: Vocabulary, t5: Vocabulary, configs: dict[str, dict] = CONFIGS):
        super().__init__()
        self.clip_vocabulary, self.t5_vocabulary = clip, t5
        self.clip_l = Clip(configs["clip_l"], len(clip), projected=False)
        self.clip_g = Clip(configs["clip_g"], len(clip), projected=True)
        self.t5xxl = T5(configs["t5xxl"], len(t5))

    def batch(self, tokens: list[tuple[list[int], list[int]]], clip_length: int, t5_length: int) -> TextBatch:
        """Rows of captions, padded to a length, longer ones cut before the end token.

        A length of 0 omits T5 or both CLIPs.
        """
        clip = [self.clip_vocabulary.rows(caption[0])[: max(0, clip_length - 2)] for caption in tokens]
        t5 = [self.t5_vocabulary.rows(caption[1])[: max(0, t5_length - 1)] for caption in tokens]
        start, end, pad = self.clip_vocabulary.rows([CLIP_START, CLIP_END, 0])
        (t5_end, t5_pad) = self.t5_vocabulary.rows([T5_END, 0])

        def fill(rows: list[list[int]], head: list[int], last: int, padding: int, length: int) -> Tensor:
            return torch.tensor([head + row + [last] + [padding] * (length - len(head) - len(row) - 1) for row in rows])

        return TextBatch(
            fill(clip, [start], end, end, clip_length) if clip_length else None,
            fill(clip, [start], end, pad, clip_length) if clip_length else None,
            fill(t5, [], t5_end, t5_pad, t5_length) if t5_length else None,
            torch.tensor([len(row) + 1 for row in clip]),
        )

    def forward(self, batch: TextBatch, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode a batch.

        Args: keep [B, 3], 0 for an encoder dropped to zeros, else 1. Returns: context [B, L + M, 64], pooled [B, 64].
        """
        clip_l = None if batch.clip_l is None else self.clip_l(batch.clip_l, batch.end)
        clip_g = None if batch.clip_g is None else self.clip_g(batch.clip_g, batch.end)
        t5 = None if batch.t5 is None else self.t5xxl(batch.t5)
        if keep is not None:
            one, two, three = keep.unbind(1)
            clip_l = None if clip_l is None else (clip_l[0] * one[:, None, None], clip_l[1] * one[:, None])
            clip_g = None if clip_g is None else (clip_g[0] * two[:, None, None], clip_g[1] * two[:, None])
            t5 = None if t5 is None else t5 * three[:, None, None]
        return assemble(clip_l, clip_g, t5, widths=WIDTHS)
