"""Tiny random models for the workflows of published models: ComfyUI's classes with as many blocks as the real ones.

Each has stand-ins for its text encoder, with ComfyUI's tokenizer, and for its VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.text_encoders import flux, qwen_image, z_image
from torch import Tensor

CPU = torch.device("cpu")
VOCABULARY = 997  # rows of the random table in place of a text model
LATENT_SIDE = 8  # of an encoded image, whatever its size


@dataclass(frozen=True)
class Tiny:
    """A family's tiny model.

    Fields: model, its class in comfy.supported_models; config, as ComfyUI detects it; tokenizer, ComfyUI's; text,
    channels of its context; channels of its latent; frames, whether a latent has an axis for them; shortest, the least
    number of tokens.
    """

    model: str
    config: Mapping[str, Any]
    tokenizer: Callable[[], Any]
    text: int = 24
    channels: int = 16
    frames: bool = False
    shortest: int = 1

    def build(self):
        """The MODEL, with the same random weights in every run."""
        description = getattr(comfy.supported_models, self.model)(dict(self.config))
        description.set_inference_dtype(torch.float32, None)
        base = description.get_model({}, "", device=CPU)
        source = torch.Generator().manual_seed(7)
        for parameter in base.diffusion_model.parameters():
            parameter.requires_grad_(False).copy_(0.1 * torch.randn(parameter.shape, generator=source))
        base.diffusion_model.eval()
        return comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)


class TinyClip:
    """A CLIP whose text model is a random table: one vector for each token."""

    def __init__(self, tiny: Tiny):
        self.tokenizer, self.cond_stage_model = tiny.tokenizer(), torch.nn.Identity()
        (key,) = self.tokenizer.tokenize_with_weights("")
        setattr(self.cond_stage_model, key, torch.nn.Identity())  # the encoder's weights are present
        self._shortest = tiny.shortest
        self._table = torch.randn(VOCABULARY, tiny.text, generator=torch.Generator().manual_seed(3))

    def tokenize(self, text: str, **options: Any):
        return self.tokenizer.tokenize_with_weights(text, **options)

    def encode_from_tokens_scheduled(self, tokens):
        ((chunk,),) = tokens.values()
        ids = [token % VOCABULARY if isinstance(token, int) else 0 for token, *_ in chunk]
        ids += [1] * (self._shortest - len(ids))
        return [[self._table[ids][None], {}]]


class TinyVae:
    """A VAE that mixes channels and changes the size."""

    def __init__(self, tiny: Tiny):
        self._frames = tiny.frames
        self._mix = torch.randn(tiny.channels, 3, generator=torch.Generator().manual_seed(4))

    def encode(self, pixels: Tensor) -> Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 1), LATENT_SIDE)
        latent = torch.einsum("cp,bphw->bchw", self._mix, small - 0.5)
        return latent[:, :, None] if self._frames else latent

    def decode(self, latent: Tensor) -> Tensor:
        picture = latent[:, :, 0] if latent.ndim == 5 else latent
        return torch.sigmoid(torch.einsum("cp,bchw->bhwp", self._mix, picture) / 8)


Z_IMAGE = dict(
    image_model="lumina2",
    patch_size=2,
    in_channels=16,
    dim=288,  # at least the timestep's width, 256
    cap_feat_dim=24,
    n_layers=30,
    n_refiner_layers=2,
    qk_norm=True,
    n_heads=9,
    n_kv_heads=9,
    axes_dims=[8, 12, 12],
    axes_lens=[1536, 512, 512],
    rope_theta=256.0,
    ffn_dim_multiplier=1.0,
    z_image_modulation=True,
    time_scale=1000.0,
    pad_tokens_multiple=32,
)
KREA2 = dict(
    image_model="krea2",
    features=64,
    tdim=16,
    txtdim=12,
    heads=2,
    kvheads=2,
    multiplier=2,
    layers=28,
    channels=16,
    txtlayers=2,
    txtheads=2,
    txtkvheads=2,
)
QWEN_EDIT = dict(
    image_model="qwen_image",
    in_channels=64,
    out_channels=16,
    num_layers=60,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=24,
    axes_dims_rope=(8, 12, 12),
)
FLUX2 = dict(
    image_model="flux2",
    in_channels=128,
    out_channels=128,
    patch_size=1,
    vec_in_dim=None,
    context_in_dim=24,
    hidden_size=64,
    num_heads=2,
    mlp_ratio=3.0,
    depth=8,
    depth_single_blocks=48,
    axes_dim=[8, 8, 8, 8],
    theta=2000,
    qkv_bias=False,
    guidance_embed=True,
    txt_ids_dims=[3],
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    default_ref_method="index",
    ref_index_scale=10.0,
)
KLEIN_4B = {**FLUX2, "depth": 5, "depth_single_blocks": 20, "guidance_embed": False}

QWEN = qwen_image.QwenImageTokenizer


def krea2_tokenizer():
    """Not imported above, because ComfyUI 0.24.0 has no Krea 2."""
    from comfy.text_encoders.krea2 import Krea2Tokenizer

    return Krea2Tokenizer()


MODELS = {
    "Z-Image": Tiny("ZImage", Z_IMAGE, z_image.ZImageTokenizer),
    "Krea 2": Tiny("Krea2", KREA2, krea2_tokenizer, frames=True),
    "Qwen-Image-Edit 2509": Tiny("QwenImage", QWEN_EDIT, QWEN, frames=True),
    "Qwen-Image-Edit 2511": Tiny(
        "QwenImage", {**QWEN_EDIT, "default_ref_method": "index_timestep_zero"}, QWEN, frames=True
    ),
    # The vocabulary of FLUX.2-dev's tokenizer is in its file; Klein's has the same form.
    "FLUX.2-dev": Tiny("Flux2", FLUX2, flux.KleinTokenizer, channels=128),
    "FLUX.2 Klein": Tiny("Flux2", KLEIN_4B, flux.KleinTokenizer, channels=128, shortest=512),
}
