"""MiniMax H3 as ComfyUI samples it: a video and its sound in one latent, one prompt in a model call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.utils import pack_latents

from tests.nodes.families.oracles import ROUNDING, Bench, difference, identity_in_place
from tests.nodes.families.tiny import FAMILIES, build
from tests.nodes.families.tiny_parts import placed, randn

TINY = replace(FAMILIES["MiniMax H3"], shrink=placed)


@pytest.fixture
def made(bench) -> Bench:
    return Bench(bench.module, TINY, *build(TINY))


def sampled(made: Bench, *controls: Any, model=None, steps: int = 2) -> torch.Tensor:
    """The video and its sound in one row, after some steps of ComfyUI's Euler at cfg 3."""
    latents = comfy.nested_tensor.NestedTensor([randn(TINY.latent, 1), randn((1, 8, 2, 3), 2)])
    attached = made.attach(model or made.model, controls) if controls else model or made.model
    out = comfy.sample.sample_custom(
        attached, latents, 3.0, comfy.samplers.sampler_object("euler"), torch.linspace(1, 0.1, steps + 1),
        made.prompt(1), made.prompt(3), latents * 0.0, seed=5, disable_pbar=True,
    )  # fmt: skip
    return pack_latents(out.unbind())[0]


def test_a_skipped_block_is_the_identity_in_its_place(made):
    plain = sampled(made)
    for number, block in enumerate(made.blocks):
        ours = sampled(made, made.control("skip", (number,)))
        with identity_in_place(made, block):
            assert difference(ours, sampled(made)) <= ROUNDING
        assert difference(ours, plain) > 1e-4


def test_our_sampler_gives_what_comfyuis_does(made, pack):
    latents = comfy.nested_tensor.NestedTensor([randn(TINY.latent, 1), randn((1, 8, 2, 3), 2)])
    sigmas = torch.tensor([1.0, 0.625, 0.25, 0.0])
    out = pack.NODE_CLASS_MAPPINGS["FlowMatchingSampler"]().sample(
        made.model, made.prompt(1), made.prompt(3), {"samples": latents * 0.0}, seed=5, cfg=3.0, sigmas=sigmas
    )[0]["samples"]
    expected = comfy.sample.sample_custom(
        made.model, comfy.sample.prepare_noise(latents, 5), 3.0, comfy.samplers.sampler_object("euler"),
        sigmas, made.prompt(1), made.prompt(3), latents * 0.0, seed=5, disable_pbar=True,
    )  # fmt: skip
    for ours, theirs in zip(out.unbind(), expected.unbind(), strict=True):
        assert difference(ours, theirs) <= ROUNDING


def test_a_skip_outside_its_percent_window_changes_nothing(made, bench):
    window = type(made.control("skip", (0,)).window)(0.0, 0.0)
    assert torch.equal(sampled(made, made.control("skip", (0,), window=window)), sampled(made))


def test_speed_plan_at_1x_changes_nothing_and_at_2x_computes_fewer_steps(made, pack):
    node, calls = pack.NODE_CLASS_MAPPINGS["SpeedPlan"](), []
    handle = made.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        plain = sampled(made, steps=12)
        assert torch.equal(sampled(made, model=node.apply(made.model, "1x (off)")[0], steps=12), plain)
        whole = len(calls)
        assert sampled(made, model=node.apply(made.model, "2x")[0], steps=12).isfinite().all()
    finally:
        handle.remove()
    assert len(calls) - whole < whole / 2  # of two runs
