"""The core's FLUX.1 against diffusers' FluxTransformer2DModel, and what it does by itself."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from benchmarks.peers_flux import diffusers_model, diffusers_velocity
from mmdit_core import Flux, FluxConfig
from mmdit_core.checkpoints.keymaps import to_diffusers
from mmdit_core.models.layers import rotary_embedding, rotate
from tests.core.models.flux_tiny import CONFIGS, TEXT, TOLERANCE, error, inputs, random_model

# Heads as in the published models.
HEADS = FluxConfig(512, 4, depth=1, depth_single_blocks=1, context_dim=64, pooled_dim=32, guidance_embed=True)


def diffusers_twin(model: Flux):
    with torch.device("meta"):
        twin = diffusers_model(model.config)
    twin.load_state_dict(to_diffusers(model.state_dict(), model.config), strict=True, assign=True)
    twin.pos_embed.to_empty(device="cpu")
    return twin.eval()


@pytest.fixture(scope="module")
def pairs():
    models = {name: random_model(config) for name, config in CONFIGS.items()}
    return {name: (model, diffusers_twin(model)) for name, model in models.items()}


@pytest.mark.parametrize("size", [(6, 10), (16, 4), (2, 2)])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_velocity_as_diffusers(pairs, inference, name, size):
    ours, theirs = pairs[name]
    given = inputs(ours.config, size, batch=3)
    found = ours(**given)
    assert found.shape == (3, ours.config.channels_out, *size)
    assert error(found, diffusers_velocity(theirs, **given)) <= TOLERANCE


@pytest.mark.parametrize("ref", [(6, 10), (8, 4)])
def test_a_reference_latent_acts_as_in_diffusers_kontext(pairs, inference, ref):
    ours, theirs = pairs["dev"]
    given = {**inputs(ours.config), "ref_latents": [torch.randn(2, 16, *ref)]}
    found = ours(**given)
    assert error(found, diffusers_velocity(theirs, **given)) <= TOLERANCE
    assert error(found, ours(**{**given, "ref_latents": None})) > 1e-2


def test_same_velocity_as_diffusers_with_heads_of_128(inference):
    ours = random_model(HEADS, std=0.05)
    given = inputs(HEADS, (32, 48), batch=1)
    assert error(ours(**given), diffusers_velocity(diffusers_twin(ours), **given)) <= TOLERANCE


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (1, 3)])
def test_odd_sizes_are_padded_circularly_and_cropped_back(pairs, inference, size):
    model = pairs["dev"][0]
    given = inputs(model.config, size)
    x = given["x"]
    padded = torch.cat((x, x[:, :, : size[0] % 2]), dim=2)
    padded = torch.cat((padded, padded[:, :, :, : size[1] % 2]), dim=3)
    out = model(**given)
    assert out.shape == x.shape
    assert torch.equal(out, model(**{**given, "x": padded})[:, :, : size[0], : size[1]])


def test_one_reference_for_a_whole_batch_and_the_methods_of_placing(pairs, inference):
    model, given = pairs["dev"][0], inputs(CONFIGS["dev"])
    one = [torch.randn(1, 16, 4, 6), torch.randn(1, 16, 5, 4)]
    each = [ref.expand(2, -1, -1, -1) for ref in one]
    found = model(**given, ref_latents=one)
    assert torch.equal(found, model(**given, ref_latents=each))
    assert error(found, model(**given, ref_latents=one, ref_latents_method="index")) > 1e-3
    alone = model(**given, ref_latents=one[:1])
    assert torch.equal(alone, model(**given, ref_latents=one[:1], ref_latents_method="index"))


def test_a_mask_hides_tokens_as_if_they_were_not_there(pairs, inference):
    model, given = pairs["dev"][0], inputs(CONFIGS["dev"])
    tokens = TEXT + 15
    mask = torch.ones(2, tokens, tokens, dtype=torch.bool)
    mask[..., 5:TEXT] = False
    found = model(**given, attention_mask=mask)
    # Texts have no positions, so that the last tokens may go.
    assert error(found, model(**{**given, "context": given["context"][:, :5]})) <= TOLERANCE
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    assert error(model(**given, attention_mask=added), found) <= TOLERANCE


def test_guidance_is_left_out_without_a_value_and_unread_without_an_embedding(pairs, inference):
    dev, given = pairs["dev"][0], inputs(CONFIGS["dev"])
    found = dev(**given)
    without = dev(**{**given, "guidance": None})
    assert error(without, found) > 1e-3
    assert error(dev(**{**given, "guidance": given["guidance"][:1]})[:1], found[:1]) <= TOLERANCE
    schnell, given = pairs["schnell"][0], inputs(CONFIGS["schnell"])
    assert torch.equal(schnell(**given, guidance=torch.tensor([3.5])), schnell(**given))


def test_no_pooled_text_is_zeros(pairs, inference):
    model, given = pairs["dev"][0], inputs(CONFIGS["dev"])
    zeros = {**given, "y": torch.zeros_like(given["y"])}
    assert torch.equal(model(**{**given, "y": None}), model(**zeros))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": torch.randn(2, 4, 6, 10)}, r"Flux: the latent is \[2, 4, 6, 10\]; this model takes \[B, 16, H, W\]"),
        ({"context": torch.randn(2, 5, 23)}, r"Flux: the text context is \[2, 5, 23\]; this model takes \[B, L, 24\]"),
        ({"context": None}, "Flux: the text context is None"),
        ({"y": torch.randn(2, 21)}, r"Flux: the pooled text is \[2, 21\]; this model takes \[B, 20\]"),
        ({"context": torch.randn(2, 5, 24).half()}, "give all one dtype"),
        ({"guidance": torch.tensor(3.5)}, r"Flux: the guidance is \[\]; this model takes \[B\], here \[2\]"),
        ({"guidance": torch.ones(3)}, r"Flux: the guidance is \[3\]"),
        ({"ref_latents": [torch.randn(2, 4, 6, 10)]}, r"reference latent is \[2, 4, 6, 10\].*\[B, 16, h, w\] with B 1"),
        ({"ref_latents": [torch.randn(3, 16, 6, 10)]}, r"reference latent is \[3, 16, 6, 10\].*B 1 or 2"),
        ({"ref_latents_method": "uxo"}, "ref_latents_method is 'uxo'; it must be one of offset, index"),
    ],
)
def test_wrong_inputs_are_named_with_what_would_fit(pairs, changed, words):
    with pytest.raises(ValueError, match=words):
        pairs["dev"][0](**{**inputs(CONFIGS["dev"]), **changed})


def test_patches_after_the_blocks_of_each_kind_get_its_streams(pairs, inference):
    """ComfyUI's FLUX calls none; the protocol is that of its other models."""
    model, given, seen = pairs["dev"][0], inputs(CONFIGS["dev"]), []

    def double(args):
        seen.append(("double", args["block_index"], args["img"].shape[1], args["txt"].shape[1]))
        assert args["x"] is given["x"]
        return {"img": args["img"] * 1.1, "txt": args["txt"]}

    def single(args):
        seen.append(("single", args["block_index"], args["img"].shape[1], args["txt"]))
        return {"img": args["img"] * 1.1}

    def hooked(args, extra):
        out = extra["original_block"](args)
        return {name: value * 1.1 if name == "img" else value for name, value in out.items()}

    patched = model(**given, transformer_options={"patches": {"double_block": [double], "single_block": [single]}})
    keys = [*(("double_block", i) for i in range(2)), *(("single_block", i) for i in range(3))]
    options = {"patches_replace": {"dit": dict.fromkeys(keys, hooked)}}
    assert torch.equal(patched, model(**given, transformer_options=options))
    assert seen == [*(("double", i, 15, TEXT) for i in range(2)), *(("single", i, 15 + TEXT, None) for i in range(3))]


def test_a_call_changes_neither_its_inputs_nor_its_options(pairs, inference):
    model, given = pairs["dev"][0], {**inputs(CONFIGS["dev"]), "ref_latents": [torch.randn(2, 16, 4, 4)]}
    kept = {name: value.clone() for name, value in given.items() if torch.is_tensor(value)}
    options = {"patches": {}, "cond_or_uncond": [0, 1]}
    control = {"input": [torch.ones(2, 4, 64)], "output": [torch.ones(2, 4, 64)]}
    first = model(**given, control=control, transformer_options=options)
    assert torch.equal(first, model(**given, control=control, transformer_options=options))
    assert options == {"patches": {}, "cond_or_uncond": [0, 1]}
    assert all(torch.equal(given[name], value) for name, value in kept.items())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision_stays_near_fp32(inference, dtype, bound):
    model, given = random_model(CONFIGS["dev"]), inputs(CONFIGS["dev"])
    full = model(**given)
    half = {name: value if name in ("timesteps", "guidance") else value.to(dtype) for name, value in given.items()}
    out = model.to(dtype)(**half)
    assert out.dtype == dtype and error(out.float(), full) < bound


def test_float16_overflows_are_held_at_its_largest_value(inference):
    model, given = random_model(CONFIGS["dev"]).half(), inputs(CONFIGS["dev"])
    model.double_blocks[0].txt_mlp[2].bias.fill_(60000.0)
    model.double_blocks[0].txt_mod.lin.bias.fill_(10.0)
    texts = []
    model.double_blocks[0].register_forward_hook(lambda _, args, out: texts.append(out[1]))
    model(**{name: value if name in ("timesteps", "guidance") else value.half() for name, value in given.items()})
    assert texts[0].max() == 65504 and texts[0].isfinite().all()


def test_rotations_turn_pairs_by_position_times_frequency():
    torch.manual_seed(0)
    ids, x = torch.tensor([[[1.0, 5.0], [0.0, 200.0]]]), torch.randn(1, 1, 2, 6, dtype=torch.float64)
    pe = rotary_embedding(ids, (2, 4), 10000.0)
    found = torch.view_as_complex(rotate(x, pe.double()).unflatten(-1, (3, 2)))
    angles = torch.tensor([[1.0, 5.0, 0.05], [0.0, 200.0, 2.0]], dtype=torch.float64)
    expected = torch.view_as_complex(x.unflatten(-1, (3, 2))) * torch.polar(torch.ones_like(angles), angles)
    assert (found - expected).abs().max() <= 1e-6


def test_every_parameter_has_a_gradient_after_a_backward_pass():
    model, given = random_model(CONFIGS["dev"]).requires_grad_(True), inputs(CONFIGS["dev"])
    model(**given).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]


def test_config_survives_json_and_refuses_what_does_not_fit():
    config = CONFIGS["Fill"]
    assert FluxConfig(**json.loads(json.dumps(asdict(config)))) == config
    with pytest.raises(ValueError, match="hidden_size 100 is not a multiple of num_heads 3"):
        FluxConfig(hidden_size=100, num_heads=3)
    with pytest.raises(ValueError, match="depth_single_blocks is 0; it must be at least 1"):
        FluxConfig(depth_single_blocks=0)
    for axes in ((16, 56), (16, 56, 54), (15, 57, 56)):
        with pytest.raises(ValueError, match="three even numbers that add up to a head's 128 channels"):
            FluxConfig(axes_dim=axes)
