"""The twins: for each family, diffusers' class in the size of the tiny model, and one of its calls."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from comfy.model_detection import convert_diffusers_mmdit
from diffusers.models.transformers import transformer_chroma, transformer_z_image
from torch import Tensor, nn

from tests.nodes.families import diffusers_calls as calls
from tests.nodes.families import diffusers_weights as weights
from tests.nodes.families.diffusers_models import Layout, Row, randomise
from tests.nodes.families.tiny import AURA, FAMILIES, LUMINA, Z_IMAGE, Tiny


@dataclass(frozen=True)
class Twin:
    """One family in diffusers.

    Fields: tiny, ComfyUI's model; kind, diffusers' class; config, of it; call, its velocity for one row; layout; rules,
    that rename what ComfyUI's converter leaves; convert, whether to use that converter; adapt, changes the model
    before its weights are drawn; same_epsilon, whether ComfyUI's norms of queries and keys have torch's own epsilon,
    which diffusers' model is then given.
    """

    tiny: Tiny
    kind: str
    config: Mapping[str, Any]
    call: Callable[[Any, Row], Tensor]
    layout: Layout = Layout()
    rules: weights.Rules = ()
    convert: bool = True
    adapt: Callable[[Any], None] = lambda model: None
    same_epsilon: bool = False

    def model(self) -> nn.Module:
        """Diffusers' model with random weights."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers' own, of a class that it renamed
            made = getattr(diffusers, self.kind)(**self.config)
        self.adapt(made)
        for name, module in made.named_modules():
            if self.same_epsilon and re.search(r"\.norm_(added_)?[qk]$", name):
                module.eps = torch.finfo(torch.float32).eps
        return randomise(made, self.tiny.std)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's weights in ComfyUI's layout."""
        left = {name: value.clone() for name, value in model.state_dict().items()}  # the converter writes into them
        done = (convert_diffusers_mmdit(left) or {}) if self.convert else {}
        return {**done, **weights.renamed(left, self.rules)}


def _published_modulations(model: Any) -> None:
    """Chroma: ComfyUI numbers the modulations of the published model's 344; the last two are of the final layer."""
    model.time_text_embed = transformer_chroma.ChromaCombinedTimestepTextProjEmbeddings(16, 344)


def _narrow_timestep(model: Any) -> None:
    """Z-Image: the timestep's network as wide as the model; diffusers has the published model's width alone."""
    model.t_embedder = transformer_z_image.TimestepEmbedder(256, mid_size=model.dim)


HEADS: dict[str, Any] = dict(attention_head_dim=32, num_attention_heads=2)
ROPE = (8, 12, 12)
FLUX: dict[str, Any] = dict(num_layers=2, num_single_layers=2, joint_attention_dim=24, **HEADS)
HUNYUAN: dict[str, Any] = dict(num_layers=2, num_single_layers=2, guidance_embeds=True, text_embed_dim=24, **HEADS)
KREA: dict[str, Any] = dict(
    num_layers=3, num_key_value_heads=1, intermediate_size=128, timestep_embed_dim=16, text_hidden_dim=12,
    num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=128, **HEADS,
)  # fmt: skip
PICTURE, FRAME = (1, 16, 8, 10), (1, 16, 1, 8, 10)  # diffusers pads no odd sizes
JOINT, STACK = Layout(("transformer_blocks",)), Layout(("layers",))


def _tiny(name: str, latent: tuple[int, ...], **changed: Any) -> Tiny:
    return replace(FAMILIES[name], latent=latent, **changed)


_ALL: dict[str, Twin] = {
    "FLUX.1": Twin(
        _tiny("FLUX.1 dev", PICTURE),
        "FluxTransformer2DModel",
        dict(**FLUX, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=ROPE),
        calls.flux,
    ),
    "FLUX.2": Twin(
        FAMILIES["FLUX.2"],
        "Flux2Transformer2DModel",
        dict(**FLUX, in_channels=128, axes_dims_rope=(8, 8, 8, 8)),
        calls.flux2,
        rules=weights.FLUX,
        convert=False,  # ComfyUI's converter needs biases
        same_epsilon=True,
    ),
    "LongCat-Image": Twin(
        _tiny("LongCat-Image", PICTURE),
        "LongCatImageTransformer2DModel",
        dict(**FLUX, pooled_projection_dim=24, axes_dims_rope=list(ROPE)),
        calls.longcat,
        rules=weights.FLUX,
    ),
    "Chroma": Twin(
        _tiny("Chroma", PICTURE),
        "ChromaTransformer2DModel",
        dict(**FLUX, axes_dims_rope=ROPE, approximator_hidden_dim=64, approximator_layers=1),
        calls.chroma,
        rules=weights.FLUX,
        adapt=_published_modulations,
    ),
    "Qwen-Image": Twin(
        # The two classes centre an odd number of columns differently.
        _tiny("Qwen-Image", (1, 16, 1, 8, 12)),
        "QwenImageTransformer2DModel",
        dict(in_channels=64, out_channels=16, num_layers=3, joint_attention_dim=24, axes_dims_rope=ROPE, **HEADS),
        calls.qwen,
        JOINT,
    ),
    "Z-Image": Twin(
        _tiny("Z-Image", PICTURE, config={**Z_IMAGE, "ffn_dim_multiplier": 8.0 / 3.0}),
        "ZImageTransformer2DModel",
        dict(
            dim=288, n_layers=3, n_refiner_layers=1, n_heads=9, n_kv_heads=9, cap_feat_dim=24, rope_theta=10000.0,
            axes_dims=list(ROPE), axes_lens=[300, 512, 512],
        ),
        calls.z_image,
        Layout(("layers",), image_first=True),
        adapt=_narrow_timestep,
        same_epsilon=True,
    ),
    "Lumina2": Twin(
        _tiny("Lumina2", PICTURE, config={**LUMINA, "ffn_dim_multiplier": 4.0}),
        "Lumina2Transformer2DModel",
        dict(
            hidden_size=96, num_layers=3, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=3,
            axes_dim_rope=ROPE, cap_feat_dim=24,
        ),
        calls.lumina,
        STACK,
        weights.LUMINA,
        convert=False,  # ComfyUI's converter takes it for FLUX
        same_epsilon=True,
    ),
    "Krea 2": Twin(
        _tiny("Krea 2", FRAME),
        "Krea2Transformer2DModel",
        dict(**KREA, axes_dims_rope=ROPE),
        calls.krea,
        JOINT,
        weights.KREA,
    ),
    "AuraFlow": Twin(
        # The two classes centre an odd number of columns differently.
        _tiny("AuraFlow", (1, 4, 8, 12), std=0.1, config={**AURA, "global_conddim": 64}),
        "AuraFlowTransformer2DModel",
        dict(
            num_mmdit_layers=2, num_single_dit_layers=2, joint_attention_dim=24, caption_projection_dim=64,
            pos_embed_max_size=256, **HEADS,
        ),
        calls.aura,
        Layout(("joint_transformer_blocks", "single_transformer_blocks")),
    ),
    "JoyImage": Twin(
        _tiny("JoyImage", FRAME),
        "JoyImageEditTransformer3DModel",
        dict(
            patch_size=[1, 2, 2], in_channels=16, hidden_size=256, num_attention_heads=2, text_dim=24, num_layers=3,
            theta=10000,
        ),
        calls.joy,
        Layout(("double_blocks",), image_first=True),
    ),
    "HunyuanVideo": Twin(
        FAMILIES["HunyuanVideo"],
        "HunyuanVideoTransformer3DModel",
        dict(**HUNYUAN, pooled_projection_dim=20, rope_axes_dim=ROPE),
        calls.hunyuan,
        Layout(image_first=True),
        weights.HUNYUAN,
    ),
    "HunyuanImage 2.1": Twin(
        FAMILIES["HunyuanImage 2.1"],
        "HunyuanImageTransformer2DModel",
        dict(**HUNYUAN, patch_size=(1, 1), text_embed_2_dim=None, rope_axes_dim=(16, 16)),
        calls.hunyuan,
        Layout(image_first=True),
        weights.HUNYUAN,
    ),
    "LTX-Video": Twin(
        FAMILIES["LTX-Video"],
        "LTXVideoTransformer3DModel",
        dict(cross_attention_dim=64, num_layers=3, caption_channels=24, **HEADS),
        calls.ltx,
        Layout(("transformer_blocks",), cross=True),
        weights.LTX,
    ),
}  # fmt: skip
# Older versions of diffusers lack the newest.
TWINS = {name: twin for name, twin in _ALL.items() if hasattr(diffusers, twin.kind)}
