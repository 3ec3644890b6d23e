"""Published configurations of the families of `nodes/comfyui/families.py`, as ComfyUI's networks take them.

Widths and depths only: no weights are needed to count parameters. Each row names its source. "ComfyUI" means
`comfy/model_detection.py`, which sets what a file does not say; "class" means the defaults of ComfyUI's network class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class Published(NamedTuple):
    """One model. Fields: kind, its class in comfy.supported_models; config, of its network; source.

    pooled, True if its vector holds a prompt's pooled text, so that each prompt has rows of its own; modulation,
    patterns of its modulation layers where its family has no table.
    """

    kind: str
    config: Mapping[str, Any]
    source: str
    pooled: bool = False
    modulation: tuple[str, ...] = ()


SD3 = dict(
    in_channels=16, out_channels=16, patch_size=2, input_size=None, depth=24, num_blocks=24, pos_embed_max_size=192,
    num_patches=192**2, pos_embed_scaling_factor=None, adm_in_channels=2048, context_size=4096, qk_norm=None,
    rmsnorm=False,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
)  # fmt: skip
SD35_MEDIUM = SD3 | dict(
    qk_norm="rms", pos_embed_max_size=384, num_patches=384**2, x_block_self_attn_layers=list(range(13))
)
SD35_LARGE = SD3 | dict(
    qk_norm="rms", depth=38, num_blocks=38,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}},
)  # fmt: skip
FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096,
    hidden_size=3072, num_heads=24, mlp_ratio=4.0, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56],
    theta=10000, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
PLAIN_FLUX = FLUX | dict(vec_in_dim=None, guidance_embed=False, txt_ids_dims=[1, 2])
FLUX2 = dict(
    image_model="flux2", in_channels=128, out_channels=128, patch_size=1, vec_in_dim=None, context_in_dim=15360,
    hidden_size=6144, num_heads=48, mlp_ratio=3.0, depth=8, depth_single_blocks=48, axes_dim=[32] * 4, theta=2000,
    qkv_bias=False, guidance_embed=True, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False,
    default_ref_method="index", ref_index_scale=10.0,
)  # fmt: skip
KLEIN = FLUX2 | dict(guidance_embed=False)
FLUX2_MODULATION = (
    *("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"),
    "final_layer.adaLN_modulation",
)
CHROMA = FLUX | dict(
    image_model="chroma", in_channels=64, out_channels=64, vec_in_dim=None, in_dim=64, out_dim=3072, hidden_dim=5120,
    n_layers=5,
)  # fmt: skip
del CHROMA["guidance_embed"]
RADIANCE = CHROMA | dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=16, nerf_hidden_size=64, nerf_mlp_ratio=4,
    nerf_depth=4, nerf_max_freqs=8, nerf_tile_size=512, nerf_final_head_type="conv",
    nerf_embedder_dtype=torch.float32, use_x0=False, use_sequential_txt_ids=False,
)  # fmt: skip
APPROXIMATOR = ("distilled_guidance_layer.*",)  # one network makes the modulation of all blocks
HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096,
    hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=20, depth_single_blocks=40, axes_dim=[16, 56, 56], theta=256,
    patch_size=[1, 2, 2], qkv_bias=True, guidance_embed=True, byt5=False, meanflow=False,
    use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
)  # fmt: skip
HUNYUAN_15 = HUNYUAN | dict(
    in_channels=65, out_channels=32, patch_size=[1, 1, 1], vec_in_dim=None, context_in_dim=3584, hidden_size=2048,
    num_heads=16, depth=54, depth_single_blocks=0, guidance_embed=False, byt5=True, use_cond_type_embedding=True,
    vision_in_dim=1152, meanflow_sum=True,
)  # fmt: skip
HUNYUAN_IMAGE = HUNYUAN | dict(
    in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[64, 64], vec_in_dim=None, context_in_dim=3584,
    hidden_size=3584, num_heads=28, guidance_embed=False, byt5=True,
)  # fmt: skip
LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=2304, cap_feat_dim=2304, n_layers=26, n_refiner_layers=2,
    qk_norm=True, n_heads=24, n_kv_heads=8, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0,
    ffn_dim_multiplier=4.0,
)  # fmt: skip
NEWBIE = LUMINA | dict(cap_feat_dim=2560, n_layers=36, clip_text_dim=1024)
Z_IMAGE = LUMINA | dict(
    dim=3840, cap_feat_dim=2560, n_layers=30, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48], rope_theta=256.0,
    ffn_dim_multiplier=8 / 3, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
)  # fmt: skip
NEXTDIT_MODULATION = ("*.adaLN_modulation",)
JOY = dict(
    image_model="joyimage", in_channels=16, hidden_size=4096, num_attention_heads=32, text_dim=4096, num_layers=40
)
HIDREAM = dict(
    image_model="hidream", attention_head_dim=128, axes_dims_rope=[64, 32, 32], caption_channels=[4096, 4096],
    max_resolution=[128, 128], in_channels=16, llama_layers=[*range(32), *[31] * 16], num_attention_heads=20,
    num_routed_experts=4, num_activated_experts=2, num_layers=16, num_single_layers=32, out_channels=16, patch_size=2,
    text_emb_dim=2048,
)  # fmt: skip
OMNIGEN = dict(
    image_model="omnigen2", axes_dim_rope=[40, 40, 40], axes_lens=[1024, 1664, 1664], ffn_dim_multiplier=None,
    hidden_size=2520, in_channels=16, multiple_of=256, norm_eps=1e-5, num_attention_heads=21, num_kv_heads=7,
    num_layers=32, num_refiner_layers=2, out_channels=None, patch_size=2, text_feat_dim=2048, timestep_scale=1000.0,
)  # fmt: skip
OMNIGEN_MODULATION = ("noise_refiner.*.norm1", "ref_image_refiner.*.norm1", "norm_out.linear_1")
LTX_MODULATION = ("*adaln_single.linear",)
LTX_13B = dict(image_model="ltxv", num_layers=48, attention_head_dim=128, cross_attention_dim=4096)
MOCHI = dict(
    image_model="mochi_preview", depth=48, patch_size=2, num_heads=24, hidden_size_x=3072, hidden_size_y=1536,
    mlp_ratio_x=4.0, mlp_ratio_y=4.0, learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True,
    attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True, attend_to_padding=False,
    timestep_scale=1000.0, use_t5=True, t5_feat_dim=4096, t5_token_length=256, rope_theta=10000.0,
)  # fmt: skip
COSMOS = dict(
    image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16,
    patch_spatial=2, patch_temporal=1, concat_padding_mask=True, model_channels=2048, num_blocks=28, num_heads=16,
    crossattn_emb_channels=1024, pos_emb_cls="rope3d", pos_emb_interpolation="crop", use_adaln_lora=True,
    adaln_lora_dim=256,
)  # fmt: skip
COSMOS_14B = COSMOS | dict(model_channels=5120, num_blocks=36, num_heads=40)
COSMOS_MODULATION = ("blocks.*.adaln_modulation_*.[12]", "final_layer.adaln_modulation.[12]")  # two layers in a row
KANDINSKY = dict(
    image_model="kandinsky5", time_dim=512, model_dim=1792, ff_dim=7168, visual_embed_dim=132, num_text_blocks=2,
    num_visual_blocks=32,
)  # fmt: skip
KANDINSKY_IMAGE = KANDINSKY | dict(model_dim=2560, ff_dim=10240, visual_embed_dim=64, num_visual_blocks=50)
KANDINSKY_PRO = KANDINSKY | dict(time_dim=1024, model_dim=4096, ff_dim=16384, num_text_blocks=4, num_visual_blocks=60)
KANDINSKY_MODULATION = ("*_transformer_blocks.*.*_modulation", "out_layer.modulation")
WAN = dict(
    image_model="wan2.1", model_type="t2v", in_dim=16, dim=5120, ffn_dim=13824, freq_dim=256, text_dim=4096,
    out_dim=16, num_heads=40, num_layers=40, cross_attn_norm=True,
)  # fmt: skip
WAN_SMALL = WAN | dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_5B = WAN | dict(in_dim=48, out_dim=48, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30)
WAN_MODULATION = ("time_projection.1",)

CONVERT = "diffusers, scripts/convert_"
PUBLISHED: dict[str, Published] = {
    "Qwen-Image": Published("QwenImage", dict(image_model="qwen_image"), "class; 60 blocks, arXiv 2508.02324"),
    "FLUX.1 dev": Published("Flux", FLUX, "black-forest-labs/flux, util.py", True),
    "FLUX.1 schnell": Published(
        "FluxSchnell", FLUX | dict(guidance_embed=False), "black-forest-labs/flux, util.py", True
    ),
    "SD3 Medium": Published("SD3", SD3, "KNOWN_MODELS in mmdit_core/config.py", True),
    "SD3.5 Medium": Published("SD3", SD35_MEDIUM, "KNOWN_MODELS in mmdit_core/config.py", True),
    "SD3.5 Large": Published("SD3", SD35_LARGE, "KNOWN_MODELS in mmdit_core/config.py", True),
    "HunyuanImage 2.1": Published("HunyuanImage21", HUNYUAN_IMAGE, CONVERT + "hunyuan_image_to_diffusers.py"),
    "HunyuanImage 2.1 distilled": Published(
        "HunyuanImage21",
        HUNYUAN_IMAGE | dict(guidance_embed=True, meanflow=True),
        CONVERT + "hunyuan_image_to_diffusers.py",
    ),
    "LongCat-Image": Published(
        "LongCatImage",
        PLAIN_FLUX | dict(context_in_dim=3584, depth=10, depth_single_blocks=20),
        "6B, arXiv 2512.07584; 10 + 20 blocks in its file",
    ),
    "Ovis-Image": Published(
        "FluxSchnell",
        PLAIN_FLUX | dict(context_in_dim=2048, yak_mlp=True, txt_norm=True, depth=6, depth_single_blocks=27),
        CONVERT + "ovis_image_to_diffusers.py",
    ),
    "AuraFlow": Published(
        "AuraFlow",
        dict(max_seq=4096, cond_seq_dim=2048, n_double_layers=4, n_layers=36),
        "class; positions for 1024 x 1024 (version 0.3 has 15.7 M more)",
    ),
    "MageFlow": Published("MageFlow", dict(image_model="mage_flow"), "class"),
    "Lens": Published("Lens", dict(image_model="lens"), "class"),
    "HunyuanVideo": Published("HunyuanVideo", HUNYUAN, "ComfyUI", True),
    "HunyuanVideo 1.5": Published("HunyuanVideo15", HUNYUAN_15, "diffusers, HunyuanVideo15Transformer3DModel"),
    "Lumina2": Published("Lumina2", LUMINA, "ComfyUI", modulation=NEXTDIT_MODULATION),
    "NewBie": Published(
        "Lumina2", NEWBIE, "NewBieAI-Lab/NewBie-image-Exp0.1, models/model.py", True, NEXTDIT_MODULATION
    ),
    "HiDream-I1": Published("HiDream", HIDREAM, "ComfyUI", True, NEXTDIT_MODULATION),
    "OmniGen2": Published("Omnigen2", OMNIGEN, "ComfyUI", modulation=(*OMNIGEN_MODULATION, "layers.*.norm1")),
    "Boogu": Published(
        "Boogu", dict(image_model="boogu"), "class", modulation=(*OMNIGEN_MODULATION, "*_stream_layers.*norm[123]")
    ),
    "Mochi": Published("GenmoMochi", MOCHI, "ComfyUI", True, ("blocks.*.mod_[xy]", "final_layer.mod")),
    "Kandinsky 5 Lite video": Published(
        "Kandinsky5", KANDINSKY, "kandinskylab/kandinsky-5, k5_lite_t2v_5s_sft_sd.yaml", True, KANDINSKY_MODULATION
    ),
    "Kandinsky 5 Lite image": Published(
        "Kandinsky5Image",
        KANDINSKY_IMAGE,
        "kandinskylab/kandinsky-5, k5_lite_t2i_sft_hd.yaml",
        True,
        KANDINSKY_MODULATION,
    ),
    "Kandinsky 5 Pro video": Published(
        "Kandinsky5", KANDINSKY_PRO, "kandinskylab/kandinsky-5, k5_pro_t2v_5s_sft_hd.yaml", True, KANDINSKY_MODULATION
    ),
    "Anima": Published(
        "Anima", COSMOS | dict(image_model="anima"), "ComfyUI; 28 blocks of 2048", modulation=COSMOS_MODULATION
    ),
    "Cosmos-Predict2 2B": Published(
        "CosmosT2IPredict2", COSMOS, CONVERT + "cosmos_to_diffusers.py", modulation=COSMOS_MODULATION
    ),
    "Cosmos-Predict2 14B": Published(
        "CosmosT2IPredict2", COSMOS_14B, CONVERT + "cosmos_to_diffusers.py", modulation=COSMOS_MODULATION
    ),
    "FLUX.2 dev": Published("Flux2", FLUX2, CONVERT + "flux2_to_diffusers.py", modulation=FLUX2_MODULATION),
    "FLUX.2 klein 9B": Published(
        "Flux2",
        KLEIN | dict(hidden_size=4096, num_heads=32, context_in_dim=12288, depth_single_blocks=24),
        CONVERT + "flux2_to_diffusers.py",
        modulation=FLUX2_MODULATION,
    ),
    "FLUX.2 klein 4B": Published(
        "Flux2",
        KLEIN | dict(hidden_size=3072, num_heads=24, context_in_dim=7680, depth=5, depth_single_blocks=20),
        CONVERT + "flux2_to_diffusers.py",
        modulation=FLUX2_MODULATION,
    ),
    "Ideogram 4": Published(
        "Ideogram4",
        dict(image_model="ideogram4"),
        "class; diffusers, Ideogram4Transformer2DModel",
        modulation=("layers.*.adaln_modulation", "final_layer.adaln_modulation"),
    ),
    "PixelDiT": Published("PixelDiTT2I", dict(image_model="pixeldit_t2i"), "class; the released 1024 px model"),
    "CogVideoX 2B": Published(
        "CogVideoX_T2V", dict(image_model="cogvideox"), "class; diffusers, CogVideoXTransformer3DModel"
    ),
    "Chroma": Published("Chroma", CHROMA, "ComfyUI", modulation=APPROXIMATOR),
    "Chroma Radiance": Published("ChromaRadiance", RADIANCE, "ComfyUI", modulation=APPROXIMATOR),
    "Z-Image": Published("ZImage", Z_IMAGE, "ComfyUI; 30 blocks, arXiv 2511.22699", modulation=NEXTDIT_MODULATION),
    "Krea 2": Published(
        "Krea2", dict(image_model="krea2"), "class; diffusers, Krea2Transformer2DModel", modulation=("tproj",)
    ),
    "ERNIE-Image": Published(
        "ErnieImage", dict(image_model="ernie"), "class", modulation=("adaLN_modulation", "final_norm")
    ),
    "JoyImage": Published(
        "JoyImage", JOY, CONVERT + "joyimage_edit_to_diffusers.py", modulation=("condition_embedder.time_proj",)
    ),
    "LTX-Video 2B": Published("LTXV", dict(image_model="ltxv"), "class", modulation=LTX_MODULATION),
    "LTX-Video 13B": Published("LTXV", LTX_13B, "ComfyUI; 48 blocks of 4096", modulation=LTX_MODULATION),
    "LTX-2": Published("LTXAV", dict(image_model="ltxav"), CONVERT + "ltx2_to_diffusers.py", modulation=LTX_MODULATION),
    "Wan 2.1 1.3B": Published("WAN21_T2V", WAN_SMALL, CONVERT + "wan_to_diffusers.py", modulation=WAN_MODULATION),
    "Wan 2.1, 2.2 14B": Published("WAN21_T2V", WAN, CONVERT + "wan_to_diffusers.py", modulation=WAN_MODULATION),
    "Wan 2.2 5B": Published("WAN22_T2V", WAN_5B, CONVERT + "wan_to_diffusers.py", modulation=WAN_MODULATION),
    "Wan 2.2 Camera 14B": Published(
        "WAN22_Camera",
        WAN | dict(model_type="camera_2.2", in_dim=36),
        CONVERT + "wan_to_diffusers.py, with ComfyUI's camera adapter",
        modulation=WAN_MODULATION,
    ),
}
