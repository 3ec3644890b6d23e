"""What the tiny models are built of: sizes of their networks, entries of their conditionings, parts made smaller."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.ops
import torch


def randn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Normal values, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guidance(value: float, **more: Any) -> Callable[[int, int], dict[str, Any]]:
    return lambda seed, length: {"guidance": value, **more}


def reference(shape: tuple[int, ...], **more: Any) -> Callable[[int, int], dict[str, Any]]:
    return lambda seed, length: {"reference_latents": [randn(shape, 2)], **more}


def mask(seed: int, length: int) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, length, dtype=torch.long)}


def part_mask(seed: int, length: int) -> dict[str, Any]:
    return {"attention_mask": torch.tensor([[1] * (length - 2) + [0] * 2])}


def quoted(seed: int, length: int) -> dict[str, Any]:
    """What a prompt has in quotes, in ByT5's tokens."""
    return {"conditioning_byt5small": 0.3 * randn((1, 6, 1472), seed + 60)}


def fill(seed: int, length: int) -> dict[str, Any]:
    return {"guidance": 3.5, "concat_latent_image": randn(PICTURE, 2), "concat_mask": torch.ones(1, 1, 56, 72)}


PICTURE, FRAME, PACKED = (1, 16, 7, 9), (1, 16, 1, 7, 9), (1, 128, 4, 5)  # odd sizes: 4 x 5 tokens

SD3 = dict(
    in_channels=16, out_channels=16, patch_size=2, input_size=None, depth=2, num_blocks=4, num_patches=256,
    pos_embed_max_size=16, pos_embed_scaling_factor=None, adm_in_channels=20, context_size=128, qk_norm="rms",
    rmsnorm=False,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
)  # fmt: skip
FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=20, context_in_dim=24,
    hidden_size=64, num_heads=2, mlp_ratio=4.0, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000,
    qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
FLUX2 = dict(
    image_model="flux2", in_channels=128, out_channels=128, patch_size=1, vec_in_dim=None, context_in_dim=24,
    hidden_size=64, num_heads=2, mlp_ratio=3.0, depth=2, depth_single_blocks=2, axes_dim=[8, 8, 8, 8], theta=2000,
    qkv_bias=False, guidance_embed=True, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False,
    default_ref_method="index", ref_index_scale=10.0,
)  # fmt: skip
CHROMA = dict(
    image_model="chroma", in_channels=64, out_channels=64, patch_size=2, context_in_dim=24, hidden_size=64,
    num_heads=2, mlp_ratio=4.0, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000, qkv_bias=True,
    in_dim=64, out_dim=64, hidden_dim=64, n_layers=1, vec_in_dim=None, txt_ids_dims=[],
)  # fmt: skip
RADIANCE = CHROMA | dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=4, nerf_hidden_size=16, nerf_mlp_ratio=2,
    nerf_depth=1, nerf_max_freqs=4, nerf_tile_size=512, nerf_final_head_type="conv",
    nerf_embedder_dtype=torch.float32, use_x0=False, use_sequential_txt_ids=False,
)  # fmt: skip
QWEN = dict(
    image_model="qwen_image", in_channels=64, out_channels=16, num_layers=3, attention_head_dim=32,
    num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
)  # fmt: skip
AURA = dict(
    cond_seq_dim=24, max_seq=256, n_double_layers=2, n_layers=4, in_channels=4, out_channels=4, patch_size=2, dim=64,
    n_heads=2,
)  # fmt: skip
HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=20, context_in_dim=24, hidden_size=64,
    mlp_ratio=4.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=256, patch_size=[1, 2, 2],
    qkv_bias=True, guidance_embed=True, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
    meanflow_sum=False,
)  # fmt: skip
HUNYUAN_15 = dict(
    in_channels=65, out_channels=32, patch_size=[1, 1, 1], vec_in_dim=None, use_cond_type_embedding=True,
    vision_in_dim=24, guidance_embed=False,
)  # fmt: skip
HUNYUAN_IMAGE = HUNYUAN | dict(in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[16, 16], vec_in_dim=None)
LENS = dict(
    image_model="lens", in_channels=128, out_channels=32, num_layers=3, attention_head_dim=32, num_attention_heads=2,
    enc_hidden_dim=12, axes_dims_rope=(8, 12, 12), multi_layer_encoder_feature=True, selected_layer_index=(0, 1),
)  # fmt: skip
MAGE = dict(
    image_model="mage_flow", in_channels=128, out_channels=128, num_layers=3, attention_head_dim=32,
    num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
)  # fmt: skip
JOY = dict(
    image_model="joyimage", in_channels=16, hidden_size=256, num_attention_heads=2, text_dim=24, num_layers=3
)  # fmt: skip
LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=96, cap_feat_dim=24, n_layers=3, n_refiner_layers=1,
    qk_norm=True, n_heads=3, n_kv_heads=3, axes_dims=[8, 12, 12], axes_lens=[300, 512, 512], rope_theta=10000.0,
    ffn_dim_multiplier=1.0,
)  # fmt: skip
Z_IMAGE = LUMINA | dict(
    dim=288, n_heads=9, n_kv_heads=9, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32
)
KREA2 = dict(
    image_model="krea2", features=64, tdim=16, txtdim=12, heads=2, kvheads=1, multiplier=2, layers=3, channels=16,
    txtlayers=2, txtheads=2, txtkvheads=2,
)  # fmt: skip
HIDREAM = dict(
    image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2,
    attention_head_dim=32, num_attention_heads=2, caption_channels=[24, 12], text_emb_dim=20, num_routed_experts=2,
    num_activated_experts=1, axes_dims_rope=(8, 12, 12), max_resolution=(32, 32), llama_layers=[0, 2, 1, 0],
)  # fmt: skip
OMNIGEN = dict(
    image_model="omnigen2", patch_size=2, in_channels=16, hidden_size=96, num_layers=3, num_refiner_layers=1,
    num_attention_heads=4, num_kv_heads=2, multiple_of=32, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64),
    text_feat_dim=24,
)  # fmt: skip
BOOGU = dict(
    image_model="boogu", patch_size=2, in_channels=16, hidden_size=96, num_layers=2, num_double_stream_layers=2,
    num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, multiple_of=32, axes_dim_rope=(8, 8, 8),
    axes_lens=(300, 64, 64), instruction_feat_dim=24,
)  # fmt: skip
IDEOGRAM = dict(
    image_model="ideogram4", in_channels=128, num_layers=3, num_attention_heads=2, attention_head_dim=32,
    intermediate_size=64, adaln_dim=16, llm_features_dim=24, mrope_section=[6, 5, 5],
)  # fmt: skip
ERNIE = dict(
    image_model="ernie", hidden_size=64, num_attention_heads=2, num_layers=3, ffn_hidden_size=64, in_channels=128,
    out_channels=128, patch_size=1, text_in_dim=24, rope_axes_dim=(8, 12, 12),
)  # fmt: skip
LTXV = dict(
    image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2,
    caption_channels=24, num_layers=3,
)  # fmt: skip
COSMOS = dict(
    image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16,
    patch_spatial=2, patch_temporal=1, concat_padding_mask=True, model_channels=64, num_blocks=3, num_heads=2,
    crossattn_emb_channels=24, pos_emb_cls="rope3d", pos_emb_interpolation="crop", use_adaln_lora=True,
    adaln_lora_dim=16,
)  # fmt: skip
KANDINSKY = dict(
    image_model="kandinsky5", in_visual_dim=16, out_visual_dim=16, in_text_dim=24, in_text_dim2=20, time_dim=32,
    model_dim=64, ff_dim=64, num_text_blocks=1, num_visual_blocks=3, axes_dims=(8, 12, 12),
)  # fmt: skip
WAN = dict(
    image_model="wan2.1", model_type="t2v", in_dim=16, dim=64, ffn_dim=64, freq_dim=32, text_dim=24, out_dim=16,
    num_heads=2, num_layers=3, cross_attn_norm=True,
)  # fmt: skip
ZIMAGE_PIXELS = Z_IMAGE | dict(
    image_model="zimage_pixel", in_channels=3, patch_size=4, decoder_hidden_size=32, decoder_num_res_blocks=1,
    decoder_max_freqs=4,
)  # fmt: skip
PIXELDIT = dict(
    image_model="pixeldit_t2i", num_groups=2, hidden_size=64, pixel_hidden_size=4, pixel_attn_hidden_size=32,
    pixel_num_groups=2, patch_depth=3, pixel_depth=1, patch_size=4, txt_embed_dim=24, txt_max_length=64,
)  # fmt: skip
PID = PIXELDIT | dict(
    image_model="pid", lq_latent_channels=16, lq_hidden_dim=16, lq_num_res_blocks=1, sr_scale=1,
    latent_spatial_down_factor=4,
)  # fmt: skip
COGVIDEO = dict(
    image_model="cogvideox", num_attention_heads=2, attention_head_dim=32, in_channels=16, out_channels=16,
    time_embed_dim=32, text_embed_dim=24, num_layers=3, use_rotary_positional_embeddings=True,
)  # fmt: skip
MINIMAX = dict(
    image_model="minimax_h3", hidden_size=64, num_layers=3, token_refiner_num_layers=1, num_attention_heads=2,
    attention_head_dim=32, ffn_hidden_size=64, latents_dim=32, audio_latents_dim=8, text_dim=24, timestep_input_dim=32,
    time_embed_hidden_size=32, time_embed_dim=32, rope_inv_freq_len=4,
)  # fmt: skip
LTX2 = dict(
    image_model="ltxav", in_channels=128, audio_in_channels=128, cross_attention_dim=64, audio_cross_attention_dim=64,
    attention_head_dim=32, audio_attention_head_dim=32, num_attention_heads=2, audio_num_attention_heads=2,
    caption_channels=24, num_layers=3, connector_num_layers=1, connector_num_attention_heads=1,
    connector_attention_head_dim=24,
)  # fmt: skip
MOCHI = dict(
    image_model="mochi_preview", depth=3, patch_size=2, num_heads=2, hidden_size_x=96, hidden_size_y=48,
    mlp_ratio_x=128.0, mlp_ratio_y=128.0, learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False,
    out_bias=True, attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True,
    attend_to_padding=False,
    timestep_scale=1000.0, use_t5=True, t5_feat_dim=24, t5_token_length=256, rope_theta=10000.0,
)  # fmt: skip


def anima(seed: int, length: int) -> dict[str, Any]:
    source = torch.Generator().manual_seed(seed)
    return {
        "t5xxl_ids": torch.randint(0, 32128, (length,), generator=source, dtype=torch.int32),
        "t5xxl_weights": torch.ones(length),
    }


def small_adapter(network: Any) -> None:
    sizes = dict(source_dim=24, target_dim=24, model_dim=32, num_layers=1, num_heads=2)
    network.llm_adapter = type(network.llm_adapter)(**sizes, operations=comfy.ops.disable_weight_init)


# One object, as one node gives it to several: FlowInvert's noise is for the very same one.
VISION = SimpleNamespace(penultimate_hidden_states=randn((1, 5, 1280), 4))


def start_image(seed: int, length: int) -> dict[str, Any]:
    return {
        "concat_latent_image": randn(FRAME, 2),
        "concat_mask": torch.ones(1, 1, 1, 7, 9),
        "clip_vision_output": VISION,
    }


def with_audio(seed: int, length: int) -> dict[str, Any]:
    return {"audio_embed": randn((1, 25, 16, 4), 6), "reference_latents": [randn((1, 16, 1, 8, 10), 2)]}


def with_speech(seed: int, length: int) -> dict[str, Any]:
    return {"audio_embed": randn((1, 1, 2, 1, 4), 6)}


def small_speech(network: Any) -> None:
    sizes = dict(seq_len=2, blocks=1, channels=4, intermediate_dim=16, output_dim=1536, context_tokens=16)
    network.audio_proj = type(network.audio_proj)(**sizes, operations=comfy.ops.disable_weight_init)


class _Motion(torch.nn.Module):
    """In the place of the networks that read a face, whose sizes are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(3, 64)

    def get_motion(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3]."""
        return pixels.mean((2, 3))

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        """[B, frames, tokens, channels]."""
        return self.out(motion)[:, :, None].expand(-1, -1, 2, -1)


def small_face(network: Any) -> None:
    network.motion_encoder = network.face_encoder = _Motion()


def with_face(seed: int, length: int) -> dict[str, Any]:
    return {**start_image(seed, length), "face_video_pixels": FACE}


def with_music(seed: int, length: int) -> dict[str, Any]:
    return {"audio_embed": MUSIC, "clip_vision_output": VISION, "clip_vision_output_ref": REFERENCE_VISION}


def with_pose(seed: int, length: int) -> dict[str, Any]:
    return {
        "clip_vision_output": VISION,
        "reference_latents": [randn(FRAME, 2)],
        "pose_video_latent": randn((1, 16, 1, 4, 5), 8),
    }


def with_masks(seed: int, length: int) -> dict[str, Any]:
    masks = {"ref_mask_28ch": randn((1, 2, 28, 7, 9), 9), "driving_mask_28ch": randn((1, 1, 28, 4, 5), 10)}
    return {**with_pose(seed, length), **masks}


def with_latent(seed: int, length: int) -> dict[str, Any]:
    return {"lq_latent": randn((1, 16, 4, 5), 11), "degrade_sigma": torch.tensor([0.3])}


def unlike(seed: int, length: int) -> dict[str, Any]:
    """A conditioning that ComfyUI puts into no batch with another one: its network takes one row."""
    return {"minimax_visual_cond_noise_aug": 0.9 + seed / 1000}


def placed(network: Any) -> None:
    """MiniMax H3's positions, which are read from its file."""
    network.rope.inv_freq.copy_(torch.tensor([1.0, 0.3, 0.1, 0.03]))


def silent(network: Any) -> None:
    """The video of a video and its sound, whose sound stays as it is."""
    placed(network)
    sampled, sound = network._forward, randn((1, 8, 2, 3), 12)
    network._forward = lambda x, *args, **kwargs: sampled([x[0], sound], *args, **kwargs)[0]


REFERENCE_VISION = SimpleNamespace(penultimate_hidden_states=randn((1, 3, 1280), 5))
FACE, MUSIC = randn((1, 3, 1, 8, 8), 6), randn((1, 6, 35), 6)
