"""Tiny random models of the families that the nodes support, built as ComfyUI builds them.

    family = FAMILIES["Z-Image"]
    model, prompt, latent = build(family)  # a MODEL; prompt(seed, length) -> CONDITIONING; a latent [1, C, ...]

Float32 on the CPU; a model call takes milliseconds. Prompts of different seeds share the pooled text, so that the token
text alone tells them apart. Settings keep every branch of their class: refiners, padding, registers, references,
guidance embedding, second attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

from tests.nodes.families.tiny_parts import (
    AURA,
    BOOGU,
    CHROMA,
    COGVIDEO,
    COSMOS,
    ERNIE,
    FLUX,
    FLUX2,
    FRAME,
    HIDREAM,
    HUNYUAN,
    HUNYUAN_15,
    HUNYUAN_IMAGE,
    IDEOGRAM,
    JOY,
    KANDINSKY,
    KREA2,
    LENS,
    LTX2,
    LTXV,
    LUMINA,
    MAGE,
    MINIMAX,
    MOCHI,
    OMNIGEN,
    PACKED,
    PICTURE,
    PID,
    PIXELDIT,
    QWEN,
    RADIANCE,
    SD3,
    WAN,
    Z_IMAGE,
    ZIMAGE_PIXELS,
    anima,
    fill,
    guidance,
    mask,
    part_mask,
    quoted,
    randn,
    reference,
    silent,
    small_adapter,
    small_face,
    small_speech,
    start_image,
    unlike,
    with_audio,
    with_face,
    with_latent,
    with_masks,
    with_music,
    with_pose,
    with_speech,
)

WEIGHT_SEED, POOLED_SEED = 7, 99


@dataclass(frozen=True)
class Tiny:
    """One tiny model.

    Fields: kind, its class in comfy.supported_models; config, of its network; latent, the shape of a latent; text,
    channels of a token; pooled, channels of the pooled text, None without; extra, more entries of a conditioning from
    (seed, length); text_tokens, text tokens in the blocks for a prompt of so many; image_tokens, with padding and
    references; prompt_last, True if other tokens come before the prompt's; image_first, of the joint sequence; std, of
    the weights; more_texts, where the blocks' text holds another encoder's text of the prompt; is_flow, False if it
    predicts no rectified flow; only_skip, True if its blocks take no other control; most_rows, of a batch; shrink, of
    the parts of the network whose sizes ComfyUI fixes.
    """

    kind: str
    config: Mapping[str, Any]
    latent: tuple[int, ...]
    text: int = 24
    pooled: int | None = None
    extra: Callable[[int, int], dict[str, Any]] = lambda seed, length: {}
    text_tokens: Callable[[int], int] = field(default=lambda length: length)
    image_tokens: int = 20
    prompt_last: bool = False
    image_first: bool = False
    std: float = 0.1
    more_texts: tuple[int, ...] = ()
    is_flow: bool = True
    only_skip: bool = False
    most_rows: int = 2
    shrink: Callable[[Any], None] = lambda network: None


def _base(
    tiny: Tiny,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    compute: torch.dtype | None = None,
    **more: Any,
):
    """ComfyUI's model, without weights. Args: compute, the dtype that weights of `dtype` are cast to."""
    described = getattr(comfy.supported_models, tiny.kind)(dict(tiny.config))
    described.unet_config.update(tiny.config)  # some classes fix their sizes over what they are given
    described.set_inference_dtype(dtype, compute)
    for name, value in more.items():
        setattr(described, name, value)
    return described.get_model({}, "", device=device)


def network_on_meta(tiny: Tiny) -> torch.nn.Module:
    """The network that the model's class builds, without memory for its weights."""
    return _base(tiny, torch.device("meta")).diffusion_model


def build(
    tiny: Tiny, weight_seed: int = WEIGHT_SEED, state: Mapping[str, torch.Tensor] | None = None, **described: Any
):
    """A MODEL, a maker of CONDITIONINGs (seed, length), and a latent.

    Args: state, of the network, random if None; described, dtypes and settings of ComfyUI's class, float32 if none.
    """
    cpu = torch.device("cpu")
    base = _base(tiny, cpu, **described)
    tiny.shrink(base.diffusion_model)
    source = torch.Generator().manual_seed(weight_seed)
    for parameter in base.diffusion_model.parameters():
        parameter.requires_grad_(False).copy_(tiny.std * torch.randn(parameter.shape, generator=source))
    for name, buffer in base.diffusion_model.named_buffers():
        if name == "pos_embed":  # SD3's positions are made without values
            buffer.copy_(torch.randn(buffer.shape, generator=source))
    if state is not None:
        base.diffusion_model.load_state_dict(state)
    base.diffusion_model.eval()

    def prompt(seed: int, length: int = 7) -> list:
        options = dict(tiny.extra(seed, length))
        if tiny.pooled is not None:
            options["pooled_output"] = randn((1, tiny.pooled), POOLED_SEED)
        return [[randn((1, length, tiny.text), seed), options]]

    model = comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)
    return model, prompt, randn(tiny.latent, 1)


QWEN_IMAGE = Tiny("QwenImage", QWEN, FRAME)
QWEN_EDIT = replace(QWEN_IMAGE, extra=reference(FRAME), image_tokens=40)
FLUX1 = Tiny("Flux", FLUX, PICTURE, pooled=20, extra=guidance(3.5), prompt_last=True)
FLUX2_DEV = Tiny(
    "Flux2", FLUX2, PACKED, extra=guidance(3.5), text_tokens=lambda length: max(length, 512), prompt_last=True
)
# ComfyUI itself fails on odd sizes here.
VIDEO = Tiny("HunyuanVideo", HUNYUAN, (1, 16, 1, 8, 10), pooled=20, extra=guidance(6.0))

HUNYUAN_IMAGE_21 = replace(VIDEO, kind="HunyuanImage21", config=HUNYUAN_IMAGE, latent=(1, 64, 4, 5), pooled=None)

FAMILIES: dict[str, Tiny] = {
    "SD3": Tiny("SD3", SD3, PICTURE, pooled=20),
    "SD3.5 Medium": Tiny("SD3", {**SD3, "x_block_self_attn_layers": [0, 1]}, PICTURE, pooled=20),
    "FLUX.1 dev": FLUX1,
    "FLUX.1 schnell": replace(
        FLUX1, kind="FluxSchnell", config={**FLUX, "guidance_embed": False}, extra=lambda seed, length: {}
    ),
    "FLUX.1 Fill": replace(FLUX1, kind="FluxInpaint", config={**FLUX, "in_channels": 96}, extra=fill),
    "FLUX.1 Kontext": replace(FLUX1, extra=reference(PICTURE, guidance=3.5), image_tokens=40),
    "FLUX.2": FLUX2_DEV,
    "FLUX.2 with a reference": replace(FLUX2_DEV, extra=reference(PACKED, guidance=3.5), image_tokens=40),
    "Chroma": Tiny("Chroma", CHROMA, PICTURE),
    "Chroma Radiance": Tiny("ChromaRadiance", RADIANCE, (1, 3, 15, 18), std=0.2),
    "LongCat-Image": Tiny(
        "LongCatImage",
        {**FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]},
        PICTURE,
        prompt_last=True,
    ),
    "Ovis-Image": Tiny(
        "FluxSchnell",
        FLUX | dict(vec_in_dim=None, guidance_embed=False, txt_ids_dims=[1, 2], yak_mlp=True, txt_norm=True),
        PICTURE,
        prompt_last=True,
    ),
    "Qwen-Image": QWEN_IMAGE,
    "Qwen-Image-Edit": QWEN_EDIT,
    "Qwen-Image-Edit-2511": replace(QWEN_EDIT, config={**QWEN, "default_ref_method": "index_timestep_zero"}),
    "Qwen-Image with a text mask": replace(QWEN_IMAGE, extra=part_mask),
    "MageFlow": Tiny("MageFlow", MAGE, PACKED, std=0.2),
    "Z-Image": Tiny("ZImage", Z_IMAGE, PICTURE, text_tokens=lambda length: -(-length // 32) * 32, image_tokens=32),
    "Z-Image Pixel Space": Tiny(
        "ZImagePixelSpace",
        ZIMAGE_PIXELS,
        (1, 3, 15, 18),
        text_tokens=lambda length: -(-length // 32) * 32,
        image_tokens=32,
    ),
    "Lumina2": Tiny("Lumina2", LUMINA, PICTURE),
    "NewBie": Tiny("Lumina2", {**LUMINA, "clip_text_dim": 20}, PICTURE, pooled=20),
    "Krea 2": Tiny("Krea2", KREA2, FRAME),
    "Krea 2 with a reference": Tiny(
        "Krea2", {**KREA2, "default_ref_method": "index_timestep_zero"}, FRAME, extra=reference(FRAME), image_tokens=40
    ),
    "AuraFlow": Tiny(
        "AuraFlow", AURA, (1, 4, 8, 10), text_tokens=lambda length: length + 8, prompt_last=True, std=0.05
    ),
    "Lens": Tiny("Lens", LENS, PACKED, extra=part_mask, image_first=True, std=0.2),
    "JoyImage": Tiny("JoyImage", JOY, FRAME, image_first=True),
    "HunyuanVideo": VIDEO,
    "HunyuanVideo 1.5": replace(
        VIDEO, kind="HunyuanVideo15", config={**HUNYUAN, **HUNYUAN_15}, latent=(1, 32, 1, 4, 5), prompt_last=True
    ),
    "HunyuanImage 2.1": HUNYUAN_IMAGE_21,
    "HunyuanImage 2.1 distilled": replace(HUNYUAN_IMAGE_21, config=HUNYUAN_IMAGE | dict(meanflow=True)),
    "HunyuanVideo 1.5 with quoted text": replace(
        VIDEO,
        kind="HunyuanVideo15",
        config=HUNYUAN | HUNYUAN_15 | dict(byt5=True),
        latent=(1, 32, 1, 4, 5),
        extra=quoted,
        prompt_last=True,
        text_tokens=lambda length: length + 6,
        more_texts=(0,),
    ),
    "HunyuanImage 2.1 with quoted text": replace(
        HUNYUAN_IMAGE_21,
        config=HUNYUAN_IMAGE | dict(byt5=True),
        extra=quoted,
        text_tokens=lambda length: length + 6,
        more_texts=(7,),
    ),
    "HiDream-I1": Tiny(
        "HiDream",
        HIDREAM,
        PICTURE,
        pooled=20,
        extra=lambda seed, length: {"conditioning_llama3": randn((1, 3, length + 2, 12), seed + 50)},
        text_tokens=lambda length: length + 2 * (length + 2),
        more_texts=(7, 16),
        image_first=True,
        std=0.2,
    ),
    "OmniGen2": Tiny("Omnigen2", OMNIGEN, PICTURE, extra=mask),
    "OmniGen2 with a reference": Tiny(
        "Omnigen2",
        OMNIGEN,
        PICTURE,
        extra=lambda seed, length: {**mask(seed, length), **reference(PICTURE)(seed, length)},
        image_tokens=40,
    ),
    "Boogu": Tiny("Boogu", BOOGU, PICTURE, extra=mask),
    "Ideogram 4": Tiny("Ideogram4", IDEOGRAM, PACKED),
    "ERNIE-Image": Tiny("ErnieImage", ERNIE, PACKED, image_first=True, std=0.2),
    "LTX-Video": Tiny(
        "LTXV",
        LTXV,
        (1, 128, 1, 4, 5),
        extra=lambda seed, length: {"frame_rate": 25, **mask(seed, length)},
    ),
    "LTX-2": Tiny("LTXAV", LTX2, (1, 128, 1, 4, 5), 48, extra=lambda seed, length: {"frame_rate": 25}, only_skip=True),
    "Mochi": Tiny("GenmoMochi", MOCHI, (1, 12, 1, 8, 10), extra=mask, only_skip=True),
    "Anima": Tiny(
        "Anima",
        COSMOS | dict(image_model="anima"),
        FRAME,
        extra=anima,
        text_tokens=lambda length: max(length, 512),
        std=0.2,
        shrink=small_adapter,
    ),
    "Cosmos-Predict2": Tiny("CosmosT2IPredict2", COSMOS, FRAME, std=0.2, is_flow=False),
    # ComfyUI itself fails on odd sizes here.
    "Kandinsky 5 Image": Tiny("Kandinsky5Image", KANDINSKY | dict(visual_embed_dim=64), (1, 16, 8, 10), pooled=20),
    "Kandinsky 5": Tiny("Kandinsky5", KANDINSKY | dict(visual_embed_dim=132), (1, 16, 1, 8, 10), pooled=20),
    "Wan 2.1": Tiny("WAN21_T2V", WAN, FRAME),
    "Wan 2.1 image to video": Tiny("WAN21_I2V", WAN | dict(model_type="i2v", in_dim=36), FRAME, extra=start_image),
    "Wan 2.2 image to video": Tiny("WAN21_T2V", WAN | dict(in_dim=36), FRAME, extra=start_image),
    "Wan S2V": Tiny(
        "WAN22_S2V",
        WAN | dict(model_type="s2v", audio_dim=16, num_audio_token=1, audio_inject_layers=[0, 2]),
        (1, 16, 1, 8, 10),
        extra=with_audio,
        image_tokens=40,
    ),
    "Wan HuMo": Tiny("WAN21_HuMo", WAN | dict(model_type="humo"), FRAME, extra=with_speech, shrink=small_speech),
    "Wan Animate": Tiny(
        "WAN22_Animate",
        WAN | dict(model_type="animate", in_dim=36, num_layers=5),
        FRAME,
        extra=with_face,
        shrink=small_face,
    ),
    "WanDancer": Tiny(
        "WAN22_WanDancer",
        WAN | dict(model_type="wandancer", in_dim=36, audio_inject_layers=[0, 2], music_dim=32, music_latent_dim=32),
        (1, 16, 1, 7, 11),  # its music needs a number of tokens that 8 divides
        extra=with_music,
        image_tokens=24,
    ),
    "SCAIL": Tiny("WAN21_SCAIL", WAN | dict(model_type="scail", in_dim=20), FRAME, extra=with_pose, image_tokens=46),
    "SCAIL 2": Tiny(
        "WAN21_SCAIL2", WAN | dict(model_type="scail2", in_dim=20), FRAME, extra=with_masks, image_tokens=46
    ),
    "PixelDiT": Tiny("PixelDiTT2I", PIXELDIT, (1, 3, 15, 18), std=0.2),
    "PiD": Tiny("PiD", PID, (1, 3, 15, 18), extra=with_latent, std=0.2),
    "MiniMax H3": Tiny(
        "MiniMaxH3", MINIMAX, (1, 32, 1, 7, 9), extra=unlike, std=0.2, only_skip=True, most_rows=1, shrink=silent
    ),
    "CogVideoX": Tiny("CogVideoX_T2V", COGVIDEO, FRAME, std=0.2, is_flow=False),
}
# One of each, for tests of what the nodes do with rows rather than with blocks.
FEW = ("SD3", "FLUX.1 dev", "FLUX.2", "Qwen-Image-Edit-2511", "Z-Image", "Krea 2", "JoyImage", "LTX-Video")
