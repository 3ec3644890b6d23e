"""The key map: bit-exact in both directions, complete, and equal to diffusers' own names."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.peers import diffusers_model
from mmdit_core import KNOWN_MODELS, MMDiT, MMDiTConfig
from mmdit_core.checkpoints.families import SD3
from mmdit_core.checkpoints.keymaps import (
    core_name,
    diffusers_shapes,
    expected_shapes,
    join,
    key_map,
    to_diffusers,
)

TINY = {"hidden_size": 32, "num_heads": 4, "depth": 3, "context_dim": 24, "pooled_dim": 12, "pos_embed_max_size": 6}
CONFIGS = {
    "plain": MMDiTConfig(**TINY),
    "one block": MMDiTConfig(**{**TINY, "depth": 1}),
    "qk norm": MMDiTConfig(**TINY, qk_norm="rms"),
    "dual attention": MMDiTConfig(**TINY, qk_norm="rms", dual_attention=(0, 1)),
    "dual attention in the last block, no norm": MMDiTConfig(**TINY, dual_attention=(2,)),
    "patch 1, other channels": MMDiTConfig(**TINY, patch_size=1, in_channels=3, out_channels=5),
    "narrow mlp": MMDiTConfig(**TINY, mlp_ratio=2.7),
    "guidance, no qkv bias": MMDiTConfig(**TINY, guidance_embed=True, qkv_bias=False),
}
IN_DIFFUSERS = ["plain", "one block", "qk norm", "dual attention", "patch 1, other channels"]
COUNTS = {
    "SD3 Medium": (491, 2_028_328_000),
    "SD3.5 Medium": (665, 2_243_171_520),
    "SD3.5 Large": (923, 8_056_627_520),
}


def random_state(config: MMDiTConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) * 0.2).to(dtype)
        for name, shape in expected_shapes(config).items()
    }


def from_diffusers(state, config: MMDiTConfig) -> dict[str, torch.Tensor]:
    rules = key_map(config)
    assert state.keys() == {part for rule in rules.values() for part in rule.diffusers}
    return {name: join([state[part] for part in rule.diffusers], rule) for name, rule in rules.items()}


def shapes_of(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", COUNTS)
def test_published_models_have_their_published_counts(name):
    tensors, parameters = COUNTS[name]
    model = MMDiT(KNOWN_MODELS[name], device="meta")
    assert len(model.state_dict()) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_to_diffusers_and_back_is_bit_exact(name, dtype):
    config = CONFIGS[name]
    state = random_state(config, dtype)
    theirs = to_diffusers(state, config)
    assert shapes_of(theirs) == diffusers_shapes(config)
    back = from_diffusers(theirs, config)
    assert list(back) == list(state)
    for key, tensor in state.items():
        assert torch.equal(back[key].view(torch.uint8), tensor.view(torch.uint8)), key
        assert back[key].dtype == dtype


def test_tensors_that_are_only_renamed_are_not_copied():
    config = CONFIGS["dual attention"]
    state = random_state(config)
    back = from_diffusers(to_diffusers(state, config), config)
    copied = {name for name in state if back[name].data_ptr() != state[name].data_ptr()}
    rules = key_map(config)
    assert copied == {name for name in state if len(rules[name].diffusers) > 1 or rules[name].swap}


def test_only_the_final_and_the_last_context_modulation_are_swapped():
    swapped = {name for name, rule in key_map(CONFIGS["dual attention"]).items() if rule.swap}
    stems = ("final_layer.adaLN_modulation.1", "joint_blocks.2.context_block.adaLN_modulation.1")
    assert swapped == {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_diffusers_name_has_its_name_in_the_core(name):
    for ours, rule in key_map(CONFIGS[name]).items():
        assert {core_name(SD3, part) for part in rule.diffusers} == {ours}


@pytest.mark.parametrize("name", ["", "proj_out.weight.extra", "transformer_blocks.0.attn.to_x.weight", "pos_embed"])
def test_a_name_that_diffusers_does_not_have_is_not_mapped(name):
    assert core_name(SD3, name) is None


def test_a_state_dict_of_another_config_is_an_error():
    config = CONFIGS["qk norm"]
    state = random_state(config)
    with pytest.raises(ValueError, match="12 tensors are missing or surplus for this config: joint_blocks.0.context_b"):
        to_diffusers(state, CONFIGS["plain"])
    first = min(state)
    with pytest.raises(ValueError, match=f"1 tensor is missing or surplus for this config: {first}"):
        to_diffusers({name: tensor for name, tensor in state.items() if name != first}, config)


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_names_and_shapes_are_those_of_diffusers_own_model(name):
    assert diffusers_shapes(CONFIGS[name]) == shapes_of(diffusers_model(CONFIGS[name]).state_dict())


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_the_model_with_converted_weights_is_diffusers_model(name):
    """Weights from diffusers, in float64: swapped halves or a wrong row order would show as errors near 1."""
    config = CONFIGS[name]
    torch.manual_seed(1)
    theirs = diffusers_model(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.15)
    ours = MMDiT(config, device="meta", dtype=torch.float64)
    ours.load_state_dict(from_diffusers(theirs.state_dict(), config), assign=True)
    x = torch.randn(3, config.in_channels, 4 * config.patch_size, 6 * config.patch_size, dtype=torch.float64)
    context = torch.randn(3, 7, config.context_dim, dtype=torch.float64)
    pooled = torch.randn(3, config.pooled_dim, dtype=torch.float64)
    timesteps = torch.tensor([999.0, 512.25, 3.5], dtype=torch.float64)
    with torch.no_grad():
        mine = ours(x, timesteps, context=context, y=pooled)
        other = theirs(x, context, pooled, timesteps, return_dict=False)[0]
    assert other.std() > 0.05
    assert (mine - other).abs().max() <= 1e-5 * other.std()


def test_diffusers_loads_the_result_of_to_diffusers(tmp_path):
    """Through a file, because q, k and v are views that share memory."""
    config = CONFIGS["dual attention"]
    state = random_state(config)
    save_file(to_diffusers(state, config), tmp_path / "theirs.safetensors")
    model = diffusers_model(config)
    model.load_state_dict(load_file(tmp_path / "theirs.safetensors"), strict=True)
    back = from_diffusers(model.state_dict(), config)
    assert all(torch.equal(back[name], state[name]) for name in state)
