"""Qwen-Image against diffusers' QwenImageTransformer2DModel, and what it does by itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from mmdit_core.config import REFERENCE_METHODS, QwenImageConfig
from mmdit_core.models.latents import placed
from mmdit_core.models.qwen_image import QwenImage
from tests.core.models.tiny_qwen import (
    MASK,
    REFERENCES,
    TINY,
    diffusers_twin,
    diffusers_velocity,
    error,
    inputs,
    random_model,
    references,
)

# Heads and text as wide as the published ones.
WIDE = QwenImageConfig(hidden_size=256, num_heads=2, depth=2)
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def twin(model):
    return diffusers_twin(model)


@pytest.mark.parametrize("count", REFERENCES)
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (4, 28)])
def test_same_velocity_as_diffusers(model, twin, size, mask, count):
    given = inputs(size) | {"attention_mask": mask, "ref_latents": references(REFERENCES[count])}
    assert error(model(**given), diffusers_velocity(twin, **given)) <= 1e-5


@pytest.mark.parametrize("count", ["one", "two"])
def test_references_at_timestep_zero_as_in_diffusers(count):
    model = random_model(replace(TINY, reference_method="index_timestep_zero"))
    given = inputs() | {"ref_latents": references(REFERENCES[count])}
    theirs = diffusers_velocity(diffusers_twin(model), **given)
    assert error(model(**given), theirs) <= 1e-5
    assert error(model(**given, ref_latents_method="index"), theirs) > 1e-3


def test_diffusers_counts_an_odd_number_of_rows_or_columns_from_one_further(model, twin):
    """ComfyUI's positions of 3 rows are -1, 0, 1, diffusers' -2, -1, 0. All else is the same."""

    def moved(args):
        ids = args["img_ids"].clone()
        image, reference = ids[:, : 3 * 5], ids[:, 3 * 5 :]
        image[..., 1:] -= 1
        reference[..., 1] -= 1  # 3 rows and 4 columns
        return {**args, "img_ids": ids}

    given = inputs((6, 10)) | {"ref_latents": references([(6, 8)])}
    theirs = diffusers_velocity(twin, **given)
    assert error(model(**given, transformer_options={"patches": {"post_input": [moved]}}), theirs) <= 1e-5
    assert error(model(**given), theirs) > 1e-4


def test_same_velocity_as_diffusers_with_wide_heads():
    model = random_model(WIDE, std=0.05)
    given = inputs((8, 8), batch=1, config=WIDE)
    assert error(model(**given), diffusers_velocity(diffusers_twin(model), **given)) <= 1e-5


def test_the_second_condition_of_layered_as_in_diffusers():
    model = random_model(replace(TINY, additional_t_cond=True))
    given, kind = inputs(), torch.tensor([0, 1])
    reference = references([(8, 12)])  # Layered takes one, with the index -1
    theirs = diffusers_velocity(diffusers_twin(model), **given, ref_latents=reference, additional_t_cond=kind)
    ours = model(**given, additional_t_cond=kind, ref_latents=reference, ref_latents_method="negative_index")
    assert error(ours, theirs) <= 1e-5
    plain = model(**given, ref_latents=reference, ref_latents_method="negative_index")
    assert error(plain[:1], ours[:1]) <= 1e-5 and error(plain[1:], ours[1:]) > 1e-3


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (1, 3)])
def test_odd_sizes_are_padded_circularly_and_cropped_back(model, size):
    given = inputs(size)
    x = given["x"]
    padded = torch.cat((x, x[:, :, : size[0] % 2]), dim=2)
    padded = torch.cat((padded, padded[:, :, :, : size[1] % 2]), dim=3)
    out = model(**given)
    assert out.shape == x.shape
    assert torch.equal(out, model(**{**given, "x": padded})[:, :, : size[0], : size[1]])


def test_an_axis_of_layers_is_taken_and_given_back(model):
    given = inputs((7, 9))
    out = model(**{**given, "x": given["x"][:, :, None]})
    assert out.shape == (2, 16, 1, 7, 9) and torch.equal(out[:, :, 0], model(**given))
    layers = torch.randn(2, 16, 3, 7, 9)
    assert model(**{**given, "x": layers}).shape == layers.shape


def test_a_reference_for_all_rows_is_one_for_each(model):
    given, (one,) = inputs(), references([(6, 5)], batch=1)
    shared = model(**given, ref_latents=[one])
    assert torch.equal(shared, model(**given, ref_latents=[one[:, :, None].expand(2, -1, -1, -1, -1)]))
    assert torch.equal(model(**given, ref_latents=[]), model(**given))
    assert error(shared, model(**given)) > 1e-3


def test_offsets_place_references_side_by_side():
    sizes = [torch.empty(1, 16, *size) for size in ((8, 12), (6, 6), (10, 4))]
    # the second below the first, as 6 + 8 <= 6 + 12; the third to the right of both, as 10 + 14 > 4 + 12
    assert list(placed(sizes, "offset")) == [(1, 0, 0), (1, 8, 0), (1, 0, 12)]
    assert list(placed(sizes, "negative_index")) == [(-1, 0, 0), (-2, 0, 0), (-3, 0, 0)]


def test_masked_tokens_do_not_matter_and_masks_of_any_kind_are_one(model):
    given = inputs()
    expected = model(**given, attention_mask=MASK)
    changed = given["context"].clone()
    changed[MASK == 0] = 5.0
    assert error(model(**{**given, "context": changed}, attention_mask=MASK), expected) <= 1e-5
    added = torch.zeros(MASK.shape).masked_fill(MASK == 0, -torch.inf)
    for mask in (MASK.bool(), MASK.int(), added):
        assert error(model(**given, attention_mask=mask), expected) <= 1e-6
    assert error(model(**given), expected) > 1e-3
    # A row alone with its own tokens: what the mask hides is as if it were not there.
    alone = {name: value[:1] for name, value in given.items()} | {"context": given["context"][:1, :4]}
    assert error(model(**alone), expected[:1]) <= 1e-5
    assert torch.equal(model(**given, attention_mask=MASK[:1]), model(**given, attention_mask=MASK[[0, 0]]))


def test_a_hook_that_does_not_know_the_mask_keeps_it(model):
    given = inputs() | {"attention_mask": MASK}
    names = ("img", "txt", "vec", "pe", "transformer_options")  # what ComfyUI's model gives to a hook

    def hook(args, extra):
        return extra["original_block"]({name: args[name] for name in names})

    hooks = {("double_block", index): hook for index in range(TINY.depth)}
    hooked = model(**given, transformer_options={"patches_replace": {"dit": hooks}})
    assert torch.equal(hooked, model(**given))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision_stays_near_fp32(dtype, bound):
    model = random_model(std=0.05)
    given = inputs() | {"attention_mask": MASK}
    full = model(**given)
    half = {name: value.to(dtype) if name in ("x", "context") else value for name, value in given.items()}
    out = model.to(dtype)(**half)
    assert out.dtype == dtype and error(out.float(), full) < bound


WRONG = {
    "channels": ({"x": torch.randn(2, 4, 8, 8)}, r"latent is \[2, 4, 1, 8, 8\].*\[B, 16, H, W\]"),
    "rank": ({"x": torch.randn(16, 8, 8)}, r"latent is \[16, 8, 8\]"),
    "text width": ({"context": torch.randn(2, 7, 25)}, r"context is \[2, 7, 25\].*\[B, L, 24\]"),
    "no text": ({"context": None}, r"context is None.*\[B, L, 24\]"),
    "pooled": ({"y": torch.randn(2, 40)}, "pooled text y is given; this model has no such input"),
    "guidance": ({"guidance": torch.ones(2)}, "guidance is given; this model has no such input"),
    "control": ({"control": {"input": [None], "output": [torch.ones(1)]}}, "residuals under output.*under input"),
    "mask": ({"attention_mask": torch.ones(2, 6)}, r"mask is \[2, 6\]; this context takes \[1 or 2, 7\]"),
    "method": ({"ref_latents_method": "uno"}, "ref_latents_method is 'uno'; it must be one of index, "),
    "reference": (
        {"ref_latents": [torch.randn(3, 16, 8, 8)]},
        r"reference latent is \[3, 16, 8, 8\]; this model takes \[B, 16, h, w\] with B 1 or 2",
    ),
    "second condition": ({"additional_t_cond": torch.ones(2)}, "additional_t_cond is given; .* does not embed it"),
    "dtype": ({"context": torch.randn(2, 7, 24).half()}, "context torch.float16, weights torch.float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_named_with_what_would_fit(model, case):
    changed, words = WRONG[case]
    with pytest.raises(ValueError, match=f"QwenImage: .*{words}"):
        model(**{**inputs(), **changed})


def test_two_conditions_and_references_at_timestep_zero_are_refused():
    model = random_model(replace(TINY, additional_t_cond=True))
    more = {"ref_latents": references([(4, 4)]), "ref_latents_method": "index_timestep_zero"}
    with pytest.raises(ValueError, match="additional_t_cond is not defined with references at timestep 0"):
        model(**inputs(), **more, additional_t_cond=torch.tensor([0, 1]))


def test_the_published_size_runs_on_a_device_without_values():
    """So every tensor that a call makes is on the device of its inputs."""
    model = QwenImage(replace(QwenImageConfig(), depth=1), device="meta", dtype=torch.bfloat16)
    given = {
        "x": torch.empty(2, 16, 3, 65, 64, dtype=torch.bfloat16, device="meta"),
        "timesteps": torch.empty(2, device="meta"),
        "context": torch.empty(2, 20, 3584, dtype=torch.bfloat16, device="meta"),
        "attention_mask": torch.empty(2, 20, dtype=torch.long, device="meta"),
        "ref_latents": [torch.empty(1, 16, 1, 33, 40, dtype=torch.bfloat16, device="meta")],
    }
    for method in REFERENCE_METHODS:
        out = model(**given, ref_latents_method=method)
        assert out.shape == given["x"].shape and out.dtype == torch.bfloat16 and out.is_meta
    assert sum(p.numel() for p in QwenImage(QwenImageConfig(), device="meta").parameters()) == 20_430_401_088


def test_config_survives_json_and_refuses_what_does_not_fit():
    config = replace(TINY, reference_method="negative_index")
    assert QwenImageConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert QwenImageConfig().axes_dim == (16, 56, 56)
    with pytest.raises(ValueError, match="hidden_size 100 is not a multiple of num_heads 3"):
        QwenImageConfig(hidden_size=100, num_heads=3)
    with pytest.raises(
        ValueError, match=r"axes_dim is \(8, 12, 10\); it must be three even numbers that add up to a head's 32"
    ):
        replace(TINY, axes_dim=(8, 12, 10))
    with pytest.raises(ValueError, match="reference_method is 'next'; it must be one of index, "):
        replace(TINY, reference_method="next")
    with pytest.raises(ValueError, match="depth is 0"):
        replace(TINY, depth=0)


def test_every_parameter_has_a_gradient():
    with torch.inference_mode(False), torch.enable_grad():
        model = random_model().requires_grad_(True)
        model(**inputs()).square().mean().backward()
        # The text is unused after the last block's attention.
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    last = f"transformer_blocks.{TINY.depth - 1}."
    assert without == {name for name in without if name.startswith((f"{last}txt_", f"{last}attn.to_add_out"))}
