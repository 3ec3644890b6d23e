"""What the parameters of the blocks' `forward` are to a block hook, in order, for networks that call no hooks."""

from __future__ import annotations

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
