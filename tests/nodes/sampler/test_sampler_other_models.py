"""FlowMatchingSampler on ComfyUI's own SD3, FLUX and Qwen-Image models: the same guarantees as on our core."""

from __future__ import annotations

import math

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import pytest
import torch

from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.sigma import flux_mu
from mmdit_core.flow.window import Window

FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=20, context_in_dim=24,
    hidden_size=64, num_heads=2, mlp_ratio=4.0, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000,
    qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
QWEN = dict(
    image_model="qwen_image", in_channels=64, out_channels=16, num_layers=2, attention_head_dim=32,
    num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
)  # fmt: skip


def as_host_model(description):
    """A MODEL of random weights, as ComfyUI's loaders make it of a file."""
    description.set_inference_dtype(torch.float32, None)
    base = description.get_model({}, "", device=torch.device("cpu"))
    source = torch.Generator().manual_seed(7)
    for parameter in base.diffusion_model.parameters():
        parameter.requires_grad_(False).copy_(0.1 * torch.randn(parameter.shape, generator=source))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)


def text(seed: int, width: int, pooled: int):
    source = torch.Generator().manual_seed(seed)
    context = torch.randn(1, 7, width, generator=source)
    return [[context, {"pooled_output": torch.randn(1, pooled, generator=source), "guidance": 3.5}]]


@pytest.fixture(scope="module", params=["sd3", "flux", "qwen"])
def other(request, bench, tiny_file):
    """Inputs that put another model on the bench."""
    if request.param == "sd3":
        return {"model": comfy.sd.load_diffusion_model(str(tiny_file))}
    made = comfy.supported_models.Flux(FLUX) if request.param == "flux" else comfy.supported_models.QwenImage(QWEN)
    return {"model": as_host_model(made), "positive": text(1, 24, 20), "negative": text(2, 24, 20)}


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


def test_comfyuis_sd3_and_ours_give_one_image(bench, tiny_file):
    theirs = comfy.sd.load_diffusion_model(str(tiny_file))
    for dials in ({}, {"guidance": "apg", "cfg_end": 0.5, "solver": "unipc"}):
        assert error(bench.run(model=theirs, **dials), bench.run(**dials)) <= 1e-3


def test_windows_save_the_negative_and_the_calls_are_reported(bench, other):
    calls = bench.facts(steps=4, cfg_end=0.5, shift=1.0, **other)["calls"]
    assert (calls["model"], calls["positive_rows"], calls["negative_rows"]) == (4, 4, 2)


def test_halves_are_the_whole(bench, other):
    for dials in ({"solver": "unipc"}, {"solver": "euler_ancestral", "batch_noise": "per image"}):
        latent = bench.empty(2)
        half = bench.all(latent, end_step=3, **dials, **other)[0]
        whole = bench.run(latent, **dials, **other)
        assert error(bench.run(half, start_step=3, **dials, **other), whole) <= 1e-5


def test_reuse_is_a_full_run(bench, other):
    node = bench.module("sampler.node").FlowMatchingSampler()
    boost = BlockControl("boost", (0,), strength=2.0, window=Window(0.5))
    changed = {**other, "model": bench.attach(other["model"], [boost])}
    bench.run(node=node, reuse=True, solver="ab3", **other)
    written = {}
    made = bench.all(node=node, reuse=True, solver="ab3", extra_pnginfo=written, unique_id="1", **changed)[0]
    assert written["mmdit_sampler"]["1"]["steps"]["reused"] >= 2
    assert torch.equal(made["samples"], bench.run(solver="ab3", **changed))


def test_a_batch_is_its_images(bench, other):
    batch = bench.run(bench.empty(2), batch_noise="per image", **other)
    for k in range(2):
        assert error(batch[k : k + 1], bench.run(seed=5 + k, **other)) <= 1e-4


def test_the_kinds_of_blocks_are_reported_as_the_family_names_them(bench, other):
    double = hasattr(other["model"].model.diffusion_model, "double_blocks")
    expected = "blocks double 0-1, single 2-3" if double else "blocks joint 0-"
    assert expected in bench.all(steps=1, **other)[2].splitlines()[0]


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ((("main", 30),), ", blocks main 0-29"),
        ((("blocks", 28),), ", blocks 0-27"),
        ((("double", 19), ("single", 38)), ", blocks double 0-18, single 19-56"),
        ((), ""),
    ],
)
def test_each_kind_has_its_range_in_the_summary(bench, sections, text):
    assert bench.module("sampler.report")._blocks({"sections": sections}) == text


def test_a_column_of_the_contact_sheet_names_a_second_kind(bench):
    named = bench.module("analysis.figures")._block_name
    flux = (("double", 19), ("single", 38))
    assert [named(block, flux) for block in (3, 19, 56)] == ["block 3", "19 (s0)", "56 (s37)"]
    assert named(7, (("main", 30),)) == "block 7"


def test_fluxs_rule_counts_the_models_tokens(bench, other):
    facts = bench.facts(bench.empty(size=(12, 9)), size_shift="flux", steps=2, **other)
    assert facts["shift"] == pytest.approx(math.exp(flux_mu(6 * 5)), abs=1e-6)


@torch.no_grad()  # which parameters of ComfyUI 0.24.0 need to be changed in place
def test_the_block_that_breaks_is_named(bench, other):
    core = other["model"].model.diffusion_model
    names = ("joint_blocks", "double_blocks", "transformer_blocks")
    blocks = next(getattr(core, name) for name in names if hasattr(core, name))
    weights = [p for name, p in blocks[1].named_parameters() if "img_mlp" in name or "x_block.mlp.fc2" in name]
    places = [(weights[-1], 1)]
    if hasattr(core, "single_blocks"):
        places.append((core.single_blocks[1].linear2.bias, 3))  # numbered through: after two double blocks
    for weight, number in places:
        kept = weight.clone()
        weight.fill_(math.inf)
        with pytest.raises(ValueError, match=f"step 1 of 6 .* and the negative prediction: block {number} gives it"):
            bench.run(**other)
        weight.copy_(kept)
    assert torch.isfinite(bench.run(**other)).all()
