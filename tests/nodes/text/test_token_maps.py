"""Positions of phrases with ComfyUI's tokenizers of SD3, FLUX.1 and Qwen-Image."""

from __future__ import annotations

import sys
from pathlib import Path

import comfy.sd
import comfy.supported_models_base
import pytest
import torch
from comfy.text_encoders import flux, qwen_image, qwen_vl

SMALL = Path(__file__).parents[3] / "models" / "mmdit-small.safetensors"
CLIP_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
T5_SIZE = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 3}
QWEN_SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1,
             "num_key_value_heads": 1}  # fmt: skip
KEYS = {"CLIP-L": "l", "CLIP-G": "g", "T5": "t5xxl", "Qwen2.5-VL 7B": "qwen25_7b"}
TEMPLATE = 34  # tokens that Qwen-Image's text model cuts off the front


@pytest.fixture(scope="module")
def text(pack):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.text.conditioning"]


@pytest.fixture(scope="module")
def phrase_error(pack):
    return sys.modules[f"{pack.__name__}.mmdit_core.text.tokens"].PhraseError


@pytest.fixture(scope="module")
def sd3(pack):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.clip_vae"].load_clip(str(SMALL))


def small(tokenizer, text_model, **sizes):
    """ComfyUI's CLIP with a real tokenizer and a small text model with random weights."""
    target = comfy.supported_models_base.ClipTarget(tokenizer, text_model)
    made = comfy.sd.CLIP(target, model_options={f"{name}_model_config": size for name, size in sizes.items()})
    torch.manual_seed(0)
    for parameter in made.cond_stage_model.parameters():
        parameter.requires_grad_(False).normal_(std=0.2)
    return made


@pytest.fixture(scope="module")
def flux_clip():
    return small(flux.FluxTokenizer, flux.FluxClipModel, clip_l=CLIP_SIZE, t5xxl=T5_SIZE)


@pytest.fixture(scope="module")
def qwen():
    with pytest.MonkeyPatch.context() as patch:  # the vision tower is 1280 wide at any size
        patch.setattr(qwen_vl, "Qwen2VLVisionTransformer", lambda **kwargs: torch.nn.Identity())
        return small(qwen_image.QwenImageTokenizer, qwen_image.QwenImageTEModel, qwen25_7b=QWEN_SIZE)


class Encoded:
    """A prompt's context and token map, and the text of the tokens at its positions."""

    def __init__(self, text, clip, prompt: str, t5_limit: int | None = None, dropped=(), **own: str):
        encoders = text.Encoders(clip)
        prompts = {key: own.get(key, prompt) for key in encoders.names}
        self.tokens, self.counts = encoders.tokenize(prompts, t5_limit)
        self.context = clip.encode_from_tokens(self.tokens)
        self.map = encoders.token_map(self.tokens, self.context, dropped)
        self.tokenizers = {
            label: getattr(clip.tokenizer, text.ENCODERS[key][0] if key in text.ENCODERS else key).tokenizer
            for label, key in KEYS.items()
            if key in self.tokens
        }

    def text_at(self, phrase: str, part: str = "all") -> dict[str, str]:
        """Encoder -> the text of its tokens at the phrase's positions."""
        positions = self.map.positions([phrase], part)
        text_at = {}
        for encoder in self.map.encoders:
            ids = [token for chunk in self.tokens[KEYS[encoder.name]] for token, *_ in chunk]
            offset = encoder.start if encoder.name != "Qwen2.5-VL 7B" else -TEMPLATE
            inside = [ids[position - offset] for position in positions if encoder.start <= position < encoder.stop]
            if encoder.present and inside:
                text_at[encoder.name] = self.tokenizers[encoder.name].decode(inside).strip().lower()
        return text_at


SD3_ENCODERS = ("CLIP-G", "CLIP-L", "T5")
PROMPTS = [
    ("a red circle above a blue square", "blue square", "blue square"),
    ("a red (circle:1.3)", "circle", "circle"),
    ("(a ((red)) circle:0.8), blue", "Red", "red"),
    ("Two RED Circles, one blue,green star!", "red circles", "red circles"),
    ("one blue,green star", "green", "green"),
    ('a sign that says "hello", in red', "hello", "hello"),
    ("a red-haired girl's don't-walk sign", "red", "red"),
    ("the girl's hat (small)", "girl", "girl"),
    ("don't walk", "don't", "don't"),
    ("don't walk", "don\u2019t", None),  # a typographic apostrophe is another letter
    ("a café, a crème brûlée", "café", "café"),
    ("a café", "cafe\u0301", "café"),  # composed another way
    ("an antidisestablishmentarianism poster", "antidisestablishmentarianism", "antidisestablishmentarianism"),
    ("a photo of the year 2024", "2024", "2024"),
    ("a hundred men", "red", None),
    ("a red circle", "red square", None),
]


@pytest.mark.parametrize("which", ["sd3", "flux_clip", "qwen"])
@pytest.mark.parametrize(("prompt", "phrase", "tokens"), PROMPTS)
def test_a_phrase_is_found_in_every_encoder_and_its_tokens_decode_to_it(
    request, text, phrase_error, which, prompt, phrase, tokens
):
    encoded = Encoded(text, request.getfixturevalue(which), prompt)
    if tokens is None:
        with pytest.raises(phrase_error, match="is not in the prompt"):
            encoded.text_at(phrase)
        return
    expected = {"sd3": SD3_ENCODERS, "flux_clip": ("T5",), "qwen": ("Qwen2.5-VL 7B",)}[which]
    text_at = {name: words.replace(" ", "") for name, words in encoded.text_at(phrase).items()}
    assert text_at == dict.fromkeys(expected, tokens.replace(" ", ""))


@pytest.mark.parametrize("which", ["sd3", "flux_clip"])
def test_a_phrase_may_contain_weighted_words(request, text, which):
    encoded = Encoded(text, request.getfixturevalue(which), "a (red:1.3) circle")
    assert set(encoded.text_at("a red circle").values()) == {"a red circle"}


def test_qwen_reads_weights_as_text(text, qwen):
    assert Encoded(text, qwen, "a (red:1.3) circle").text_at("1.3") == {"Qwen2.5-VL 7B": "1.3"}


@pytest.mark.parametrize("phrase", ["the color", "size", "objects", "background", "text", "assistant"])
def test_words_of_qwens_template_are_found_in_the_prompt_only(text, qwen, phrase_error, phrase):
    prompt = "the color and size of objects, text, background, assistant"
    assert Encoded(text, qwen, prompt).text_at(phrase) == {"Qwen2.5-VL 7B": phrase}
    with pytest.raises(phrase_error, match="The prompt's words: a red circle$"):
        Encoded(text, qwen, "a red circle").text_at(phrase)


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("一只红色的猫，蓝色背景", "红色"),
        ("一只红色的猫，蓝色背景", "蓝色背景"),
        ("白猫，𠮷野家", "𠮷野家"),
        ("a 猫 sign", "猫"),
    ],
)
def test_a_chinese_phrase_is_found_with_qwen_and_clip(text, qwen, sd3, prompt, phrase):
    assert phrase in Encoded(text, qwen, prompt).text_at(phrase)["Qwen2.5-VL 7B"]
    assert Encoded(text, sd3, prompt).text_at(phrase, "clip") == dict.fromkeys(SD3_ENCODERS[:2], phrase)


@pytest.mark.parametrize("which", ["sd3", "qwen"])
def test_another_word_changes_the_context_only_from_its_position_on(request, text, which):
    """CLIP and Qwen have causal attention: another word does not change the positions before it."""
    clip = request.getfixturevalue(which)
    a, b = (Encoded(text, clip, f"one two three {word} four five") for word in ("red", "blue"))
    position = min(a.map.positions(["red"]))
    changed = (a.context - b.context).abs().amax(-1)[0] > 1e-6
    assert changed[position] and not changed[:position].any()


def test_qwens_context_begins_with_the_prompt(text, qwen):
    encoded = Encoded(text, qwen, "red circle")
    assert encoded.map.positions(["red circle"]) == (0, 1) and encoded.counts[0].used == 2
    assert encoded.map.positions() == tuple(range(encoded.context.shape[1]))


def test_flux_reads_only_t5_and_has_no_clip_part(text, flux_clip, phrase_error):
    encoded = Encoded(text, flux_clip, "a red circle")
    assert [encoder.name for encoder in encoded.map.encoders] == ["T5"]
    assert encoded.context.shape[1] == 256 == len(encoded.map.positions())
    with pytest.raises(phrase_error, match="no clip part.*T5"):
        encoded.map.positions((), "clip")


def test_prompts_of_two_clip_chunks(text, sd3):
    encoded = Encoded(text, sd3, ", ".join(["a green star"] * 30) + ", one red circle")
    clip_places = encoded.map.positions(["red circle"], "clip")
    assert 154 > min(clip_places) > 77 and encoded.text_at("red circle") == dict.fromkeys(SD3_ENCODERS, "red circle")
    t5 = next(encoder for encoder in encoded.map.encoders if encoder.name == "T5")
    assert (t5.start, t5.stop) == (154, encoded.context.shape[1])
    assert encoded.counts[0].used == 30 * 4 + 3


def test_words_cut_by_t5_length_are_not_found_in_t5(text, sd3, phrase_error):
    encoded = Encoded(text, sd3, "one two three four five red", t5_limit=5)
    assert encoded.context.shape[1] == 77 + 5
    assert set(encoded.text_at("two")) == set(SD3_ENCODERS) and set(encoded.text_at("red")) == set(SD3_ENCODERS[:2])
    with pytest.raises(phrase_error, match="the prompt's t5 part"):
        encoded.text_at("red", "t5")


def test_a_limit_on_flux_cuts_padding_before_words(text, flux_clip):
    """FLUX's T5 pads to 256: a limit cuts only padding of a short prompt, and keeps the end token of a long one."""
    short, capped = Encoded(text, flux_clip, "a red circle", t5_limit=77), Encoded(text, flux_clip, "red " * 90, 77)
    assert short.context.shape[1] == capped.context.shape[1] == 77
    assert [count.cut for count in short.counts] == [(), ()] and short.text_at("red circle") == {"T5": "red circle"}
    assert [count.cut for count in capped.counts] == [(), ("red",) * 14]
    assert capped.tokens["t5xxl"][0][-1][0] == 1  # T5's end token


def test_own_prompts_of_the_encoders(text, sd3, phrase_error):
    encoded = Encoded(text, sd3, "a red circle", g="a blue square", t5xxl="a green star, red")
    assert encoded.text_at("red") == {"CLIP-L": "red", "CLIP-G": "blue", "T5": "red"}  # L and G lie side by side
    assert encoded.text_at("green") == {"T5": "green"}
    with pytest.raises(phrase_error, match="a blue square.*a green star.*a red circle"):
        encoded.text_at("yellow")


@pytest.mark.parametrize(
    ("missing", "left"),
    [(["clip_l"], ("CLIP-G", "T5")), (["t5xxl"], ("CLIP-G", "CLIP-L")), (["clip_l", "clip_g"], ("T5",))],
)
def test_a_missing_encoder(text, sd3, phrase_error, missing, left):
    kept = {name: getattr(sd3.cond_stage_model, name) for name in missing}
    try:
        for name in missing:
            setattr(sd3.cond_stage_model, name, None)
        encoded = Encoded(text, sd3, "a red circle")
    finally:
        for name, encoder in kept.items():
            setattr(sd3.cond_stage_model, name, encoder)
    assert encoded.text_at("red circle") == dict.fromkeys(left, "red circle")
    assert max(encoded.map.positions()) == encoded.context.shape[1] - 1
    for part, all_gone in (("clip", left == ("T5",)), ("t5", "T5" not in left)):
        if all_gone:
            with pytest.raises(phrase_error, match="missing or dropped"):
                encoded.map.positions((), part)


def test_a_dropped_encoder_has_no_phrases(text, sd3, phrase_error):
    encoded = Encoded(text, sd3, "a red circle", dropped={"t5xxl"})
    assert set(encoded.text_at("red")) == {"CLIP-L", "CLIP-G"}
    with pytest.raises(phrase_error, match="T5: missing or dropped"):
        encoded.map.positions((), "t5")


def test_counts_are_of_the_prompts_own_tokens_only(text, sd3, flux_clip, qwen):
    for clip in (sd3, flux_clip, qwen):
        assert [count.used for count in Encoded(text, clip, "").counts] == [0] * len(clip.tokenize(""))
    used = {count.label: count.used for count in Encoded(text, sd3, "red red, !").counts}
    assert used == {"CLIP-L": 4, "CLIP-G": 4, "T5": 5}
