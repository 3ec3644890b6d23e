"""More tokenizers and text models of ComfyUI's families, with sizes that make them small."""

from __future__ import annotations

import importlib
import json
from typing import Any

import comfy.ops
import tokenizers
import torch
from comfy.text_encoders.hunyuan_image import te

T5 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2}
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 1,
         "num_key_value_heads": 1}  # fmt: skip
# NewBie's two encoders read one entry of sizes, which has the fields that both have.
GEMMA_AND_JINA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8,
                  "vocab_size": 700}  # fmt: skip
GPT_OSS = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 2,
           "num_experts_per_tok": 1}  # fmt: skip


class SmallProjection(comfy.ops.manual_cast):
    """Operations that make LTX-2's projection of all layers of Gemma, of three gigabytes, a small one."""

    class Linear(comfy.ops.manual_cast.Linear):
        """A Linear for 5 layers of 16 channels where 49 of 3840 are said."""

        def __init__(self, inside: int, outside: int, *args: Any, **kwargs: Any):
            small = inside == 3840 * 49
            super().__init__(5 * 16 if small else inside, 16 if small else outside, *args, **kwargs)


class NoExperts(torch.nn.Module):
    """In the place of GPT-OSS's mixture of experts, whose weights exist only once a file is loaded."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing is added to a position, which stays its token's."""
        return torch.zeros_like(x)


# Family -> module, tokenizer, the function that makes its text model (its keyword arguments), options of the model.
MORE: dict[str, tuple[str, str, tuple[str, dict[str, Any]], dict[str, Any]]] = {
    "mochi": ("genmo", "MochiT5Tokenizer", ("mochi_te", {}), {"t5xxl_model_config": T5}),
    "ltxv": ("lt", "LTXVT5Tokenizer", ("ltxv_te", {}), {"t5xxl_model_config": T5}),
    "cosmos": ("cosmos", "CosmosT5Tokenizer", ("te", {}), {"t5xxl_model_config": T5}),
    "cogvideo": ("cogvideo", "CogVideoXTokenizer", ("cogvideo_te", {}), {"t5xxl_model_config": T5}),
    "wan": ("wan", "WanT5Tokenizer", ("te", {}), {"umt5xxl_model_config": {**T5, "vocab_size": 700}}),
    "newbie": ("newbie", "NewBieTokenizer", ("te", {}), {"_model_config": GEMMA_AND_JINA}),
    "ltx2": (
        "lt",
        "LTXAVGemmaTokenizer",
        ("ltxav_te", {"text_projection_type": "dual_linear"}),  # the other kind norms all positions together
        {"_model_config": {**LLAMA, "vocab_size": 700}, "custom_operations": SmallProjection},
    ),
    "hidream": (
        "hidream",
        "HiDreamTokenizer",
        ("hidream_clip", {}),
        {
            "clip_l_model_config": CLIP,
            "clip_g_model_config": CLIP,
            "t5xxl_model_config": T5,
            "llama_model_config": LLAMA,
        },
    ),
    "ernie": ("ernie", "ErnieTokenizer", ("te", {}), {"ministral3_3b_model_config": {**LLAMA, "vocab_size": 512}}),
    "boogu": ("boogu", "BooguTokenizer", ("te", {}), {"qwen3vl_8b_model_config": LLAMA}),
    "mage_flow": ("mage_flow", "MageFlowTokenizer", ("te", {}), {"qwen3vl_4b_model_config": LLAMA}),
    "joyimage": ("joyimage", "JoyImageTokenizer", ("te", {}), {"qwen3vl_8b_model_config": LLAMA}),
    "lens": (
        "gpt_oss",
        "LensTokenizer",
        ("lens_te", {}),
        {"gpt_oss_config": GPT_OSS, "selected_layers": (0, 1), "custom_operations": comfy.ops.manual_cast},
    ),
    "anima": ("anima", "AnimaTokenizer", ("te", {}), {"qwen3_06b_model_config": LLAMA}),
    "hunyuan_video_15": (
        "hunyuan_video",
        "HunyuanVideo15Tokenizer",
        ("hunyuan_image.te", {}),
        {"qwen25_7b_model_config": LLAMA, "_model_config": T5},
    ),
}


def more_rows() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Family -> tokenizer, text model, options of the model; without those that this ComfyUI lacks."""
    found = {}
    for family, (module, tokenizer, (name, given), options) in MORE.items():
        try:
            code = importlib.import_module(f"comfy.text_encoders.{module}")
        except ImportError:
            continue
        made = getattr(code, name, te)(**given)
        found[family] = getattr(code, tokenizer), made, json_copy(options)
    return found


def json_copy(options: dict[str, Any]) -> dict[str, Any]:
    """A copy whose dictionaries ComfyUI may write into."""
    return {name: json.loads(json.dumps(each)) if isinstance(each, dict) else each for name, each in options.items()}


def harmony(sentences: list[str]) -> torch.Tensor:
    """A small tokenizer of GPT-OSS's kind as the bytes that Lens's file holds: bytes, and the marks of a chat."""
    marks = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|endoftext|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=marks, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return torch.ByteTensor(list(tokenizer.to_str().encode()))
