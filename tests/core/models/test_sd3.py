"""The model against diffusers' SD3Transformer2DModel, and what it does by itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import SD3Transformer2DModel

from benchmarks.peers import diffusers_model
from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.checkpoints.keymaps import to_diffusers
from mmdit_core.models.checks import LatentTooLarge

TINY = dict(context_dim=48, pooled_dim=40, pos_embed_max_size=12)
CONFIGS = {
    "plain": MMDiTConfig(hidden_size=128, num_heads=2, depth=3, **TINY),
    "qk-norm": MMDiTConfig(hidden_size=96, num_heads=3, depth=2, qk_norm="rms", **TINY),
    "dual": MMDiTConfig(hidden_size=128, num_heads=2, depth=4, qk_norm="rms", dual_attention=(0, 1), **TINY),
}
# One block at the real width, and a last block, which has no text output.
WIDE = {
    "SD3.5 Medium": MMDiTConfig(1536, 24, 2, qk_norm="rms", dual_attention=(0,), pos_embed_max_size=12),
    "SD3.5 Large": MMDiTConfig(2432, 38, 2, qk_norm="rms", pos_embed_max_size=12),
}


def random_model(config: MMDiTConfig, seed: int = 0, std: float = 0.05, **kwargs) -> MMDiT:
    torch.manual_seed(seed)
    model = MMDiT(config, **kwargs).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=std)
    model.pos_embed.normal_()
    return model


def inputs(config: MMDiTConfig, size=(8, 12), batch: int = 3, tokens: int = 21, seed: int = 1):
    torch.manual_seed(seed)
    return {
        "x": torch.randn(batch, config.in_channels, *size),
        "timesteps": torch.rand(batch) * 1000,
        "context": torch.randn(batch, tokens, config.context_dim),
        "y": torch.randn(batch, config.pooled_dim),
    }


def diffusers_twin(model: MMDiT) -> SD3Transformer2DModel:
    with torch.device("meta"):
        twin = diffusers_model(model.config)
    twin.load_state_dict(to_diffusers(model.state_dict(), model.config), strict=True, assign=True)
    return twin.eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


def compare_with_diffusers(config: MMDiTConfig, size, batch: int, std: float = 0.05) -> float:
    model = random_model(config, std=std)
    given = inputs(config, size, batch)
    twin = diffusers_twin(model)
    theirs = twin(given["x"], given["context"], given["y"], given["timesteps"], return_dict=False)[0]
    return relative_error(model(**given), theirs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(8, 8), (6, 14), (24, 4)])
def test_same_velocity_as_diffusers(name, size):
    with torch.no_grad():
        assert compare_with_diffusers(CONFIGS[name], size, batch=3) <= 1e-5


@pytest.mark.parametrize("name", WIDE)
def test_same_velocity_as_diffusers_at_full_width(name):
    with torch.no_grad():
        assert compare_with_diffusers(WIDE[name], (8, 8), batch=1, std=0.02) <= 1e-5


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (1, 3)])
def test_odd_sizes_are_padded_circularly_and_cropped_back(size):
    model = random_model(CONFIGS["plain"])
    given = inputs(model.config, size)
    x = given["x"]
    padded = torch.cat((x, x[:, :, : size[0] % 2]), dim=2)
    padded = torch.cat((padded, padded[:, :, :, : size[1] % 2]), dim=3)
    out = model(**given)
    assert out.shape == x.shape
    whole = model(**{**given, "x": padded})
    assert torch.equal(out, whole[:, :, : size[0], : size[1]])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision_stays_near_fp32(dtype, bound):
    model = random_model(CONFIGS["dual"])
    given = inputs(model.config)
    full = model(**given)
    half = {name: value if name == "timesteps" else value.to(dtype) for name, value in given.items()}
    out = model.to(dtype)(**half)
    assert out.dtype == dtype
    assert relative_error(out.float(), full) < bound


def test_the_timestep_is_embedded_in_fp32_whatever_the_models_dtype():
    model = random_model(CONFIGS["plain"]).to(torch.float16)
    near = model.embed_vector(torch.tensor([999.0, 999.4]), None, dtype=torch.float16)
    assert not torch.equal(near[0], near[1])  # in fp16, 999.4 is 999.5 and its features are off by 0.04


def test_a_latent_beyond_the_positions_gets_an_error_with_its_size_and_the_largest():
    model = random_model(CONFIGS["plain"])
    with pytest.raises(LatentTooLarge, match=r"416 x 128 pixels.*positions cover 192 x 192") as raised:
        model(**inputs(model.config, (16, 52)))
    assert raised.value.size == (416, 128) and raised.value.most == 192


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("x", torch.randn(3, 4, 8, 8), r"latent is \[3, 4, 8, 8\].*\[B, 16, H, W\]"),
        ("context", torch.randn(3, 5, 64), r"context is \[3, 5, 64\].*\[B, L, 48\]"),
        ("context", None, r"context is None.*\[B, L, 48\]"),
        ("y", torch.randn(3, 2048), r"pooled text is \[3, 2048\].*\[B, 40\]"),
    ],
)
def test_wrong_inputs_are_named_with_what_would_fit(name, value, words):
    model = random_model(CONFIGS["plain"])
    with pytest.raises(ValueError, match=words):
        model(**{**inputs(model.config), name: value})


def test_the_general_form_builds_and_runs():
    config = MMDiTConfig(
        hidden_size=1152, num_heads=16, depth=28, patch_size=2, in_channels=16, context_dim=4096, pooled_dim=2048,
        guidance_embed=True, pos_embed_max_size=16,
    )  # fmt: skip
    assert sum(p.numel() for p in MMDiT(config, device="meta").parameters()) > 1e9
    short = replace(config, depth=2)
    model = random_model(short, std=0.02)
    given = inputs(short, (8, 8), batch=2)
    low, high = (model(**given, guidance=torch.full((2,), scale)) for scale in (1.0, 4.0))
    assert low.shape == given["x"].shape and torch.isfinite(low).all()
    assert not torch.allclose(low, high)


def test_config_survives_json_and_refuses_what_does_not_fit():
    config = CONFIGS["dual"]
    assert MMDiTConfig(**json.loads(json.dumps(asdict(config)))) == config
    with pytest.raises(ValueError, match="hidden_size 100 is not a multiple of num_heads 3"):
        MMDiTConfig(hidden_size=100, num_heads=3)
    with pytest.raises(ValueError, match="blocks are 0 to 1"):
        MMDiTConfig(hidden_size=64, num_heads=1, depth=2, dual_attention=(2,))
    with pytest.raises(TypeError, match="width"):
        MMDiTConfig(width=3)
