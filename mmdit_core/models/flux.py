"""FLUX.1: dev, schnell, Fill and Kontext.

Parameters carry the names of the published single-file checkpoints.
Source: Black Forest Labs 2024, the figure of FLUX.1's architecture and the published weights; Esser et al. 2024, figure
2, for the double blocks; Dehghani et al. 2023, arXiv 2302.05442, for the parallel layers of the single ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FluxConfig
from . import adaln
from .attention import attention as plain_attention
from .checks import check_inputs
from .latents import check_references, patchify, placed, positions, unpatchify
from .layers import (
    NORM_EPS,
    TIME_FEATURES,
    FinalLayer,
    Modulation,
    finite,
    gated,
    modulate,
    rotary_embedding,
    rotate,
    timestep_embedding,
)
from .patches import Options, block_hook, patch_attention, patch_block, patch_input, patch_qkv, with_residual

THETA = 10000.0  # the base of the frequencies of the positions


class MlpEmbedder(nn.Module):
    """Linear, SiLU, linear: the embedding of a vector (timestep features, pooled text, guidance features)."""

    def __init__(self, in_dim: int, hidden_size: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.in_layer = operations.Linear(in_dim, hidden_size, **factory)
        self.out_layer = operations.Linear(hidden_size, hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim] -> [B, D]."""
        return self.out_layer(F.silu(self.in_layer(x)))


class AdaLN(nn.Module):
    """SiLU, linear: the vectors of `count` sublayers."""

    def __init__(self, hidden_size: int, count: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.width = 3 * count * hidden_size
        self.lin = operations.Linear(hidden_size, self.width, **factory)

    def forward(self, vec: Tensor) -> Tensor:
        """[B, D] -> [B, 3 * count * D]."""
        return self.lin(F.silu(vec))


def modulations(layer: AdaLN, vec: Tensor, options: Options) -> Iterator[Modulation]:
    """vec [B, D] -> the vectors of each sublayer."""
    size = vec.shape[-1]
    vectors = adaln.modulation(layer, vec, options).unsqueeze(1).split(size, dim=-1)
    return (Modulation(*vectors[i : i + 3]) for i in range(0, len(vectors), 3))


class RMSNorm(nn.Module):
    """Root mean square norm of each head. The published files name its weight `scale`, so it is no torch layer."""

    def __init__(self, dim: int, **factory: Any):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        # Injected layers cast their own weights; this one does so too.
        return F.rms_norm(x, self.scale.shape, self.scale.to(x), NORM_EPS)


class QKNorm(nn.Module):
    """The norms of queries and keys."""

    def __init__(self, dim: int, **factory: Any):
        super().__init__()
        self.query_norm = RMSNorm(dim, **factory)
        self.key_norm = RMSNorm(dim, **factory)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q and k [B, heads, L, d], normalised."""
        return self.query_norm(q), self.key_norm(k)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """[B, L, 3 * D] -> q, k, v [B, heads, L, d]."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class SelfAttention(nn.Module):
    """The projections of one stream around the attention over both."""

    def __init__(self, config: FluxConfig, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = operations.Linear(config.hidden_size, 3 * config.hidden_size, **factory)
        self.norm = QKNorm(config.head_dim, **factory)
        self.proj = operations.Linear(config.hidden_size, config.hidden_size, **factory)

    def to_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] -> q, k, v, each [B, heads, L, d]; q and k are normalised."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return *self.norm(q, k), v


class DoubleStreamBlock(nn.Module):
    """Two streams, image and text, with weights of their own and one attention over both."""

    def __init__(self, config: FluxConfig, *, attention: Callable[..., Tensor], operations: Any = nn, **factory: Any):
        super().__init__()
        layers = {"operations": operations, **factory}
        size, norm = config.hidden_size, {"elementwise_affine": False, "eps": NORM_EPS}
        self.num_heads, self.attention = config.num_heads, attention
        self.img_mod = AdaLN(size, 2, **layers)
        self.img_norm1 = operations.LayerNorm(size, **norm, **factory)
        self.img_attn = SelfAttention(config, **layers)
        self.img_norm2 = operations.LayerNorm(size, **norm, **factory)
        self.img_mlp = mlp(config, **layers)
        self.txt_mod = AdaLN(size, 2, **layers)
        self.txt_norm1 = operations.LayerNorm(size, **norm, **factory)
        self.txt_attn = SelfAttention(config, **layers)
        self.txt_norm2 = operations.LayerNorm(size, **norm, **factory)
        self.txt_mlp = mlp(config, **layers)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        attn_mask: Tensor | None = None,
        transformer_options: Options | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step of both streams, called as ComfyUI's block.

        Args: img [B, Li, D]; txt [B, Lt, D]; vec [B, D]; pe, the rotations of [text; image]; attn_mask, as `attention`
            takes it.
        Returns: (img, txt).
        """
        options = {} if transformer_options is None else transformer_options
        img_mod1, img_mod2 = modulations(self.img_mod, vec, options)
        txt_mod1, txt_mod2 = modulations(self.txt_mod, vec, options)
        img_slice = [txt.shape[1], txt.shape[1] + img.shape[1]]

        # attention over [text; image]
        img_q, img_k, img_v = self.img_attn.to_qkv(modulate(self.img_norm1(img), img_mod1))
        txt_q, txt_k, txt_v = self.txt_attn.to_qkv(modulate(self.txt_norm1(txt), txt_mod1))
        q, k, v = (torch.cat(both, dim=2) for both in ((txt_q, img_q), (txt_k, img_k), (txt_v, img_v)))
        del img_q, img_k, img_v, txt_q, txt_k, txt_v
        q, k, v, pe, mask = patch_qkv(q, k, v, img_slice, options, pe, attn_mask)
        q, k = rotate(q, pe), rotate(k, pe)
        attn = self.attention(q, k, v, self.num_heads, mask=mask, skip_reshape=True, transformer_options=options)
        txt_attn, img_attn = patch_attention(attn, img_slice, options).tensor_split([txt.shape[1]], dim=1)
        img = gated(img, img_mod1.gate, self.img_attn.proj(img_attn))
        txt = gated(txt, txt_mod1.gate, self.txt_attn.proj(txt_attn))
        del q, k, v, attn, txt_attn, img_attn  # memory peaks in the MLP

        # MLP of each stream
        img = gated(img, img_mod2.gate, self.img_mlp(modulate(self.img_norm2(img), img_mod2)))
        txt = gated(txt, txt_mod2.gate, self.txt_mlp(modulate(self.txt_norm2(txt), txt_mod2)))
        return img, finite(txt)


class SingleStreamBlock(nn.Module):
    """One stream, [text; image], with the attention and the MLP in parallel."""

    def __init__(self, config: FluxConfig, *, attention: Callable[..., Tensor], operations: Any = nn, **factory: Any):
        super().__init__()
        size, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.num_heads, self.attention, self.sizes = config.num_heads, attention, (3 * size, inner)
        self.linear1 = operations.Linear(size, 3 * size + inner, **factory)  # to q, k, v and the MLP
        self.linear2 = operations.Linear(size + inner, size, **factory)  # of the attention and the MLP
        self.norm = QKNorm(config.head_dim, **factory)
        self.pre_norm = operations.LayerNorm(size, elementwise_affine=False, eps=NORM_EPS, **factory)
        self.modulation = AdaLN(size, 1, operations=operations, **factory)

    def forward(
        self,
        x: Tensor,
        vec: Tensor,
        pe: Tensor,
        attn_mask: Tensor | None = None,
        transformer_options: Options | None = None,
    ) -> Tensor:
        """One step of the stream, called as ComfyUI's block. Args: x [B, Lt + Li, D]; the others as in a double block.

        Returns: [B, Lt + Li, D].
        """
        options = {} if transformer_options is None else transformer_options
        (mod,) = modulations(self.modulation, vec, options)
        img_slice = options.get("img_slice", [0, x.shape[1]])

        qkv, inner = self.linear1(modulate(self.pre_norm(x), mod)).split(self.sizes, dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k = self.norm(q, k)
        q, k, v, pe, mask = patch_qkv(q, k, v, img_slice, options, pe, attn_mask)
        q, k = rotate(q, pe), rotate(k, pe)
        attn = self.attention(q, k, v, self.num_heads, mask=mask, skip_reshape=True, transformer_options=options)
        attn = patch_attention(attn, img_slice, options)
        del q, k, v, qkv
        inner = F.gelu(inner, approximate="tanh")  # under the same name, so that linear1's output is freed
        out = self.linear2(torch.cat((attn, inner), dim=-1))
        return finite(gated(x, mod.gate, out))


def mlp(config: FluxConfig, *, operations: Any = nn, **factory: Any) -> nn.Sequential:
    """Linear, GELU (tanh), linear, on each token."""
    size, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    first, last = operations.Linear(size, inner, **factory), operations.Linear(inner, size, **factory)
    return nn.Sequential(first, nn.GELU(approximate="tanh"), last)


def original_double(block: nn.Module, args: Mapping[str, Any]) -> dict[str, Any]:
    """A double block as a block hook calls it: a dictionary in, a dictionary out."""
    img, txt = block(
        img=args["img"], txt=args["txt"], vec=args["vec"], pe=args["pe"], attn_mask=args.get("attn_mask"),
        transformer_options=args["transformer_options"],
    )  # fmt: skip
    return {"img": img, "txt": txt}


def original_single(block: nn.Module, args: Mapping[str, Any]) -> dict[str, Any]:
    """As `original_double`, of a single block; "img" is [text; image]."""
    options, mask = args["transformer_options"], args.get("attn_mask")
    return {"img": block(args["img"], vec=args["vec"], pe=args["pe"], attn_mask=mask, transformer_options=options)}


class Flux(adaln.WithAdaLNCache, nn.Module):
    """The velocity of a rectified flow, given a noisy latent, a timestep and a text.

    Args: config; device and dtype of the parameters; operations, a namespace with Linear and LayerNorm; attention, a
        function with the signature of `mmdit_core.models.attention.attention`.
    """

    def __init__(
        self,
        config: FluxConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
        attention: Callable[..., Tensor] = plain_attention,
    ):
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = {"operations": operations, **factory}
        size, pixels = config.hidden_size, config.patch_size**2
        self.config = config
        self.dtype = dtype  # ComfyUI reads it
        self.img_in = operations.Linear(config.in_channels * pixels, size, **factory)
        self.time_in = MlpEmbedder(TIME_FEATURES, size, **layers)
        self.vector_in = MlpEmbedder(config.pooled_dim, size, **layers)
        self.guidance_in = MlpEmbedder(TIME_FEATURES, size, **layers) if config.guidance_embed else None
        self.txt_in = operations.Linear(config.context_dim, size, **factory)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(config, attention=attention, **layers) for _ in range(config.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(config, attention=attention, **layers) for _ in range(config.depth_single_blocks)
        )
        self.final_layer = FinalLayer(size, config.channels_out * pixels, **layers)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        control: Mapping[str, Any] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        *,
        ref_latents: Sequence[Tensor] | None = None,
        ref_latents_method: str = "offset",
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The velocity dx/dsigma = noise - data.

        Args: x [B, in_channels, H, W], the latent of any size and, for Fill, the masked image and the mask after it;
            timesteps [B] in 0..1000 (1000 * sigma); context [B, L, context_dim] text tokens; y [B, pooled_dim] pooled
            text, None for zeros; guidance [B] or [1], such as 3.5, read only by models with a guidance embedding: None
            leaves it out, as ComfyUI does; control, {"input": [...], "output": [...]} of residuals [B, n, D] or None,
            added to the first n image tokens after each double and each single block; transformer_options, hooks and
            settings, never changed: patches (post_input, double_block, single_block, attn1_patch, attn1_output_patch),
            patches_replace (dit), optimized_attention_override, and what `adaln_cache` gives; ref_latents, images that
            Kontext edits, each [B or 1, in_channels, h, w]; ref_latents_method, where they are: "offset", side by side
            at index 1, or "index", one index each; attention_mask [B, Lt + Li, Lt + Li] over [text; image; references];
            kwargs, what else ComfyUI passes, is not read.
        Returns: [B, channels_out, H, W], the dtype of x.
        Raises: ValueError for inputs whose shapes or dtypes do not fit, and for another ref_latents_method.
        """
        check_inputs("Flux", self.config, self.txt_in, x, context, y)
        check_references("Flux", self.config.in_channels, x, ref_latents or (), ref_latents_method)
        if guidance is not None and (guidance.ndim != 1 or len(guidance) not in (1, len(x))):
            raise ValueError(f"Flux: the guidance is {list(guidance.shape)}; this model takes [B], here [{len(x)}]")
        options = {**(transformer_options or {})}
        vec, txt = adaln.embedded(self, x, timesteps, context, y, guidance, options)
        img, img_ids, (own, *others) = self.embed_latents(x, ref_latents or (), ref_latents_method)
        if ref_latents:
            options["reference_image_num_tokens"] = others
        txt_ids = img_ids.new_zeros(len(x), context.shape[1], 3)
        img, txt, (img_ids, txt_ids) = patch_input(img, txt, options, (img_ids, txt_ids))
        pe = rotary_embedding(torch.cat((txt_ids, img_ids), dim=1), self.config.axes_dim, THETA)
        shared = {"vec": vec, "pe": pe, "attn_mask": attention_mask, "transformer_options": options}

        options.update(block_type="double", total_blocks=len(self.double_blocks))
        for index, block in enumerate(self.double_blocks):
            options["block_index"] = index
            hook = block_hook(("double_block", index), options)
            if hook is None:
                img, txt = block(img=img, txt=txt, **shared)
            else:
                out = hook({"img": img, "txt": txt, **shared}, {"original_block": partial(original_double, block)})
                img, txt = out["img"], out["txt"]
            img, txt = patch_block(img, txt, x, index, options)
            img = with_residual(img, control, "input", index)

        length = txt.shape[1]
        img = torch.cat((txt, finite(img)), dim=1)
        options.update(block_type="single", total_blocks=len(self.single_blocks), img_slice=[length, img.shape[1]])
        for index, block in enumerate(self.single_blocks):
            options["block_index"] = index
            hook = block_hook(("single_block", index), options)
            if hook is None:
                img = block(img, **shared)
            else:
                img = hook({"img": img, **shared}, {"original_block": partial(original_single, block)})["img"]
            img, _ = patch_block(img, None, x, index, options, "single_block")
            img = with_residual(img, control, "output", index, first=length)

        img = img[:, length : length + own]  # without the references
        return unpatchify(self.final_layer(img, vec, options), self.config.patch_size, *x.shape[-2:])

    def adaln_layers(self) -> list[tuple[nn.Module, int]]:
        """Each AdaLN layer and the width of its output."""
        double: Iterable[Any] = self.double_blocks
        single: Iterable[Any] = self.single_blocks
        layers = [*(layer for block in double for layer in (block.img_mod, block.txt_mod))]
        layers = [(layer, layer.width) for layer in (*layers, *(block.modulation for block in single))]
        return [*layers, (self.final_layer.adaLN_modulation, 2 * self.config.hidden_size)]

    def embedders(self) -> list[nn.Module]:
        """The layers of `embed_vector` and `embed_text`."""
        found = self.time_in, self.vector_in, self.guidance_in, self.txt_in
        return [layer for layer in found if layer is not None]

    def embed_text(self, context: Tensor) -> Tensor:
        """txt [B, L, D] of the context [B, L, context_dim]."""
        return self.txt_in(context)

    def embed_vector(
        self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None = None, *, dtype: torch.dtype
    ) -> Tensor:
        """vec [B, D], the input of all AdaLN layers. guidance is scaled by 1000, as the timestep is."""
        vec = self.time_in(timestep_embedding(timesteps, TIME_FEATURES).to(dtype))
        if self.guidance_in is not None and guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance * 1000.0, TIME_FEATURES).to(dtype))
        pooled = vec.new_zeros(len(vec), self.config.pooled_dim) if y is None else y.to(dtype)
        return vec + self.vector_in(pooled)

    def embed_latents(self, x: Tensor, references: Sequence[Tensor], method: str) -> tuple[Tensor, Tensor, list[int]]:
        """The image stream [B, L, D], the positions [B, L, 3] and the tokens of each: the latent, then references."""
        p = self.config.patch_size
        tokens, ids = [patchify(x, p)], [positions(x, p)]
        for ref, place in zip(references, placed(references, method), strict=True):
            tokens.append(patchify(ref, p).expand(len(x), -1, -1).to(x.dtype))
            ids.append(positions(ref, p, *place))
        counts = [each.shape[1] for each in tokens]
        return self.img_in(torch.cat(tokens, dim=1)), torch.cat(ids).expand(len(x), -1, -1), counts
