"""TripleTextEncode at SD3's real widths (768, 1280, 4096), random weights, few layers, against ComfyUI's node."""

from __future__ import annotations

import itertools
import struct
import sys

import comfy.sd
import comfy.supported_models_base
import pytest
import torch
from comfy.text_encoders.sd3_clip import SD3ClipModel, SD3Tokenizer
from comfy_extras.nodes_sd3 import CLIPTextEncodeSD3

SIZES = {
    "clip_l_model_config": {"num_hidden_layers": 3},
    "clip_g_model_config": {"num_hidden_layers": 3},
    "t5xxl_model_config": {"num_layers": 1, "num_heads": 2, "d_kv": 32, "d_ff": 128},
}
FILES = {"clip_l": "clip_l.safetensors", "clip_g": "clip_g.safetensors", "t5xxl": "t5xxl_fp16.safetensors or t5xxl_fp8"}
LABELS = {"clip_l": "CLIP-L", "clip_g": "CLIP-G", "t5xxl": "T5"}
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(LABELS, count)]
PROMPT = "two (green:1.3) squares above a yellow circle"
LONG = ", ".join(["a very long prompt about circles and squares"] * 12)


@pytest.fixture(scope="module")
def clip():
    target = comfy.supported_models_base.ClipTarget(SD3Tokenizer, SD3ClipModel)
    made = comfy.sd.CLIP(target, model_options=SIZES)
    torch.manual_seed(0)
    for parameter in made.cond_stage_model.parameters():
        parameter.requires_grad_(False).normal_(std=0.05)
    yield made
    made.cond_stage_model = None  # a gigabyte


@pytest.fixture(scope="module")
def node(pack):
    return sys.modules[f"{pack.__name__}.nodes.text"].TripleTextEncode()


def encode(node, clip, prompt, negative="", **changed):
    given = dict(
        clip_l="", clip_g="", t5xxl="", clip_l_strength=1.0, clip_g_strength=1.0, t5_strength=1.0, t5_length="auto",
        empty="encode",
    )  # fmt: skip
    return node.encode(clip, prompt, negative, **{**given, **changed})


def same(ours, theirs) -> bool:
    (context, options), (their_context, their_options) = ours[0], theirs[0]
    pooled, their_pooled = options["pooled_output"], their_options["pooled_output"]
    return torch.equal(context, their_context) and torch.equal(pooled, their_pooled)


@pytest.mark.parametrize("prompt", [PROMPT, "", LONG])
def test_defaults_are_bit_equal_to_comfyuis_node(node, clip, prompt):
    positive, negative, _ = encode(node, clip, prompt, "blurry")
    assert positive[0][0].shape[2] == 4096 and positive[0][1]["pooled_output"].shape[1] == 768 + 1280
    for ours, text in ((positive, prompt), (negative, "blurry")):
        assert same(ours, CLIPTextEncodeSD3.execute(clip, text, text, text, "empty_prompt").result[0])


def test_own_prompts_of_different_lengths_are_bit_equal_to_comfyuis_node(node, clip):
    positive, _, _ = encode(node, clip, "red", clip_g=LONG, t5xxl="green")
    assert same(positive, CLIPTextEncodeSD3.execute(clip, "red", LONG, "green", "empty_prompt").result[0])


@pytest.fixture
def holding(clip):
    """The CLIP with only some of its encoders."""
    model, kept = clip.cond_stage_model, {name: getattr(clip.cond_stage_model, name) for name in LABELS}

    def hold(subset):
        for name in LABELS:
            setattr(model, name, kept[name] if name in subset else None)
        return clip

    yield hold
    hold(LABELS)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_any_subset_of_encoders_works_and_each_missing_one_is_reported_with_its_file(node, holding, subset):
    clip = holding(subset)
    positive, _, info = encode(node, clip, PROMPT)
    assert same(positive, CLIPTextEncodeSD3.execute(clip, PROMPT, PROMPT, PROMPT, "empty_prompt").result[0])
    reported = [line for line in info.splitlines() if line.startswith("missing")]
    assert len(reported) == 3 - len(subset)
    for name, label in LABELS.items():
        line = next((line for line in reported if label in line), None)
        assert (line is None) == (name in subset) == (f"  {label}: " in info)
        assert line is None or FILES[name] in line


def test_an_own_prompt_for_a_missing_encoder_is_reported(node, holding):
    info = encode(node, holding(("clip_l", "clip_g")), PROMPT, t5xxl="green")[2]
    assert "missing: T5 (its tokens are left out, and its own prompt is not read). t5xxl_fp16" in info


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_strengths_scale_the_present_encoders(node, holding, subset):
    clip = holding(subset)
    plain, half = (
        encode(node, clip, "red", clip_l_strength=value, clip_g_strength=value, t5_strength=value)[0]
        for value in (1.0, 0.5)
    )
    assert torch.equal(half[0][0], plain[0][0] * 0.5)
    assert torch.equal(half[0][1]["pooled_output"], plain[0][1]["pooled_output"] * 0.5)


def test_the_node_shows_used_and_cut_tokens_and_nan_from_the_api_is_refused_by_name(comfyui):
    def graph(**changed):
        text = {
            "clip": ["1", 1], "prompt": LONG, "negative": "blurry", "clip_l": "", "clip_g": "", "t5xxl": "",
            "clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0, "t5_length": "77", "empty": "encode",
            **changed,
        }  # fmt: skip
        return {
            "1": {
                "class_type": "MMDiTLoader",
                "inputs": {"checkpoint": "mmdit-small.safetensors", "weight_dtype": "default"},
            },
            "2": {"class_type": "TripleTextEncode", "inputs": text},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
        }

    shown = []
    with comfyui.events() as events:
        prompt_id = comfyui.queue(graph(), client_id=events.client_id)
        for event in events.until_done(prompt_id, timeout=120):
            if event.kind == "binary_3":  # ComfyUI's progress text: length of the node's id, the id, the text
                (length,) = struct.unpack(">I", event.image[:4])
                shown.append((event.image[4 : 4 + length].decode(), event.image[4 + length :].decode()))
    shown_text = dict(shown)["2"]
    assert "prompt: CLIP-L 107, CLIP-G 107, T5 76 (" in shown_text and " cut)" in shown_text
    assert "negative: CLIP-L 1, CLIP-G 1, T5 " in shown_text
    with pytest.raises(Exception, match="TripleTextEncode: t5_strength: nan. Set a number from 0 to 10"):
        comfyui.run(graph(t5_strength=float("nan")))
    comfyui.run(graph(t5_length="154"))  # the graph runs after the fix
