"""The SD3 family of multimodal diffusion transformers in one class.

Parameters carry the names of Stability AI's single-file checkpoints, so that weights and LoRAs load without renaming.
Blocks, attention and inputs can be intercepted through ComfyUI's `transformer_options`; the protocol is a plain
dictionary, so nothing of ComfyUI is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MMDiTConfig
from .adaln import ROWS, RUN, Prepared, Rows
from .blocks import Attention, BlockModulation, JointBlock
from .layers import NORM_EPS, Embedder, PatchEmbed, attention, modulate, sincos_positions, timestep_embedding
from .products import with_fast_products

TIME_FEATURES = 256
VAE_FACTOR = 8  # picture pixels per latent pixel, in every model of the family


class LatentSizeError(ValueError):
    """A latent that the model's position grid cannot cover."""


class FinalLayer(nn.Module):
    def __init__(self, config: MMDiTConfig, *, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        size, factory = config.hidden_size, {"device": device, "dtype": dtype}
        self.norm_final = operations.LayerNorm(size, elementwise_affine=False, eps=NORM_EPS, **factory)
        self.linear = operations.Linear(size, config.patch_size**2 * config.channels_out, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(size, 2 * size, **factory))

    def modulation(self, vec: Tensor) -> tuple[Tensor, ...]:  # [B, D] -> shift and scale [B, 1, D]
        return self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1)

    def forward(self, x: Tensor, vec: Tensor, mod: tuple[Tensor, ...] | None = None) -> Tensor:
        """[B, L, D] -> [B, L, patch * patch * C]; mod, the modulation of vec, where it is known already."""
        shift, scale = self.modulation(vec) if mod is None else mod
        return self.linear(modulate(self.norm_final(x), shift, scale))


class MMDiT(nn.Module):
    """Velocity of a rectified flow, given a noisy latent, its noise level and a text.

    Args: config; device and dtype of the parameters; operations, a namespace with Linear, Conv2d, LayerNorm and
        RMSNorm (torch.nn, or a host's casting and offloading layers); attention, a function with the calling
        convention of `mmdit_core.models.layers.attention`.
    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".
    """

    pos_embed: Tensor  # [1, pos_embed_max_size ** 2, hidden_size], fixed

    def __init__(
        self,
        config: MMDiTConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
        attention: Attention = attention,
    ):
        super().__init__()
        operations = with_fast_products(operations)
        factory: dict[str, Any] = {"device": device, "dtype": dtype, "operations": operations}
        size = config.hidden_size
        self.config = config
        self.dtype = dtype
        self.x_embedder = PatchEmbed(config.in_channels, size, config.patch_size, **factory)
        self.t_embedder = Embedder(TIME_FEATURES, size, **factory)
        self.y_embedder = Embedder(config.pooled_dim, size, **factory)
        self.guidance_embedder = Embedder(TIME_FEATURES, size, **factory) if config.guidance_embed else None
        self.context_embedder = operations.Linear(config.context_dim, size, device=device, dtype=dtype)
        self.register_buffer(
            "pos_embed", torch.zeros(1, config.pos_embed_max_size**2, size, device=device, dtype=dtype)
        )
        self.joint_blocks = nn.ModuleList(
            [JointBlock(config, index, attention=attention, **factory) for index in range(config.depth)]
        )
        self.final_layer = FinalLayer(config, **factory)

    def init_weights(self) -> None:
        """Weights to train from: AdaLN-Zero (every block starts as the identity), the output starts at zero.

        Draws from torch's global generator.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedder in (self.t_embedder, self.y_embedder, self.guidance_embedder):
            for layer in embedder.mlp if embedder is not None else ():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        zeroed = [self.final_layer.linear, self.final_layer.adaLN_modulation[1]]
        for block in self.joint_blocks:
            zeroed += [block.x_block.adaLN_modulation[1], block.context_block.adaLN_modulation[1]]  # type: ignore[union-attr, index]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.pos_embed.copy_(sincos_positions(self.config.hidden_size, self.config.pos_embed_max_size))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        control: Mapping[str, Any] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The velocity dx/dsigma = noise - data.

        Args: x [B, C, H, W] latent of any size the position grid covers; timesteps [B] in 0..1000 (sigma * 1000);
            context [B, L, context_dim] text tokens; y [B, pooled_dim] pooled text, None for none; guidance [B], read
            only by models with a guidance embedding; control, {"output": [residual [B, Li, D] or None, ...]}, added
            to the image stream after each block; transformer_options, the host's hooks and settings, never changed,
            and the options that `prepared` gives.
        Returns: [B, C, H, W], x's dtype.
        Raises: ValueError for inputs whose shapes do not fit; LatentSizeError for a latent that is too large.
        """
        self._check_inputs(x, context, y)
        assert context is not None
        # The loop notes its position here for hooks; the caller's dictionary stays as it came.
        options: dict[str, Any] = dict(transformer_options or {})
        run: Prepared | None = options.get(RUN)
        rows = options[ROWS] = None if run is None else run.rows(self, x, timesteps, y, guidance)
        try:
            vec = self.embed_vector(timesteps, y, guidance, dtype=x.dtype) if rows is None else rows.vec
            txt = self.context_embedder(context) if run is None else run.text(self, context)
            tokens = self._tokens(x, txt, vec, control, options, rows)
        finally:
            if rows is not None:
                rows.close()
        return self.unpatchify(tokens, x.shape[-2], x.shape[-1])

    def _tokens(
        self,
        x: Tensor,
        txt: Tensor,
        vec: Tensor,
        control: Mapping[str, Any] | None,
        options: dict[str, Any],
        rows: Rows | None,
    ) -> Tensor:
        """From the embedded text [B, Lt, D] and vector [B, D] to what each patch of x holds, [B, Li, patch**2 * C]."""
        img = self.embed_latent(x)
        img_ids = txt_ids = None
        for patch in options.get("patches", {}).get("post_input", ()):
            out = patch(
                {"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": txt_ids, "transformer_options": options}
            )
            img, txt, img_ids, txt_ids = out["img"], out["txt"], out["img_ids"], out["txt_ids"]
        img = self.run_blocks(img, txt, vec, x, control, options)
        return self.final_layer(img, vec, None if rows is None else rows.final(vec))

    def prepared(self, timesteps: Tensor | Iterable[float] = (), **options: Any) -> Prepared:
        """A run that computes ahead what depends on timestep and text alone; see `modulation.Prepared`.

        Args: timesteps in 0..1000, those that will be asked for, in their order.
        Returns: a context manager that gives the transformer_options for the calls inside it.
        """
        return Prepared(self, timesteps, **options)

    def _check_inputs(self, x: Tensor, context: Tensor | None, y: Tensor | None) -> None:
        c = self.config
        if x.ndim != 4 or x.shape[1] != c.in_channels:
            raise ValueError(f"MMDiT: the latent is {list(x.shape)}; this model takes [B, {c.in_channels}, H, W]")
        if context is None or context.ndim != 3 or context.shape[-1] != c.context_dim:
            found = None if context is None else list(context.shape)
            raise ValueError(f"MMDiT: the text context is {found}; this model takes [B, L, {c.context_dim}]")
        if y is not None and y.shape[-1] != c.pooled_dim:
            raise ValueError(f"MMDiT: the pooled text is {list(y.shape)}; this model takes [B, {c.pooled_dim}]")

    def embed_vector(
        self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None = None, *, dtype: torch.dtype
    ) -> Tensor:
        """[B, D]: all that the blocks' modulation depends on. guidance is scaled by 1000, as FLUX's is."""
        vec = self.t_embedder(timestep_embedding(timesteps, TIME_FEATURES).to(dtype))
        if self.guidance_embedder is not None and guidance is not None:
            vec = vec + self.guidance_embedder(timestep_embedding(guidance * 1000.0, TIME_FEATURES).to(dtype))
        if y is not None:
            vec = vec + self.y_embedder(y.to(dtype))
        return vec

    def embed_latent(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, D]: odd sizes are padded circularly, as the host does it; positions are added."""
        p = self.config.patch_size
        pad_h, pad_w = -x.shape[-2] % p, -x.shape[-1] % p
        positions = self.positions((x.shape[-2] + pad_h) // p, (x.shape[-1] + pad_w) // p)
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h), mode="circular")
        return self.x_embedder(x) + positions.to(device=x.device, dtype=x.dtype)

    def positions(self, rows: int, columns: int) -> Tensor:
        """[1, rows * columns, D]: the middle of the stored grid."""
        most = self.config.pos_embed_max_size
        if max(rows, columns) > most:
            pixels = self.config.patch_size * VAE_FACTOR
            raise LatentSizeError(
                f"MMDiT: the picture is {columns * pixels} x {rows * pixels} pixels; "
                f"this model's position embedding covers at most {most * pixels} x {most * pixels}. "
                "Set a smaller width and height in the latent node."
            )
        top, left = (most - rows) // 2, (most - columns) // 2
        grid = self.pos_embed.view(most, most, -1)
        return grid[top : top + rows, left : left + columns].reshape(1, rows * columns, -1)

    def run_blocks(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        x: Tensor,
        control: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> Tensor:
        """The block loop, with the host's hooks around each block; img [B, Li, D], txt [B, Lt, D], vec [B, D]."""
        replaced = options.get("patches_replace", {}).get("dit", {})
        after_block = options.get("patches", {}).get("double_block", ())
        residuals = (control or {}).get("output", ())
        rows = options.get(ROWS)
        options["total_blocks"] = len(self.joint_blocks)
        options["block_type"] = "double"
        stream: Tensor | None = txt
        for index, block in enumerate(self.joint_blocks):
            options["block_index"] = index
            hook = replaced.get(("double_block", index))
            if hook is None:
                img, stream = block(img, stream, _modulation(block, index, vec, rows), options)
            else:
                args = {"img": img, "txt": stream, "vec": vec, "transformer_options": options}
                out = hook(args, {"original_block": _as_original(block, index, rows)})
                img, stream = out["img"], out["txt"]
            for patch in after_block:
                out = patch({"img": img, "txt": stream, "x": x, "block_index": index, "transformer_options": options})
                img, stream = out["img"], out["txt"]
            if index < len(residuals) and residuals[index] is not None:
                img = img + residuals[index]
        return img

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[B, L, patch * patch * C] -> [B, C, height, width], the padding of odd sizes cut off."""
        p = self.config.patch_size
        rows, columns = -(-height // p), -(-width // p)
        grid = tokens.view(tokens.shape[0], rows, columns, p, p, -1)
        picture = grid.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], -1, rows * p, columns * p)
        return picture[:, :, :height, :width]


def _modulation(block: nn.Module, index: int, vec: Tensor, rows: Rows | None) -> BlockModulation:
    """A block's modulation, looked up where it is known."""
    known = None if rows is None else rows.block(index, vec)
    return block.modulation(vec) if known is None else known  # type: ignore[operator]


def _as_original(block: nn.Module, index: int, rows: Rows | None):
    """The block as the host's `original_block`: a dictionary in, a dictionary out, vec taken from the dictionary."""

    def run(args: Mapping[str, Any]) -> dict[str, Any]:
        modulation = _modulation(block, index, args["vec"], rows)
        img, txt = block(args["img"], args["txt"], modulation, args["transformer_options"])
        return {"img": img, "txt": txt}

    return run
