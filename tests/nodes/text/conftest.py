"""ComfyUI's CLIPs of many model families: their real tokenizers and text models, small and with random weights."""

from __future__ import annotations

import importlib
import io
from functools import lru_cache

import comfy.sd
import comfy.supported_models_base
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from comfy import sdxl_clip
from comfy.text_encoders import (
    aura_t5,
    flux,
    hunyuan_image,
    hunyuan_video,
    ideogram4,
    kandinsky5,
    llama,
    longcat_image,
    lumina2,
    omnigen2,
    ovis,
    pixart_t5,
    qwen_image,
    qwen_vl,
    sd3_clip,
    z_image,
)

from tests.nodes.text.clips import NoExperts, harmony, more_rows

try:
    krea2, qwen3vl = (importlib.import_module(f"comfy.text_encoders.{name}") for name in ("krea2", "qwen3vl"))
except ImportError:  # in ComfyUI 0.24.0
    krea2 = qwen3vl = None

CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 3}
T5_OF_SD3 = {**T5, "d_model": 4096, "num_layers": 1}  # joined with the CLIPs at 4096 channels
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 1,
         "num_key_value_heads": 1}  # fmt: skip
GEMMA = {**LLAMA, "vocab_size": 700}
SENTENCES = [
    f"a photo of a {colour} circle and one {colour} star in the sky, large"
    for colour in ("red", "blue", "green")
    for _ in range(20)
]  # fmt: skip


class Vision(torch.nn.Module):
    """A vision tower that gives as many embeddings as the real one: one for each 2 x 2 patches."""

    def __init__(self, *args, hidden_size: int = 16, deepstack: bool = False, **kwargs):
        super().__init__()
        self.deepstack = deepstack

    def forward(self, image, grid):
        merged = torch.ones(int(grid.prod(-1).sum()) // 4, 16)
        return (merged, [merged]) if self.deepstack else merged


@lru_cache(maxsize=1)
def spiece() -> torch.Tensor:
    """A small SentencePiece model with Gemma's first four pieces, byte fallback and the ids of its special tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=model, vocab_size=600, byte_fallback=True, pad_id=0,
        eos_id=1, bos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2,
        user_defined_symbols=["\u2581red", "\u2581blue"],
    )  # fmt: skip
    return torch.ByteTensor(list(model.getvalue()))


def tekken(data) -> dict:
    """A small tokenizer of Mistral's kind: bytes, special tokens first."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{n}>" for n in range(5, 11)), "<pad>"]
    special += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return {"tokenizer_object": tokenizer, "legacy": False}


class Families:
    """CLIPs by the name of their family, each built once."""

    ROWS = {
        "sd3": (sd3_clip.SD3Tokenizer, sd3_clip.SD3ClipModel, {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": T5_OF_SD3}),
        "sdxl": (sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel, {"clip_l": CLIP, "clip_g": CLIP}),
        "flux": (flux.FluxTokenizer, flux.FluxClipModel, {"clip_l": CLIP, "t5xxl": T5}),
        "chroma": (pixart_t5.PixArtTokenizer, pixart_t5.PixArtT5XXL, {"t5xxl": T5}),
        "aura": (aura_t5.AuraT5Tokenizer, aura_t5.AuraT5Model, {"pile_t5xl": T5}),
        "qwen": (qwen_image.QwenImageTokenizer, qwen_image.QwenImageTEModel, {"qwen25_7b": LLAMA}),
        "z_image": (z_image.ZImageTokenizer, z_image.ZImageTEModel, {"qwen3_4b": LLAMA}),
        "flux2": (flux.Flux2Tokenizer, flux.Flux2TEModel,
                  {"mistral3_24b": {**LLAMA, "num_hidden_layers": 31, "vocab_size": 512}}),
        "klein": (flux.KleinTokenizer, flux.klein_te(), {"qwen3_4b": {**LLAMA, "num_hidden_layers": 28}}),
        "lumina2": (lumina2.LuminaTokenizer, lumina2.te(), {"gemma2_2b": GEMMA}),
        "hunyuan_video": (hunyuan_video.HunyuanVideoTokenizer, hunyuan_video.HunyuanVideoClipModel,
                          {"clip_l": CLIP, "llama": LLAMA}),
        "hunyuan_image": (hunyuan_image.HunyuanImageTokenizer, hunyuan_image.HunyuanImageTEModel,
                          {"qwen25_7b": LLAMA, "": {**T5, "num_layers": 1}}),
        "kandinsky5": (kandinsky5.Kandinsky5Tokenizer, kandinsky5.Kandinsky5TEModel,
                       {"qwen25_7b": LLAMA, "clip_l": CLIP}),
        "longcat": (longcat_image.LongCatImageTokenizer, longcat_image.LongCatImageTEModel, {"qwen25_7b": LLAMA}),
        "ovis": (ovis.OvisTokenizer, ovis.OvisTEModel, {"qwen3_2b": LLAMA}),
        "ideogram4": (ideogram4.Ideogram4Tokenizer, ideogram4.Ideogram4TEModel,
                      {"qwen3vl_8b": {**LLAMA, "num_hidden_layers": 36}}),
        "omnigen2": (omnigen2.Omnigen2Tokenizer, omnigen2.Omnigen2Model, {"qwen25_3b": LLAMA}),
    }  # fmt: skip
    if krea2:
        ROWS["krea2"] = krea2.Krea2Tokenizer, krea2.Krea2TEModel, {"qwen3vl_4b": {**LLAMA, "num_hidden_layers": 36}}
    MORE = more_rows()

    def __init__(self):
        self.made: dict[str, comfy.sd.CLIP] = {}

    def __call__(self, name: str) -> comfy.sd.CLIP:
        if name not in self.made:
            with pytest.MonkeyPatch.context() as patch:
                # The vision towers have one size. transformers 5 changed the converter of Mistral's vocabulary, and
                # its LlamaTokenizerFast no longer reads Llama 3's file as it is: it loses the spaces.
                patch.setattr(qwen_vl, "Qwen2VLVisionTransformer", Vision)
                if qwen3vl:
                    patch.setattr(qwen3vl, "Qwen3VLVisionModel", lambda *a, **kw: Vision(deepstack=True))
                patch.setattr(flux, "load_mistral_tokenizer", tekken)
                patch.setattr(hunyuan_video, "LlamaTokenizerFast", transformers.PreTrainedTokenizerFast)
                patch.setattr("comfy.text_encoders.gpt_oss.GptOssMLP", NoExperts)
                for size in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
                    patch.setitem(llama.GEMMA3_VISION_CONFIG, size, 1)
                self.made[name] = self._make(*self.MORE.get(name) or self._row(name))
        return self.made[name]

    def _row(self, name: str):
        tokenizer, text_model, sizes = self.ROWS[name]
        return tokenizer, text_model, {f"{key}_model_config": dict(size) for key, size in sizes.items()}

    @staticmethod
    def _make(tokenizer, text_model, options) -> comfy.sd.CLIP:
        target = comfy.supported_models_base.ClipTarget(tokenizer, text_model)
        files = dict.fromkeys(("spiece_model", "gemma_spiece_model", "jina_spiece_model"), spiece())
        files["tokenizer_json"] = harmony(SENTENCES)
        made = comfy.sd.CLIP(target, tokenizer_data=files, model_options=options)
        torch.manual_seed(0)
        for parameter in made.cond_stage_model.parameters():
            parameter.requires_grad_(False).normal_(std=0.2)
        return made


@pytest.fixture(scope="session")
def families(comfy_path) -> Families:
    return Families()
