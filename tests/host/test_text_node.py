"""TripleTextEncode, in process, with the three small encoders that ship and the host's real tokenizers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_sd3 import CLIPTextEncodeSD3

SMALL = Path(__file__).parents[2] / "models" / "mmdit-small.safetensors"
PROMPT = "two green squares above a yellow circle"
DEFAULTS = dict(
    prompt=PROMPT, negative="", clip_l="", clip_g="", t5xxl="", clip_l_strength=1.0, clip_g_strength=1.0,
    t5_strength=1.0, t5_length="auto", empty="encode",
)  # fmt: skip
LONG = ", ".join(["a very long prompt about circles and squares"] * 30)


@pytest.fixture(scope="module")
def clip(pack):
    return sys.modules[f"{pack.__name__}.nodes.host.parts"].load_clip(str(SMALL))


@pytest.fixture(scope="module")
def node(pack):
    return sys.modules[f"{pack.__name__}.nodes.text"].TripleTextEncode()


def encode(node, clip, **changed):
    return node.encode(clip, **{**DEFAULTS, **changed})


def context(conditioning):
    return conditioning[0][0]


def pooled(conditioning):
    return conditioning[0][1]["pooled_output"]


def by_host(clip, text_l: str, text_g: str, text_t5: str):
    return CLIPTextEncodeSD3.execute(clip, text_l, text_g, text_t5, "empty_prompt").result[0]


@pytest.mark.parametrize("prompt", [PROMPT, "", "(red:1.4) circle", LONG])
def test_defaults_equal_the_hosts_own_node_bit_for_bit(node, clip, prompt):
    positive, negative, _ = encode(node, clip, prompt=prompt)
    theirs = by_host(clip, prompt, prompt, prompt)
    assert torch.equal(context(positive), context(theirs)) and torch.equal(pooled(positive), pooled(theirs))
    assert torch.equal(context(negative), context(by_host(clip, "", "", "")))


def test_own_prompts_reach_their_encoders_alone(node, clip):
    positive, _, _ = encode(node, clip, clip_l="red", clip_g="a blue star", t5xxl="green")
    theirs = by_host(clip, "red", "a blue star", "green")
    assert torch.equal(context(positive), context(theirs)) and torch.equal(pooled(positive), pooled(theirs))


@pytest.mark.parametrize(
    ("dial", "rows", "channels", "of_pooled"),
    [
        ("clip_l_strength", slice(0, 77), slice(0, 32), slice(0, 32)),
        ("clip_g_strength", slice(0, 77), slice(32, 64), slice(32, 64)),
        ("t5_strength", slice(77, 154), slice(0, 64), slice(0, 0)),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_a_strength_scales_its_encoders_part_and_nothing_else(node, clip, dial, rows, channels, of_pooled, strength):
    plain, _, _ = encode(node, clip)
    scaled, _, _ = encode(node, clip, **{dial: strength})
    expected, expected_pooled = context(plain).clone(), pooled(plain).clone()
    expected[:, rows, channels] *= strength
    expected_pooled[:, of_pooled] *= strength
    assert torch.equal(context(scaled), expected) and torch.equal(pooled(scaled), expected_pooled)


@pytest.mark.parametrize("prompt", ["red (circle:1.5)", "red (circle:0.3)"])
def test_a_weight_moves_all_three_parts(node, clip, prompt):
    weighted, plain = (context(encode(node, clip, prompt=p)[0]) for p in (prompt, "red circle"))
    moved = (weighted - plain).abs()
    for rows, channels in ((slice(0, 77), slice(0, 32)), (slice(0, 77), slice(32, 64)), (slice(77, 154), slice(0, 64))):
        assert moved[:, rows, channels].max() > 0.05 * plain[:, rows, channels].std()


def test_empty_prompts_become_zeros_or_the_encoding_of_nothing(node, clip):
    positive, zeros, info = encode(node, clip, empty="zeros")
    assert context(zeros).abs().max() == 0 and pooled(zeros).abs().max() == 0 and "all zeros" in info
    assert context(zeros).shape == context(positive).shape and context(positive).abs().max() > 0
    assert context(encode(node, clip)[1]).abs().max() > 0


def test_t5_can_be_capped_and_the_info_says_what_was_cut(node, clip):
    whole, _, info = encode(node, clip, prompt=LONG)
    capped, _, capped_info = encode(node, clip, prompt=LONG, t5_length="77")
    clip_rows = context(whole).shape[1] - (context(capped).shape[1] - 77)
    assert context(capped).shape[1] < context(whole).shape[1] and clip_rows > 77
    assert "more cut by t5_length" in capped_info and "more cut" not in info
    assert "trained with up to 154" in info


def test_the_info_counts_tokens_of_each_encoder(node, clip):
    info = encode(node, clip)[2]
    assert "CLIP-L: 7 tokens" in info and "CLIP-G: 7 tokens" in info and "T5: " in info and "missing" not in info


def test_a_missing_encoder_is_told_with_the_file_that_provides_it(node, clip):
    kept = clip.cond_stage_model.clip_g
    clip.cond_stage_model.clip_g = None
    try:
        positive, _, info = encode(node, clip)
    finally:
        clip.cond_stage_model.clip_g = kept
    assert "missing: CLIP-G" in info and "clip_g.safetensors" in info
    assert context(positive)[:, :77, 32:].abs().max() == 0 and pooled(positive)[:, 32:].abs().max() == 0


def test_small_encoders_without_the_metadata_that_describes_them_say_what_to_connect(pack, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(SMALL), tmp_path / "saved.safetensors")  # as ComfyUI's save nodes do it
    stand_in = sys.modules[f"{pack.__name__}.nodes.host.parts"].load_clip(str(tmp_path / "saved.safetensors"))
    with pytest.raises(ValueError, match="saved.safetensors are not of SD3's size.*second MMDiTLoader"):
        stand_in.tokenize("red")


def test_no_clip_at_all_says_what_to_connect(node):
    with pytest.raises(ValueError, match="TripleTextEncode: clip: nothing came in.*TripleCLIPLoader"):
        encode(node, None)


class OtherClip:
    """A CLIP of another model family: one encoder, of another name."""

    def tokenize(self, text):
        return {"qwen25_7b": [[(1, 1.0)]]}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"clip_g": "red"}, "clip_g: a prompt for CLIP-G, but this CLIP has qwen25_7b"),
        ({"t5_strength": 0.5}, "t5_strength: this CLIP has qwen25_7b, whose parts cannot be scaled"),
    ],
)
def test_dials_that_another_models_clip_lacks_are_refused(node, changed, words):
    with pytest.raises(ValueError, match=words):
        encode(node, OtherClip(), **changed)


def test_the_token_map_survives_the_hosts_conditioning_nodes(node, clip):
    import nodes as host_nodes

    positive, _, _ = encode(node, clip)
    assert positive[0][1]["mmdit_tokens"].positions(["green"], "t5")
    (area,) = host_nodes.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)
    (timed,) = host_nodes.ConditioningSetTimestepRange().set_range(area, 0.0, 0.5)
    (both,) = host_nodes.ConditioningCombine().combine(timed, positive)
    assert all(options["mmdit_tokens"] is positive[0][1]["mmdit_tokens"] for _, options in both)
