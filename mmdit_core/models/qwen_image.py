"""Qwen-Image (2512, Edit, Layered and finetunes of these): a diffusion transformer of double blocks alone.

Parameters carry the names of the published checkpoints, which are the same in single files and in diffusers' folders.
Source: Wu et al. 2025, "Qwen-Image Technical Report", arXiv 2508.02324.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TIMESTEP_ZERO, QwenImageConfig
from . import adaln
from .attention import additive_mask
from .attention import attention as plain_attention
from .checks import check_qwen_image
from .latents import patchify, placed, positions, unpatchify
from .layers import NORM_EPS, TIME_FEATURES, Modulation, gated, modulate, rotary_embedding, rotate, timestep_embedding
from .patches import Options, block_hook, patch_attention, patch_block, patch_input, patch_qkv, with_residual

THETA = 10000.0  # of the rotations
PLACED_AS = {TIMESTEP_ZERO: "index", "uxo": "offset"}  # where references are
TIMESTEP_ZERO_MARKER = "__index_timestep_zero__"  # an empty tensor in files of models with references at timestep 0


class TimeEmbedder(nn.Module):
    """Linear, SiLU, linear: the embedding of the timestep's features."""

    def __init__(self, hidden_size: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.linear_1 = operations.Linear(TIME_FEATURES, hidden_size, **factory)
        self.linear_2 = operations.Linear(hidden_size, hidden_size, **factory)

    def forward(self, features: Tensor) -> Tensor:
        """[B, TIME_FEATURES] -> [B, D]."""
        return self.linear_2(F.silu(self.linear_1(features)))


class TimeTextEmbed(nn.Module):
    """The input of all modulations. No text is in it; the name is the checkpoints'."""

    def __init__(self, config: QwenImageConfig, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.timestep_embedder = TimeEmbedder(config.hidden_size, operations=operations, **factory)
        if config.additional_t_cond:
            self.addition_t_embedding = operations.Embedding(2, config.hidden_size, **factory)


class Gelu(nn.Module):
    """Linear and GELU (tanh)."""

    def __init__(self, hidden_size: int, inner: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(hidden_size, inner, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, inner]."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear, on each token. The checkpoints number the layers with a dropout between them."""

    def __init__(self, config: QwenImageConfig, *, operations: Any = nn, **factory: Any):
        super().__init__()
        size, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.net = nn.Sequential(
            Gelu(size, inner, operations=operations, **factory),
            nn.Identity(),
            operations.Linear(inner, size, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.net(x)


class JointProjections(nn.Module):
    """The projections around the attention over [text; image], with weights of their own for each stream."""

    def __init__(self, config: QwenImageConfig, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.num_heads = config.num_heads
        linear = partial(operations.Linear, config.hidden_size, config.hidden_size, **factory)
        norm = partial(operations.RMSNorm, config.head_dim, eps=NORM_EPS, **factory)
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = norm(), norm(), norm(), norm()
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.add_q_proj, self.add_k_proj, self.add_v_proj = linear(), linear(), linear()
        self.to_out = nn.ModuleList([linear()])
        self.to_add_out = linear()

    def to_qkv(self, txt: Tensor, img: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """txt [B, Lt, D] and img [B, Li, D] -> q, k, v [B, heads, Lt + Li, d]; q and k are normalised."""
        q = self.norm_added_q(self._heads(self.add_q_proj(txt))), self.norm_q(self._heads(self.to_q(img)))
        k = self.norm_added_k(self._heads(self.add_k_proj(txt))), self.norm_k(self._heads(self.to_k(img)))
        v = self._heads(self.add_v_proj(txt)), self._heads(self.to_v(img))
        return torch.cat(q, dim=2), torch.cat(k, dim=2), torch.cat(v, dim=2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DoubleBlock(nn.Module):
    """Two streams, image and text, with weights of their own and one attention over both."""

    def __init__(
        self, config: QwenImageConfig, *, attention: Callable[..., Tensor], operations: Any = nn, **factory: Any
    ):
        super().__init__()
        size, layers = config.hidden_size, {"operations": operations, **factory}
        self.num_heads, self.attention = config.num_heads, attention
        self.img_mod = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **factory))
        self.txt_mod = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **factory))
        norm = partial(operations.LayerNorm, size, elementwise_affine=False, eps=NORM_EPS, **factory)
        self.img_norm1, self.img_norm2, self.txt_norm1, self.txt_norm2 = norm(), norm(), norm(), norm()
        self.attn = JointProjections(config, **layers)
        self.img_mlp = FeedForward(config, **layers)
        self.txt_mlp = FeedForward(config, **layers)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        attn_mask: Tensor | None = None,
        timestep_zero_index: int | None = None,
        transformer_options: Options | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step of both streams.

        Args: img [B, Li, D]; txt [B, Lt, D]; vec [B, D]; pe, the rotations of [text; image]; attn_mask [B, Lt], added
            to the logits of the text's keys; timestep_zero_index, the first image token that is modulated by the
            second half of vec [2B, D]; None if all are modulated alike.
        Returns: (img, txt).
        """
        options = {} if transformer_options is None else transformer_options
        img_attn_mod, img_mlp_mod = modulations(self.img_mod, vec, options)
        if timestep_zero_index is not None:
            vec = vec[: img.shape[0]]
            img_attn_mod = by_token(img_attn_mod, timestep_zero_index, img.shape[1])
            img_mlp_mod = by_token(img_mlp_mod, timestep_zero_index, img.shape[1])
        txt_attn_mod, txt_mlp_mod = modulations(self.txt_mod, vec, options)
        img_slice = [txt.shape[1], txt.shape[1] + img.shape[1]]

        # attention over [text; image]
        q, k, v = self.attn.to_qkv(
            modulate(self.txt_norm1(txt), txt_attn_mod),
            modulate(self.img_norm1(img), img_attn_mod),
        )
        q, k, v, pe, attn_mask = patch_qkv(q, k, v, img_slice, options, pe=pe, mask=attn_mask)
        q, k = rotate(q, pe), rotate(k, pe)
        mask = None if attn_mask is None else over_text_alone(attn_mask, k.shape[2])
        attn = self.attention(q, k, v, self.num_heads, mask=mask, skip_reshape=True, transformer_options=options)
        txt_attn, img_attn = patch_attention(attn, img_slice, options).tensor_split([txt.shape[1]], dim=1)
        img = gated(img, img_attn_mod.gate, self.attn.to_out[0](img_attn))
        txt = gated(txt, txt_attn_mod.gate, self.attn.to_add_out(txt_attn))
        del q, k, v, attn, txt_attn, img_attn  # memory peaks in the MLP

        # MLP of each stream
        img = gated(img, img_mlp_mod.gate, self.img_mlp(modulate(self.img_norm2(img), img_mlp_mod)))
        txt = gated(txt, txt_mlp_mod.gate, self.txt_mlp(modulate(self.txt_norm2(txt), txt_mlp_mod)))
        return img, txt


def modulations(layer: nn.Module, vec: Tensor, options: Options) -> tuple[Modulation, Modulation]:
    """vec [n, D] -> the vectors of a stream's attention and MLP, each [n, 1, D]."""
    vectors = adaln.modulation(layer, vec, options).unsqueeze(1).chunk(6, dim=-1)
    return Modulation(*vectors[:3]), Modulation(*vectors[3:])


def by_token(mod: Modulation, first: int, tokens: int) -> Modulation:
    """Vectors [2B, 1, D] -> [B, tokens, D]: those of the last B rows from the token `first` on."""

    def spread(vectors: Tensor) -> Tensor:
        before, after = vectors.chunk(2)
        return torch.cat((before.expand(-1, first, -1), after.expand(-1, tokens - first, -1)), dim=1)

    return Modulation(*(spread(vectors) for vectors in mod))


def over_text_alone(mask: Tensor, keys: int) -> Tensor:
    """An additive mask [B, Lt] of the text -> [B, 1, 1, keys], 0 for the keys after the text."""
    return F.pad(mask, (0, keys - mask.shape[1]))[:, None, None]


def original_block(
    block: nn.Module, attn_mask: Tensor | None, timestep_zero_index: int | None, args: Mapping[str, Any]
) -> dict[str, Any]:
    """A block as a block hook calls it: a dictionary in, a dictionary out.

    Args: attn_mask, for hooks that know ComfyUI's model alone, whose arguments have none.
    """
    given = {name: args[name] for name in ("img", "txt", "vec", "pe", "transformer_options")}
    mask = args.get("attn_mask", attn_mask)
    img, txt = block(**given, attn_mask=mask, timestep_zero_index=timestep_zero_index)
    return {"img": img, "txt": txt}


class OutputModulation(nn.Module):
    """The scale and the shift of the last norm."""

    def __init__(self, hidden_size: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.linear = operations.Linear(hidden_size, 2 * hidden_size, **factory)

    def forward(self, vec: Tensor) -> Tensor:
        """[B, D] -> [B, 2 * D]."""
        return self.linear(F.silu(vec))


class QwenImage(adaln.WithAdaLNCache, nn.Module):
    """The velocity of a rectified flow, given a noisy latent, a timestep, a text and reference images.

    Args: config; device and dtype of the parameters; operations, a namespace with Linear, LayerNorm, RMSNorm and
        Embedding; attention, a function with the signature of `mmdit_core.models.attention.attention`.
    """

    def __init__(
        self,
        config: QwenImageConfig,
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
        self.dtype = dtype
        if config.reference_method == TIMESTEP_ZERO:
            self.register_buffer(TIMESTEP_ZERO_MARKER, torch.empty(0, **factory))
        self.time_text_embed = TimeTextEmbed(config, **layers)
        self.txt_norm = operations.RMSNorm(config.context_dim, eps=NORM_EPS, **factory)
        self.img_in = operations.Linear(pixels * config.in_channels, size, **factory)
        self.txt_in = operations.Linear(config.context_dim, size, **factory)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(config, attention=attention, **layers) for _ in range(config.depth)
        )
        self.norm_final = operations.LayerNorm(size, elementwise_affine=False, eps=NORM_EPS, **factory)
        self.norm_out = OutputModulation(size, **layers)
        self.proj_out = operations.Linear(size, pixels * config.channels_out, **factory)

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
        attention_mask: Tensor | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        ref_latents_method: str | None = None,
        additional_t_cond: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The velocity dx/dsigma = noise - data.

        Args: x [B, C, H, W] latent, or [B, C, T, H, W] of T layers; timesteps [B] in 0..1000 (1000 * sigma); context
            [B, L, context_dim] text tokens; y and guidance, None: the model has neither; control, {"input": [residual
            [B, Li, D] or None, ...]}, added to the first image tokens after each block; transformer_options, hooks and
            settings, never changed: patches (post_input, double_block, attn1_patch, attn1_output_patch),
            patches_replace (dit), optimized_attention_override, and what `adaln_cache` gives; attention_mask [1 or B,
            L] of the text: boolean or integers, 0 for tokens to ignore, or floating-point, added to the logits;
            ref_latents, latents of reference images, [1 or B, C, h, w] or [1 or B, C, 1, h, w];
            ref_latents_method, one of REFERENCE_METHODS in config.py, None for the config's; additional_t_cond [B], 0
            or 1, for models that embed it, None for 0; kwargs, what else ComfyUI passes, is not read.
        Returns: the shape of x, with the channels of the output, and its dtype.
        Raises: ValueError for inputs whose shapes or dtypes do not fit.
        """
        method = ref_latents_method or self.config.reference_method
        latent = x[:, :, None] if x.ndim == 4 else x
        references = [ref[:, :, 0] if ref.ndim == 5 and ref.shape[2] == 1 else ref for ref in ref_latents or ()]
        check_qwen_image(
            self,
            latent,
            context,
            absent={"pooled text y": y, "guidance": guidance},
            control=control,
            mask=attention_mask,
            references=references,
            method=method,
            additional_t_cond=additional_t_cond,
        )
        # Patches read the kind and the number of blocks.
        options = {**(transformer_options or {}), "block_type": "double", "total_blocks": len(self.transformer_blocks)}
        img, img_ids, (own, *others) = self.embed_latents(latent, references, method)
        if references:
            options["reference_image_num_tokens"] = others
        zero_from = own if references and method == TIMESTEP_ZERO else None
        vec, txt = self.embed(x, timesteps, context, zero_from is not None, additional_t_cond, options)
        ids = img_ids, self.text_positions(latent, txt)
        img, txt, (img_ids, txt_ids) = patch_input(img, txt, options, ids)
        pe = rotary_embedding(torch.cat((txt_ids, img_ids), dim=1), self.config.axes_dim, THETA)
        mask = None if attention_mask is None else additive_mask(attention_mask, x.dtype).expand(len(x), -1)
        for index, block in enumerate(self.transformer_blocks):
            options["block_index"] = index
            args = {"img": img, "txt": txt, "vec": vec, "pe": pe, "attn_mask": mask, "transformer_options": options}
            hook = block_hook(("double_block", index), options)
            if hook is None:
                img, txt = block(**args, timestep_zero_index=zero_from)
            else:
                out = hook(args, {"original_block": partial(original_block, block, mask, zero_from)})
                img, txt = out["img"], out["txt"]
            img, txt = patch_block(img, txt, x, index, options)
            img = with_residual(img, control, "input", index)
        img = img[:, :own]  # without the references
        vec = vec if zero_from is None else vec[: len(x)]
        scale, shift = adaln.modulation(self.norm_out, vec, options).unsqueeze(1).chunk(2, dim=-1)
        img = self.proj_out(modulate(self.norm_final(img), Modulation(shift, scale)))
        layers = [unpatchify(each, self.config.patch_size, *x.shape[-2:]) for each in img.chunk(latent.shape[2], dim=1)]
        return torch.stack(layers, dim=2) if x.ndim == 5 else layers[0]

    def adaln_layers(self) -> list[tuple[nn.Module, int]]:
        """Each AdaLN layer and the width of its output."""
        size, blocks = self.config.hidden_size, list[Any](self.transformer_blocks)
        layers = [(layer, 6 * size) for block in blocks for layer in (block.img_mod, block.txt_mod)]
        return [*layers, (self.norm_out, 2 * size)]

    def embedders(self) -> list[nn.Module]:
        """The layers of `embed_vector` and `embed_text`."""
        return [self.time_text_embed, self.txt_norm, self.txt_in]

    def embed(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        has_zero: bool,
        additional_t_cond: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        """vec [B, D], or [2B, D] with the rows of timestep 0, and txt [B, L, D]."""
        if not has_zero and additional_t_cond is None:
            return adaln.embedded(self, x, timesteps, context, None, None, options)
        options.pop(adaln.CACHE, None)  # the run's table has no such rows
        options.pop(adaln.CALL, None)
        times = torch.cat((timesteps, torch.zeros_like(timesteps))) if has_zero else timesteps
        vec = self.embed_vector(times, additional_t_cond=additional_t_cond, dtype=x.dtype)
        return vec, self.embed_text(context)

    def embed_vector(
        self,
        timesteps: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        additional_t_cond: Tensor | None = None,
        dtype: torch.dtype,
    ) -> Tensor:
        """vec [B, D], the input of all modulations. y and guidance are None: neither is in it."""
        embed = self.time_text_embed
        vec = embed.timestep_embedder(timestep_embedding(timesteps, TIME_FEATURES).to(dtype))
        if self.config.additional_t_cond:
            kind = torch.zeros_like(timesteps) if additional_t_cond is None else additional_t_cond
            vec = vec + embed.addition_t_embedding(kind.long()).to(dtype)
        return vec

    def embed_text(self, context: Tensor) -> Tensor:
        """[B, L, context_dim] -> [B, L, D]."""
        return self.txt_in(self.txt_norm(context))

    def embed_latents(
        self, latent: Tensor, references: Sequence[Tensor], method: str
    ) -> tuple[Tensor, Tensor, list[int]]:
        """The image stream [B, L, D], the positions [B, L, 3] and the tokens of each: the latent, then references.

        Args: latent [B, C, T, H, W]; references [1 or B, C, h, w]; method, one of REFERENCE_METHODS.
        """
        p, batch, layers = self.config.patch_size, len(latent), latent.unbind(2)
        tokens = [patchify(layer, p) for layer in layers]
        ids = [centred(layer, p, number, 0, 0) for number, layer in enumerate(layers)]
        counts = [sum(each.shape[1] for each in tokens)]
        for ref, place in zip(references, placed(references, PLACED_AS.get(method, method)), strict=True):
            tokens.append(patchify(ref, p).expand(batch, -1, -1).to(latent.dtype))
            ids.append(centred(ref, p, *place))
            counts.append(tokens[-1].shape[1])
        return self.img_in(torch.cat(tokens, dim=1)), torch.cat(ids).expand(batch, -1, -1), counts

    def text_positions(self, latent: Tensor, txt: Tensor) -> Tensor:
        """[B, L, 3]: the text is on the diagonal, from the image's last row or column on, whichever is further."""
        start = max(-(-size // self.config.patch_size) // 2 for size in latent.shape[-2:])
        ids = torch.arange(start, start + txt.shape[1], dtype=torch.float32, device=txt.device)
        return ids[None, :, None].expand(len(txt), -1, 3)


def centred(x: Tensor, patch_size: int, index: int, top: int, left: int) -> Tensor:
    """`positions` of a latent [B, C, H, W], with rows and columns counted from the middle.

    As ComfyUI counts them; diffusers counts from one further for an odd number of them.
    """
    rows, columns = (-(-size // patch_size) for size in x.shape[-2:])
    return positions(x, patch_size, index, top - rows // 2 * patch_size, left - columns // 2 * patch_size)
