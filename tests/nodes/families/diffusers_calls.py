"""One row of ComfyUI's model call, given to diffusers' models: (model, row) -> velocity in the shape of the latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.nodes.families.diffusers_models import Row, grid, packed, text_ids, unpacked


def flux(model: Any, row: Row) -> Tensor:
    """FLUX.1: guidance as given, both times 1000 inside."""
    height, width = row.x.shape[-2] // 2, row.x.shape[-1] // 2
    out = model(
        packed(row.x),
        encoder_hidden_states=row.context,
        pooled_projections=row.y,
        timestep=row.t,
        img_ids=grid(height, width),
        txt_ids=text_ids(row.context.shape[1]),
        guidance=row.guidance,
        return_dict=False,
    )[0]
    return unpacked(out, row.x)


def flux2(model: Any, row: Row) -> Tensor:
    """FLUX.2: the text padded to 512 tokens by ComfyUI, its positions in the fourth axis."""
    height, width = row.x.shape[-2:]
    out = model(
        packed(row.x, 1),
        encoder_hidden_states=row.context,
        timestep=row.t,
        img_ids=grid(height, width, 4),
        txt_ids=text_ids(row.context.shape[1], 4, (3,)),
        guidance=row.guidance,
        return_dict=False,
    )[0]
    return unpacked(out, row.x, 1)


def chroma(model: Any, row: Row) -> Tensor:
    """Chroma: no pooled text, guidance 0."""
    height, width = row.x.shape[-2] // 2, row.x.shape[-1] // 2
    out = model(
        packed(row.x),
        encoder_hidden_states=row.context,
        timestep=row.t,
        img_ids=grid(height, width),
        txt_ids=text_ids(row.context.shape[1]),
        return_dict=False,
    )[0]
    return unpacked(out, row.x)


def qwen(model: Any, row: Row) -> Tensor:
    """Qwen-Image: one frame, packed as FLUX has it."""
    frame = row.x[:, :, 0]
    out = model(
        packed(frame),
        encoder_hidden_states=row.context,
        timestep=row.t,
        img_shapes=[[(1, frame.shape[-2] // 2, frame.shape[-1] // 2)]],
        return_dict=False,
    )[0]
    return unpacked(out, frame)[:, :, None]


def z_image(model: Any, row: Row) -> Tensor:
    """Z-Image: a list of images; time runs the other way, and so does the velocity."""
    (out,) = model([row.x[0][:, None]], 1 - row.t, [row.context[0]], return_dict=False)[0]
    return -out[None, :, 0]


def lumina(model: Any, row: Row) -> Tensor:
    """Lumina2: time runs the other way, and so does the velocity."""
    mask = torch.ones(row.context.shape[:2], dtype=torch.long)
    return -model(row.x, 1 - row.t, row.context, mask, return_dict=False)[0]


def ltx(model: Any, row: Row) -> Tensor:
    """LTX-Video: positions in pixels and seconds, at 25 frames a second."""
    frames, height, width = row.x.shape[-3:]
    out = model(
        row.x.flatten(2).transpose(1, 2),
        row.context,
        1000 * row.t,
        row.attention_mask,
        frames,
        height,
        width,
        rope_interpolation_scale=(8 / 25, 32, 32),
        return_dict=False,
    )[0]
    return out.transpose(1, 2).reshape(row.x.shape)


def hunyuan(model: Any, row: Row) -> Tensor:
    """HunyuanVideo and HunyuanImage: the time as ComfyUI has it, the guidance times 1000."""
    more = {"pooled_projections": row.y} if hasattr(row, "y") else {}  # HunyuanImage has none
    mask = torch.ones(row.context.shape[:2], dtype=torch.long)
    return model(row.x, row.t, row.context, mask, guidance=1000 * row.guidance, return_dict=False, **more)[0]


def aura(model: Any, row: Row) -> Tensor:
    """AuraFlow."""
    return model(row.x, row.context, row.t, return_dict=False)[0]


def longcat(model: Any, row: Row) -> Tensor:
    """LongCat-Image: text tokens are numbered in two axes, and the image begins where they end."""
    height, width, length = row.x.shape[-2] // 2, row.x.shape[-1] // 2, row.context.shape[1]
    out = model(
        packed(row.x),
        encoder_hidden_states=row.context,
        timestep=row.t,
        img_ids=grid(height, width) + torch.tensor([1, length, length]),
        txt_ids=text_ids(length, numbered=(1, 2)),
        return_dict=False,
    )[0]
    return unpacked(out, row.x)


def krea(model: Any, row: Row) -> Tensor:
    """Krea 2: two layers of the text encoder side by side in one text token."""
    frame = row.x[:, :, 0]
    ids = torch.cat((text_ids(row.context.shape[1]), grid(frame.shape[-2] // 2, frame.shape[-1] // 2)))
    layers = row.context.unflatten(-1, (2, 12))
    return unpacked(model(packed(frame), layers, row.t, ids, return_dict=False)[0], frame)[:, :, None]


def joy(model: Any, row: Row) -> Tensor:
    """JoyImage."""
    return model(row.x, row.t, row.context, return_dict=False)[0]
