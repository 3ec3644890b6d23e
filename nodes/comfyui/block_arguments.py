"""What the parameters of the blocks' `forward` are to a block hook, in order, for networks that call no hooks.

And whole rows of the table of families that need nothing else of it.
"""

from __future__ import annotations

from typing import Any

OPTIONS = "transformer_options"
BEFORE_TEXT = "before"  # argument of a block hook: the tokens of an image that come before those of the text
QWEN_ARGUMENTS = {
    "hidden_states": "img",
    "encoder_hidden_states": "txt",
    "encoder_hidden_states_mask": "attn_mask",
    "temb": "vec",
    "image_rotary_emb": "pe",
    "timestep_zero_index": "timestep_zero_index",
    OPTIONS: OPTIONS,
}
NEXTDIT_ARGUMENTS = {
    "x": "img",
    "x_mask": "attn_mask",
    "freqs_cis": "pe",
    "adaln_input": "vec",
    "timestep_zero_index": "timestep_zero_index",
    OPTIONS: OPTIONS,
}
KREA2_ARGUMENTS = {
    "x": "img",
    "vec": "vec",
    "freqs": "pe",
    "mask": "attn_mask",
    "timestep_zero_index": "timestep_zero_index",
    OPTIONS: OPTIONS,
}
HIDREAM_ARGUMENTS = {
    "image_tokens": "img",
    "image_tokens_masks": "attn_mask",
    "text_tokens": "txt",
    "adaln_input": "vec",
    "rope": "pe",
    OPTIONS: OPTIONS,
}
OMNIGEN_ARGUMENTS = {
    "hidden_states": "img",
    "attention_mask": "attn_mask",
    "image_rotary_emb": "pe",
    "temb": "vec",
    OPTIONS: OPTIONS,
}
BOOGU_ARGUMENTS = {
    "img_hidden_states": "img",
    "instruct_hidden_states": "txt",
    "joint_rotary_emb": "pe",
    "img_rotary_emb": "img_pe",
    "temb": "vec",
    OPTIONS: OPTIONS,
}
IDEOGRAM_ARGUMENTS = {
    "x": "img",
    "attn_mask": "attn_mask",
    "freqs_cis": "pe",
    "adaln_input": "vec",
    OPTIONS: OPTIONS,
}

ADALN_MODULATION = ("*.adaLN_modulation",)  # of all blocks, refiners and the last layer
# Of FLUX's blocks, which HunyuanVideo has too.
FLUX_MODULATION = (
    "double_blocks.*.img_mod",
    "double_blocks.*.txt_mod",
    "single_blocks.*.modulation",
    "final_layer.adaLN_modulation",
)
QWEN_MODULATION = ("transformer_blocks.*.img_mod", "transformer_blocks.*.txt_mod", "norm_out")

WAN_NETWORKS = {  # label -> module and class of the network, models
    "Wan 2.1, 2.2": ("model.WanModel", "WAN21_T2V WAN21_I2V WAN21_FunControl2V WAN22_T2V"),
    "Wan Camera": ("model.CameraWanModel", "WAN21_Camera WAN22_Camera"),
    "Wan S2V": ("model.WanModel_S2V", "WAN22_S2V"),
    "Wan HuMo": ("model.HumoWanModel", "WAN21_HuMo"),
    "Wan Animate": ("model_animate.AnimateWanModel", "WAN22_Animate"),
    "WanDancer": ("model_wandancer.WanDancerModel", "WAN22_WanDancer"),
    "SCAIL": ("model.SCAILWanModel", "WAN21_SCAIL"),
    "SCAIL 2": ("model.SCAIL2WanModel", "WAN21_SCAIL2"),
}
MORE_ROWS: tuple[dict[str, Any], ...] = (
    dict(
        label="PixelDiT",
        models=("PixelDiTT2I", "PiD"),
        networks=("comfy.ldm.pixeldit.model.PixDiT_T2I", "comfy.ldm.pixeldit.pid.PidNet"),
        double="patch_blocks",  # the blocks that make pixels of their image read no text
        sections=("joint",),
        width=lambda core: core.txt_embed_dim,
        hooks=False,
        arguments={
            "x": "img",
            "y": "txt",
            "c": "vec",
            "pos_img": "pe",
            "pos_txt": "txt_pe",
            "attn_mask": "attn_mask",
            OPTIONS: OPTIONS,
        },
        returns=("img", "txt"),
        modulation=("patch_blocks.*.adaLN_modulation_img", "patch_blocks.*.adaLN_modulation_txt"),
    ),
    dict(
        label="CogVideoX",
        models=("CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint"),
        networks=("comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel",),
        double="blocks",
        sections=("joint",),
        width=lambda core: core.patch_embed.text_proj.in_features,
        hooks=False,
        arguments={
            "hidden_states": "img",
            "encoder_hidden_states": "txt",
            "temb": "vec",
            "image_rotary_emb": "pe",
            OPTIONS: OPTIONS,
        },
        returns=("img", "txt"),
        modulation=("blocks.*.norm?",),
    ),
    dict(
        label="MiniMax H3",
        models=("MiniMaxH3",),
        networks=("comfy.ldm.minimax.model.MiniMaxH3Model",),
        double="blocks",
        width=lambda core: core.condition_proj.in_features,
        only_skip="its blocks are given text, sound and video as one sequence, without saying where the text ends",
    ),
)
