"""What a link can bring: values of another kind become plain numbers, or an error that names node and input."""

from __future__ import annotations

import importlib
import math
import re

import numpy
import pytest
import torch


@pytest.fixture(scope="module")
def modules(pack):
    """A module of the pack's nodes by its name."""
    return lambda name: importlib.import_module(f"{pack.__name__}.nodes.{name}")


def widgets_for(modules):
    widgets = modules("widgets")
    return {
        "count": widgets.integer(1, 0, 10, ""),
        "amount": widgets.number(1.0, 0.0, 10.0, 0.1, ""),
        "on": widgets.switch(False, ""),
        "words": widgets.text("", ""),
        "kind": widgets.choice(["a", "b"], "a", ""),
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", numpy.int64(3), 3), ("count", 3.0, 3), ("count", True, 1), ("count", numpy.float32(2), 2),
        ("amount", 2, 2.0), ("amount", numpy.float32(0.5), 0.5), ("amount", numpy.int64(2), 2.0),
        ("on", numpy.bool_(True), True), ("on", 1, True), ("words", numpy.str_("x"), "x"),
        ("kind", numpy.str_("b"), "b"),
    ],
)  # fmt: skip
def test_numbers_of_other_kinds_become_plain_ones(modules, name, value, expected):
    (found,) = modules("widgets").check_values("Node", widgets_for(modules), {name: value}).values()
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 2.5, "2.5 is not whole"), ("count", math.nan, "nan. Set a number from 0 to 10"),
        ("count", 10**400, "a number too large"), ("count", torch.tensor([1, 2]), "is not a number"),
        ("count", None, "None is not a number"), ("amount", numpy.float64("inf"), "inf"),
        ("amount", 1j, "is not a number"), ("on", "yes", "neither true nor false"), ("on", None, "neither"),
        ("on", torch.tensor([1, 2]), "neither"), ("words", b"x", "is not a text"),
        ("words", "x" * 60_000, "it has 60,000 characters. Write at most 50,000"),
        ("words", "a \ud800", "half of a character"), ("kind", "c", "'c' is unknown"), ("kind", ["a"], "is unknown"),
    ],
)  # fmt: skip
def test_what_a_widget_does_not_allow_is_refused_by_name(modules, name, value, words):
    with pytest.raises(ValueError, match=f"^Node: {name}: .*{re.escape(words)}") as caught:
        modules("widgets").check_values("Node", widgets_for(modules), {name: value})
    assert len(str(caught.value)) < 200


def test_an_error_quotes_only_the_beginning_of_a_long_input(modules):
    error = modules("errors").InputError("Node", "blocks", "x" * 50_000, "Write less")
    assert len(str(error)) < 1100 and str(error).endswith("x.... Write less")


LATENT = torch.ones(1, 16, 8, 8)
WRONG_LATENTS = {
    "none": (None, "NoneType is not a LATENT"),
    "a list": ([LATENT], "list is not a LATENT"),
    "no samples": ({}, "dict is not a LATENT"),
    "numpy": ({"samples": LATENT.numpy()}, "not a LATENT"),
    "height 0": ({"samples": torch.ones(1, 16, 0, 8)}, "its size is 1 x 16 x 0 x 8"),
    "2-D": ({"samples": torch.ones(8, 8)}, "its size is 8 x 8"),
    "fp8": ({"samples": LATENT.to(torch.float8_e4m3fn)}, "its values are torch.float8_e4m3fn"),
    "whole numbers": ({"samples": LATENT.long()}, "its values are torch.int64"),
    "nan": ({"samples": LATENT * math.nan}, "not finite"),
    "index []": ({"samples": LATENT, "batch_index": []}, r"its batch_index is \[\]"),
    "index -1": ({"samples": LATENT, "batch_index": [-1]}, r"its batch_index is \[-1\]"),
    "index of a text": ({"samples": LATENT, "batch_index": ["a"]}, "its batch_index is"),
    "index nan": ({"samples": LATENT, "batch_index": [math.nan]}, "its batch_index is"),
    # ComfyUI would make the noise of a billion images.
    "index huge": ({"samples": LATENT, "batch_index": [10**9]}, r"its batch_index is \[1000000000\]"),
    "indices of three": (
        {"samples": torch.cat((LATENT, LATENT)), "batch_index": [0, 1, 2]},
        "names 3 images and it holds 2",
    ),
    "empty mask": ({"samples": LATENT, "noise_mask": torch.ones(0, 8, 8)}, "its noise mask is empty"),
    "1-D mask": ({"samples": LATENT, "noise_mask": torch.ones(8)}, "its noise mask is of shape"),
    "5-D mask": ({"samples": LATENT, "noise_mask": torch.ones(1, 1, 1, 8, 8)}, "its noise mask is of shape"),
    "nan mask": ({"samples": LATENT, "noise_mask": torch.ones(1, 8, 8) * math.nan}, "its noise mask is empty or not"),
    "bool mask": ({"samples": LATENT, "noise_mask": torch.ones(1, 8, 8) > 0}, "noise mask are torch.bool"),
    "list mask": ({"samples": LATENT, "noise_mask": [1]}, "its noise mask is list"),
    "ratio nan": ({"samples": LATENT, "downscale_ratio_spacial": math.nan}, "its downscale_ratio_spacial is nan"),
    "ratio huge": ({"samples": LATENT, "downscale_ratio_spacial": 1e9}, "its downscale_ratio_spacial is"),
    "ratio text": ({"samples": LATENT, "downscale_ratio_temporal": "8"}, "its downscale_ratio_temporal is '8'"),
}


@pytest.mark.parametrize("case", WRONG_LATENTS)
def test_a_latent_that_cannot_be_sampled_is_refused(modules, case):
    latent, words = WRONG_LATENTS[case]
    with pytest.raises(ValueError, match=f"^Node: latent_image: .*{words}"):
        modules("sampler.checks").check_latent("Node", latent)


TEXT = torch.ones(1, 7, 8)
WRONG_PROMPTS = {
    "none": (None, "nothing came in"),
    "a text": ("a red circle", "str is not a prompt"),
    "empty": ([], "it holds no prompt"),
    "no pair": ([[TEXT]], "entry 0 is no text with options"),
    "no tensor": ([[None, {}]], "entry 0 is no text with options"),
    "no tokens": ([[TEXT[:, :0], {}]], "the text is of shape"),
    "nan": ([[TEXT * math.nan, {}]], "the text holds values that are not finite"),
    "nan in an option": ([[TEXT, {"reference_latents": [LATENT * math.nan]}]], "its reference_latents holds values"),
    "strength nan": ([[TEXT, {"strength": math.nan}]], "its strength is nan"),
    "range of a text": ([[TEXT, {"start_percent": "0"}]], "its start_percent is '0'"),
    "hooks": ([[TEXT, {"hooks": "x"}]], "its hooks cannot be used"),
    "area short": ([[TEXT, {"area": (4,)}]], r"its area cannot be used: \(4,\)"),
    "area nan": ([[TEXT, {"area": ("percentage", math.nan, 1.0, 0.0, 0.0)}]], "its area cannot"),
    "area of no size": ([[TEXT, {"area": (0, 8, 0, 0)}]], "its area cannot"),
    "gligen": ([[TEXT, {"gligen": ("position", None, [])}]], "its gligen cannot be used"),
    "mask of truth values": ([[TEXT, {"mask": torch.ones(1, 8, 8) > 0}]], "its mask cannot be used"),
    "control none": ([[TEXT, {"control": None}]], "its control cannot be used: None"),
    "area of fractions": ([[TEXT, {"area": (4.5, 4.5, 0.5, 0.5)}]], "its area cannot"),
    "area of truth values": ([[TEXT, {"area": (True, True, False, False)}]], "its area cannot"),
    "no pooled text": ([[TEXT, {"pooled_output": torch.ones(0, 8)}]], "its pooled text is empty"),
    "an option of a number": ([[TEXT, {1: 2}]], "its option 1 is no word"),
    "fp8": ([[TEXT.to(torch.float8_e4m3fn), {}]], "the text's values are torch.float8_e4m3fn"),
    "mask 1-D": ([[TEXT, {"mask": torch.ones(8)}]], "its mask cannot be used"),
}


@pytest.mark.parametrize("case", WRONG_PROMPTS)
def test_a_prompt_that_cannot_be_used_is_refused(modules, case):
    prompt, words = WRONG_PROMPTS[case]
    with pytest.raises(ValueError, match=f"^Node: positive: .*{words}"):
        modules("links").require_conditioning("Node", "positive", prompt)


def test_prompts_as_comfyui_makes_them_are_taken(modules):
    links, areas = modules("links"), ((4, 4, 2, 2), ("percentage", 0.5, 0.5, 0.5, 0.5), (1, 4, 4, 0, 2, 2))
    options = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "guidance": 3.5, "pooled_output": None}
    for area in (None, *areas):
        prompt = [[TEXT, {**options, "area": area, "mask": torch.ones(1, 8, 8), "hooks": None}]]
        links.require_conditioning("Node", "positive", prompt)
        links.require_areas_inside("Node", "positive", prompt, (8, 8))
    with pytest.raises(ValueError, match=r"^Node: positive: its area begins at \[9, 2\], and the latent has \[8, 8\]"):
        links.require_areas_inside("Node", "positive", [[TEXT, {"area": (4, 4, 9, 2)}]], (8, 8))
    of_video = [[TEXT, {"mask": torch.ones(1, 3, 8, 8)}]]
    links.require_areas_inside("Node", "positive", of_video, (3, 8, 8))
    with pytest.raises(ValueError, match=r"^Node: positive: its mask is of shape \[1, 3, 8, 8\], and the latent has"):
        links.require_areas_inside("Node", "positive", of_video, (8, 8))


@pytest.mark.parametrize("wrong", [None, 3, "x", [], object()])
def test_what_is_no_model_clip_or_vae_is_refused(modules, bench, wrong):
    links = modules("links")
    with pytest.raises(ValueError, match=r"^Node: model: .*Connect the MODEL of a loader"):
        links.require_model("Node", wrong)
    with pytest.raises(ValueError, match="^Node: clip: .*Connect it"):
        links.require_clip("Node", wrong, "Connect it")
    with pytest.raises(ValueError, match="^Node: vae: .*Connect the VAE"):
        links.require_vae("Node", wrong, bench.model)


def test_a_vae_of_other_channels_and_one_that_a_file_lacks_are_refused_before_any_work(modules, bench):
    links, other = modules("links"), type("VAE", (), {"decode": print, "latent_channels": 4})()
    with pytest.raises(ValueError, match="^Node: vae: it decodes latents of 4 channels, and the model makes 16"):
        links.require_vae("Node", other, bench.model)
    stand_in = modules("comfyui.loading.clip_vae").StandIn("MMDiTLoader: VAE: x holds no VAE. Load one")
    with pytest.raises(ValueError, match="^MMDiTLoader: VAE: x holds no VAE"):
        links.require_vae("Node", stand_in, bench.model)
    with pytest.raises(ValueError, match="^MMDiTLoader: VAE: x holds no VAE"):
        links.require_clip("Node", stand_in, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x " * 30_000, "60,000 characters"), ("a" * 20_000, "a word of 20,000 letters, 'aaaaaaaaaaaaaaaaaaaa'..."),
        ("(" * 2_000, "2,000 deep"), ("红" * 1_001, "a word of 1,001 letters"),
    ],
)  # fmt: skip
def test_a_text_that_a_tokenizer_needs_minutes_for_is_refused(modules, text, words):
    found, right = modules("comfyui.text.limits").why_too_much(text)
    assert words in found and right.startswith("Write ")


@pytest.mark.parametrize("text", ["", "a red circle, " * 500, "(((a:1.2)))", "红色的圆，" * 500, "()" * 2_000])
def test_long_prompts_of_words_are_encoded(modules, text):
    assert modules("comfyui.text.limits").why_too_much(text) is None
