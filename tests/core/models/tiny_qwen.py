"""What tests of Qwen-Image share: tiny random models, their inputs, and diffusers' model with the same weights."""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from mmdit_core.config import QwenImageConfig
from mmdit_core.models.qwen_image import TIMESTEP_ZERO_MARKER, QwenImage

TINY = QwenImageConfig(hidden_size=64, num_heads=2, depth=3, context_dim=24, axes_dim=(8, 12, 12))
TEXT = 7
# 1000 * (sigma * frequency) and (1000 * sigma) * frequency round alike for powers of two alone; else an angle of up to
# 1000 differs by up to 1e-4 in float32.
SIGMAS = torch.tensor([0.5, 0.25])
MASK = torch.tensor([[1] * 4 + [0] * 3, [1] * 6 + [0]])
REFERENCES = {"none": (), "one": ((4, 8),), "two": ((4, 8), (8, 4))}


def random_model(config: QwenImageConfig = TINY, seed: int = 0, std: float = 0.1, **kwargs) -> QwenImage:
    torch.manual_seed(seed)
    model = QwenImage(config, **kwargs).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=std)
    return model


def inputs(size=(8, 12), batch: int = 2, config: QwenImageConfig = TINY, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "x": torch.randn(batch, config.in_channels, *size),
        "timesteps": 1000 * SIGMAS.repeat(batch)[:batch],
        "context": torch.randn(batch, TEXT, config.context_dim),
    }


def references(sizes, batch: int = 2, config: QwenImageConfig = TINY) -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(batch, config.in_channels, *size) for size in sizes]


def diffusers_twin(model: QwenImage) -> QwenImageTransformer2DModel:
    c = model.config
    with torch.device("meta"):
        twin = QwenImageTransformer2DModel(
            patch_size=c.patch_size, in_channels=c.in_channels * c.patch_size**2, out_channels=c.channels_out,
            num_layers=c.depth, attention_head_dim=c.head_dim, num_attention_heads=c.num_heads,
            joint_attention_dim=c.context_dim, axes_dims_rope=c.axes_dim,
            zero_cond_t=c.reference_method == "index_timestep_zero", use_additional_t_cond=c.additional_t_cond,
            use_layer3d_rope=c.additional_t_cond,
        )  # fmt: skip
        # Its rotations are no parameters, and have to have values.
    with torch.device("cpu"):
        twin.pos_embed = type(twin.pos_embed)(theta=10000, axes_dim=list(c.axes_dim), scale_rope=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != TIMESTEP_ZERO_MARKER}
    twin.load_state_dict(state, strict=True, assign=True)
    return twin.eval().requires_grad_(False)


def packed(latent: Tensor) -> Tensor:
    """[B, C, H, W] of even sizes -> [B, H * W / 4, 4 * C], as diffusers' pipelines pack a latent."""
    b, c, h, w = latent.shape
    return latent.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def diffusers_velocity(twin, x, timesteps, context, attention_mask=None, ref_latents=(), **more) -> Tensor:
    """diffusers' prediction for the image's tokens."""
    images = [x, *ref_latents]
    shapes = [[(1, image.shape[-2] // 2, image.shape[-1] // 2) for image in images]] * len(x)
    tokens = torch.cat([packed(image) for image in images], dim=1)
    out = twin(tokens, context, attention_mask, timesteps / 1000, shapes, return_dict=False, **more)[0]
    b, c, h, w = x.shape
    out = out[:, : h * w // 4].view(b, h // 2, w // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(b, -1, h, w)


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()
