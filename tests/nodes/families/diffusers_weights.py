"""Weights of diffusers' models in ComfyUI's layout: renaming rules, for what ComfyUI has no converter for.

A rule is (diffusers' beginning of a name, ComfyUI's). "#" is a number. "@1" in ComfyUI's name is part 1 of a fused
tensor; "~" swaps its halves, scale and shift; "!" flattens it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """A state in ComfyUI's names. A name that no rule begins stays."""
    compiled = [("^" + re.escape(old).replace(r"\#", r"(\d+)"), new) for old, new in rules]
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        for old, new in compiled:
            if found := re.match(old, key):
                for number in found.groups():
                    new = new.replace("#", number, 1)
                key = new + key[found.end() :]
                break
        if "~" in key:
            key, value = key.replace("~", ""), torch.cat(value.chunk(2)[::-1])
        if "!" in key:
            key, value = key.replace("!", ""), value.flatten()
        index = re.search(r"@(\d)", key)
        parts[re.sub(r"@\d", "", key)][int(index[1]) if index else 0] = value
    return {key: torch.cat([part[index] for index in sorted(part)]) for key, part in parts.items()}


def _mapped(before: str, after: str, names: Iterable[tuple[str, str]]) -> Rules:
    return tuple((before + old, after + new) for old, new in names)


_JOINT = _mapped(
    "transformer_blocks.#.",
    "double_blocks.#.",
    (
        ("attn.to_q", "img_attn.qkv@0"),
        ("attn.to_k", "img_attn.qkv@1"),
        ("attn.to_v", "img_attn.qkv@2"),
        ("attn.add_q_proj", "txt_attn.qkv@0"),
        ("attn.add_k_proj", "txt_attn.qkv@1"),
        ("attn.add_v_proj", "txt_attn.qkv@2"),
        ("attn.to_out.0", "img_attn.proj"),
        ("attn.to_add_out", "txt_attn.proj"),
        ("attn.norm_q", "img_attn.norm.query_norm"),
        ("attn.norm_k", "img_attn.norm.key_norm"),
        ("attn.norm_added_q", "txt_attn.norm.query_norm"),
        ("attn.norm_added_k", "txt_attn.norm.key_norm"),
        ("norm1.linear", "img_mod.lin"),
        ("norm1_context.linear", "txt_mod.lin"),
        ("ff.net.0.proj", "img_mlp.0"),
        ("ff.net.2", "img_mlp.2"),
        ("ff.linear_in", "img_mlp.0"),
        ("ff.linear_out", "img_mlp.2"),
        ("ff_context.net.0.proj", "txt_mlp.0"),
        ("ff_context.net.2", "txt_mlp.2"),
        ("ff_context.linear_in", "txt_mlp.0"),
        ("ff_context.linear_out", "txt_mlp.2"),
    ),
)
_SINGLE = _mapped(
    "single_transformer_blocks.#.",
    "single_blocks.#.",
    (
        ("attn.to_qkv_mlp_proj", "linear1"),
        ("attn.to_q", "linear1@0"),
        ("attn.to_k", "linear1@1"),
        ("attn.to_v", "linear1@2"),
        ("proj_mlp", "linear1@3"),
        ("attn.to_out", "linear2"),
        ("proj_out", "linear2"),
        ("attn.norm_q", "norm.query_norm"),
        ("attn.norm_k", "norm.key_norm"),
        ("norm.linear", "modulation.lin"),
    ),
)


def _embedders(name: str) -> Rules:
    """Embedders of the time, the guidance and the pooled text, two linear layers each."""
    kinds = (("timestep", "time_in"), ("guidance", "guidance_in"), ("text", "vector_in"))
    return tuple(
        (f"{name}.{old}_embedder.linear_{number}", f"{new}.{layer}")
        for old, new in kinds
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    )


FLUX: Rules = (
    *_JOINT,
    *_SINGLE,
    *_embedders("time_text_embed"),
    *_embedders("time_guidance_embed"),
    *_embedders("time_embed"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1~"),
    ("proj_out", "final_layer.linear"),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("distilled_guidance_layer.layers.#.linear_1", "distilled_guidance_layer.layers.#.in_layer"),
    ("distilled_guidance_layer.layers.#.linear_2", "distilled_guidance_layer.layers.#.out_layer"),
)
_CONTEXT = "context_embedder."
_REFINER = "context_embedder.token_refiner.refiner_blocks.#."
_REFINED = "txt_in.individual_token_refiner.blocks.#."
HUNYUAN: Rules = (
    *(
        (f"{_CONTEXT}time_text_embed.{old}_embedder.linear_{number}", f"txt_in.{new}_embedder.{layer}")
        for old, new in (("timestep", "t"), ("text", "c"))
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
    (f"{_CONTEXT}proj_in", "txt_in.input_embedder"),
    *_mapped(
        _REFINER,
        _REFINED,
        (
            ("attn.to_q", "self_attn.qkv@0"),
            ("attn.to_k", "self_attn.qkv@1"),
            ("attn.to_v", "self_attn.qkv@2"),
            ("attn.to_out.0", "self_attn.proj"),
            ("ff.net.0.proj", "mlp.0"),
            ("ff.net.2", "mlp.2"),
            ("norm_out.linear", "adaLN_modulation.1"),
            ("norm1", "norm1"),
            ("norm2", "norm2"),
        ),
    ),
    *FLUX,
)
LUMINA: Rules = (
    *(
        rule
        for stack in ("noise_refiner", "context_refiner", "layers")
        for rule in _mapped(
            f"{stack}.#.",
            f"{stack}.#.",
            (
                ("attn.to_q", "attention.qkv@0"),
                ("attn.to_k", "attention.qkv@1"),
                ("attn.to_v", "attention.qkv@2"),
                ("attn.to_out.0", "attention.out"),
                ("attn.norm_q", "attention.q_norm"),
                ("attn.norm_k", "attention.k_norm"),
                ("feed_forward.linear_1", "feed_forward.w1"),
                ("feed_forward.linear_2", "feed_forward.w2"),
                ("feed_forward.linear_3", "feed_forward.w3"),
                ("norm1.linear", "adaLN_modulation.1"),
                ("norm1.norm", "attention_norm1"),
                ("norm1", "attention_norm1"),
                ("norm2", "attention_norm2"),
            ),
        )
    ),
    ("time_caption_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_caption_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_caption_embed.caption_embedder", "cap_embedder"),
    ("norm_out.linear_1", "final_layer.adaLN_modulation.1"),
    ("norm_out.linear_2", "final_layer.linear"),
)
LTX: Rules = (
    ("proj_in", "patchify_proj"),
    ("time_embed", "adaln_single"),
    *_mapped(
        "transformer_blocks.#.",
        "transformer_blocks.#.",
        (
            ("attn1.norm_q", "attn1.q_norm"),
            ("attn1.norm_k", "attn1.k_norm"),
            ("attn2.norm_q", "attn2.q_norm"),
            ("attn2.norm_k", "attn2.k_norm"),
        ),
    ),
)
_KREA_BLOCK = (
    ("attn.to_q", "attn.wq"),
    ("attn.to_k", "attn.wk"),
    ("attn.to_v", "attn.wv"),
    ("attn.to_gate", "attn.gate"),
    ("attn.to_out.0", "attn.wo"),
    ("attn.norm_q.weight", "attn.qknorm.qnorm.scale"),
    ("attn.norm_k.weight", "attn.qknorm.knorm.scale"),
    ("norm1.weight", "prenorm.scale"),
    ("norm2.weight", "postnorm.scale"),
    ("scale_shift_table", "mod.lin!"),
    ("ff", "mlp"),
)
KREA: Rules = (
    *_mapped("transformer_blocks.#.", "blocks.#.", _KREA_BLOCK),
    *_mapped("text_fusion.layerwise_blocks.#.", "txtfusion.layerwise_blocks.#.", _KREA_BLOCK),
    *_mapped("text_fusion.refiner_blocks.#.", "txtfusion.refiner_blocks.#.", _KREA_BLOCK),
    ("text_fusion.projector", "txtfusion.projector"),
    ("img_in", "first"),
    ("time_embed.linear_1", "tmlp.0"),
    ("time_embed.linear_2", "tmlp.2"),
    ("time_mod_proj", "tproj.1"),
    ("txt_in.norm.weight", "txtmlp.0.scale"),
    ("txt_in.linear_1", "txtmlp.1"),
    ("txt_in.linear_2", "txtmlp.3"),
    ("final_layer.norm.weight", "last.norm.scale"),
    ("final_layer.linear", "last.linear"),
    ("final_layer.scale_shift_table", "last.modulation.lin"),
)
