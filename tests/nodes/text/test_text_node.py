"""TripleTextEncode, in process, with the small model's three encoders and ComfyUI's tokenizers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import comfy.controlnet
import pytest
import torch
from comfy_extras.nodes_sd3 import CLIPTextEncodeSD3
from safetensors.torch import save_file

SMALL = Path(__file__).parents[3] / "models" / "mmdit-small.safetensors"
PROMPT = "two green squares above a yellow circle"
DEFAULTS = dict(
    prompt=PROMPT, negative="", clip_l="", clip_g="", t5xxl="", clip_l_strength=1.0, clip_g_strength=1.0,
    t5_strength=1.0, t5_length="auto", empty="encode",
)  # fmt: skip
LONG = ", ".join(["a very long prompt about circles and squares"] * 30)


@pytest.fixture(scope="module")
def clip(pack):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.clip_vae"].load_clip(str(SMALL))


@pytest.fixture(scope="module")
def node(pack):
    return sys.modules[f"{pack.__name__}.nodes.text"].TripleTextEncode()


def encode(node, clip, **changed):
    return node.encode(clip, **{**DEFAULTS, **changed})


def context(conditioning):
    return conditioning[0][0]


def pooled(conditioning):
    return conditioning[0][1]["pooled_output"]


def by_comfyui(clip, text_l: str, text_g: str, text_t5: str):
    return CLIPTextEncodeSD3.execute(clip, text_l, text_g, text_t5, "empty_prompt").result[0]


@pytest.mark.parametrize("prompt", [PROMPT, "", "(red:1.4) circle", LONG])
def test_defaults_are_bit_equal_to_comfyuis_node(node, clip, prompt):
    positive, negative, _ = encode(node, clip, prompt=prompt)
    expected = by_comfyui(clip, prompt, prompt, prompt)
    assert torch.equal(context(positive), context(expected)) and torch.equal(pooled(positive), pooled(expected))
    assert torch.equal(context(negative), context(by_comfyui(clip, "", "", "")))


def test_an_own_prompt_reaches_only_its_encoder(node, clip):
    positive, _, _ = encode(node, clip, clip_l="red", clip_g="a blue star", t5xxl="green")
    expected = by_comfyui(clip, "red", "a blue star", "green")
    assert torch.equal(context(positive), context(expected)) and torch.equal(pooled(positive), pooled(expected))


@pytest.mark.parametrize(
    ("name", "rows", "channels", "of_pooled"),
    [
        ("clip_l_strength", slice(0, 77), slice(0, 32), slice(0, 32)),
        ("clip_g_strength", slice(0, 77), slice(32, 64), slice(32, 64)),
        ("t5_strength", slice(77, 154), slice(0, 64), slice(0, 0)),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_a_strength_scales_its_encoders_part_and_nothing_else(node, clip, name, rows, channels, of_pooled, strength):
    plain, _, _ = encode(node, clip)
    scaled, _, _ = encode(node, clip, **{name: strength})
    expected, expected_pooled = context(plain).clone(), pooled(plain).clone()
    expected[:, rows, channels] *= strength
    expected_pooled[:, of_pooled] *= strength
    assert torch.equal(context(scaled), expected) and torch.equal(pooled(scaled), expected_pooled)


PARTS = {  # of the small encoders' context
    "clip_l": (slice(None), slice(0, 77), slice(0, 32)),
    "clip_g": (slice(None), slice(0, 77), slice(32, 64)),
    "t5xxl": (slice(None), slice(77, 154), slice(0, 64)),
}


def moved_parts(weighted, plain) -> set[str]:
    """The parts in which a token moved by more than a twentieth of the tokens' standard deviation."""
    moved = (weighted - plain).abs()
    return {name for name, part in PARTS.items() if moved[part].max() > 0.05 * plain[part].std()}


@pytest.mark.parametrize("prompt", ["red (circle:1.3)", "red (circle:0.3)"])
def test_a_word_weight_changes_all_three_parts(node, clip, prompt):
    weighted, plain = (context(encode(node, clip, prompt=p)[0]) for p in (prompt, "red circle"))
    assert moved_parts(weighted, plain) == set(PARTS)


@pytest.mark.parametrize("encoder", PARTS)
def test_a_word_weight_in_an_own_prompt_changes_only_that_encoders_part(node, clip, encoder):
    plain = context(encode(node, clip, prompt="red circle")[0])
    weighted = context(encode(node, clip, prompt="red circle", **{encoder: "red (circle:1.3)"})[0])
    assert moved_parts(weighted, plain) == {encoder}


def test_an_empty_prompt_is_zeros_or_its_encoding(node, clip):
    positive, zeros, info = encode(node, clip, empty="zeros")
    assert context(zeros).abs().max() == 0 and pooled(zeros).abs().max() == 0 and "all zeros" in info
    assert context(zeros).shape == context(positive).shape and context(positive).abs().max() > 0
    assert context(encode(node, clip)[1]).abs().max() > 0


@pytest.mark.parametrize("encoder", PARTS)
def test_only_the_encoder_with_an_empty_prompt_is_dropped(node, clip, encoder):
    positive, _, info = encode(node, clip, prompt=" ", empty="zeros", **{encoder: "red"})
    plain, _, _ = encode(node, clip, prompt="red")
    for name, part in PARTS.items():
        assert torch.equal(context(positive)[part], context(plain)[part] * (name == encoder))
    labels = {"clip_l": "CLIP-L", "clip_g": "CLIP-G", "t5xxl": "T5"}
    assert info.count("empty, all zeros") == 5 and f"{labels[encoder]}: 1 tokens" in info
    here = {e.name for e in positive[0][1]["mmdit_tokens"].encoders if e.present}
    assert here == {labels[encoder]}


def lines_of(info: str, title: str) -> dict[str, str]:
    """The lines of the info for the prompt or the negative prompt: the text before the colon -> the text after it."""
    part = info.split("prompt\n")[1].split("negative\n")[title == "negative"]
    return dict(line.strip().split(": ", 1) for line in part.strip().splitlines())


def test_the_info_counts_tokens_of_each_encoder(node, clip):
    info = encode(node, clip)[2]
    seven = dict.fromkeys(("CLIP-L", "CLIP-G", "T5"), "7 tokens")
    assert lines_of(info, "prompt") == {**seven, "T5": "9 tokens"}
    assert lines_of(info, "negative") == dict.fromkeys(seven, "0 tokens") and "missing" not in info


def test_textual_inversions_are_counted_and_those_left_out_are_named(node, clip, tmp_path, monkeypatch):
    width = of_width(clip, "clip_l")
    save_file({"clip_l": torch.randn(3, width)}, tmp_path / "star.safetensors")
    for name in PARTS:
        monkeypatch.setattr(getattr(clip.tokenizer, name), "embedding_directory", str(tmp_path))
    prompt = "red embedding:star, (embedding:nowhere:1.2) circle"
    lines = encode(node, clip, prompt=prompt)[2].split("negative\n")[0]
    assert "CLIP-L: 6 tokens" in lines, "two words, a comma and three vectors"
    others = [name for name, part in {"CLIP-G": "clip_g", "T5": "t5xxl"}.items() if of_width(clip, part) != width]
    assert f"embedding:star is left out for {', '.join(others)}: models/embeddings has no vectors" in lines
    assert "embedding:nowhere is left out for CLIP-L, CLIP-G, T5: models/embeddings has no vectors for them" in lines
    assert "embedding:" not in encode(node, clip)[2]


def of_width(clip, part: str) -> int:
    return getattr(clip.cond_stage_model, part).transformer.get_input_embeddings().weight.shape[-1]


@pytest.mark.parametrize("length", ["77", "154", "256", "512"])
def test_t5_length_limits_t5_and_the_info_lists_the_cut_tokens(node, clip, length):
    limit, whole = int(length), context(encode(node, clip, prompt=LONG)[0])
    capped, _, info = encode(node, clip, prompt=LONG, t5_length=length)
    clips, t5 = 4 * 77, len(clip.tokenize(LONG)["t5xxl"][0])
    assert whole.shape[1] == clips + t5 and context(capped).shape[1] == clips + min(limit, t5)
    assert torch.equal(context(capped)[:, :clips], whole[:, :clips])
    lines, vocabulary = lines_of(info, "prompt"), clip.tokenizer.t5xxl.inv_vocab
    assert lines["CLIP-L"] == lines["CLIP-G"] == "269 tokens in 4 chunks"
    if t5 <= limit:
        assert lines["T5"] == f"{t5 - 1} tokens" and "T5 cut" not in lines
        return
    cut = [vocabulary[token].lstrip("\u2581") for token, _ in clip.tokenize(LONG)["t5xxl"][0][limit - 1 : -1]]
    assert lines["T5"] == f"{limit - 1} tokens, {len(cut)} more cut by t5_length"
    assert lines["T5 cut"].split(" | ") == cut and "square" in cut


@pytest.mark.parametrize(
    ("words", "length", "warns"), [(150, "auto", False), (160, "auto", True), (400, "256", True), (400, "154", False)]
)
def test_more_than_154_t5_tokens_give_a_warning_with_the_reason(node, clip, words, length, warns):
    lines = lines_of(encode(node, clip, prompt="red " * words, t5_length=length)[2], "prompt")
    assert ("T5 warning" in lines) == warns
    if warns:
        assert lines["T5 warning"].startswith("more than 154: SD3 and SD3.5 were trained on 77 T5 tokens")


STRENGTHS = ("clip_l_strength", "clip_g_strength", "t5_strength")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *((name, bad, f"{bad}. Set a number from 0 to 10") for name in STRENGTHS for bad in (math.nan, math.inf)),
        ("t5_strength", -1.0, "-1. Set a number from 0 to 10"),
        ("t5_length", "100", "'100' is unknown. Choose one of auto, 77, 154, 256, 512"),
        ("empty", "nothing", "'nothing' is unknown. Choose one of encode, zeros"),
    ],
)
def test_values_outside_the_widgets_are_refused_by_name(node, clip, name, value, words):
    with pytest.raises(ValueError, match=f"TripleTextEncode: {name}: {words}"):
        encode(node, clip, **{name: value})


def test_an_empty_prompt_is_tokenized_once(node, clip, monkeypatch):
    texts, tokenize = [], clip.tokenize
    monkeypatch.setattr(clip, "tokenize", lambda text: (texts.append(text), tokenize(text))[1])
    encode(node, clip, negative="", clip_g="red")
    assert sorted(texts) == sorted(["", PROMPT, "red"])


def test_small_encoders_without_their_metadata_say_which_clip_to_connect(pack, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    save_file(load_file(SMALL), tmp_path / "saved.safetensors")  # without metadata, as ComfyUI's save nodes do it
    loader = sys.modules[f"{pack.__name__}.nodes.loader"]
    monkeypatch.setattr(loader.folders, "listed_path", lambda name: tmp_path / name)
    _, stand_in, _ = loader.MMDiTLoader().load("saved.safetensors", "default")
    with pytest.raises(ValueError, match="saved.safetensors are not of SD3's size.*second MMDiTLoader"):
        stand_in.tokenize("red")


def test_no_clip_at_all_says_what_to_connect(node):
    with pytest.raises(ValueError, match="TripleTextEncode: clip: nothing came in.*TripleCLIPLoader"):
        encode(node, None)


class OtherClip:
    """A CLIP of another model family with one encoder."""

    def tokenize(self, text):
        return {"qwen25_7b": [[(1, 1.0)]]}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"clip_g": "red"}, "clip_g: a prompt for CLIP-G, but this CLIP has qwen25_7b"),
        ({"t5_strength": 0.5}, "t5_strength: this CLIP has qwen25_7b, whose parts cannot be scaled"),
    ],
)
def test_inputs_for_encoders_that_a_clip_lacks_are_refused(node, changed, words):
    with pytest.raises(ValueError, match=words):
        encode(node, OtherClip(), **changed)


def test_comfyuis_conditioning_nodes_keep_the_token_map(node, clip):
    import nodes as comfyui_nodes

    positive, _, _ = encode(node, clip)
    assert positive[0][1]["mmdit_tokens"].positions(["green"], "t5")
    (area,) = comfyui_nodes.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)
    (timed,) = comfyui_nodes.ConditioningSetTimestepRange().set_range(area, 0.0, 0.5)
    control = comfy.controlnet.ControlNet(torch.nn.Identity())
    controlled, _ = comfyui_nodes.ControlNetApplyAdvanced().apply_controlnet(
        timed, positive, control, torch.zeros(1, 64, 64, 3), 1.0, 0.0, 1.0
    )
    assert controlled[0][1]["control"] is not None
    (both,) = comfyui_nodes.ConditioningCombine().combine(controlled, positive)
    assert all(options["mmdit_tokens"] is positive[0][1]["mmdit_tokens"] for _, options in both)
