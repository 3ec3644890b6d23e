"""Controls on the core's Qwen-Image: the same as on ComfyUI's own with the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdit_core.config import QwenImageConfig
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall
from mmdit_core.control.spec import POSITIVE, BlockControl
from mmdit_core.models.qwen_image import QwenImage
from tests.core.control.first_args import captured
from tests.nodes.control import test_controls_qwen as on_comfyui
from tests.nodes.control.test_controls_qwen import CALL, DEPTH, MASK, MASKS, TEXT, error, other_context

model = on_comfyui.model  # the fixture: ComfyUI's
SIGMAS = torch.tensor([0.5, 0.25, 0.125, 1.0])  # whose timesteps round alike in both
ALL = tuple(range(DEPTH))


@pytest.fixture(scope="module")
def core(model):
    made = QwenImage(QwenImageConfig(hidden_size=64, num_heads=2, depth=DEPTH, context_dim=24, axes_dim=(8, 12, 12)))
    made.load_state_dict(model.state_dict())
    return made.eval().requires_grad_(False)


def run(core, controls=(), mask=None, block_calls=None, call=CALL, existing=None, **changed):
    """As `on_comfyui.run`, for the core's model, whose block hooks are given the mask."""
    given = {name: value for name, value in on_comfyui.inputs().items() if name != "timestep"}
    given |= {"timesteps": 1000 * SIGMAS, "attention_mask": mask, **changed}
    call = replace(call, first_args=captured(core, call, {**given, "attention_mask": None}))
    hooks = compile_controls(controls, call, existing or {}, block_calls)
    return core(**given, transformer_options={"patches_replace": {"dit": {**(existing or {}), **hooks}}})


CONTROLS = {
    "nothing": [],
    "skip": [BlockControl("skip", (0, 2))],
    "skip, one branch": [BlockControl("skip", (1, 3), branch="negative")],
    "disable": [BlockControl("disable", (1,))],
    "disable, one branch": [BlockControl("disable", (0, 3), branch="positive")],
    "disable in the block": [BlockControl("disable", (1, 2), scope="block")],
    "residual": [BlockControl("boost", (0, 2), 2.0)],
    "attention": [BlockControl("boost", (1, 2), 3.0, mode="attention", branch="negative")],
    "value": [BlockControl("boost", ALL, 0.5, mode="value")],
    "phrase": [BlockControl("boost", ALL, 2.0, mode="attention", phrases=("circle",))],
    "several": [
        BlockControl("boost", (1, 2), 2.0, phrases=("red",)),
        BlockControl("boost", (1,), 2.0, mode="value"),
        BlockControl("skip", (1, 2), branch="negative"),
        BlockControl("disable", (3,)),
    ],
}


@MASKS
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_acts_as_on_comfyuis_model(core, model, name, mask):
    counts = BlockCallCount(), BlockCallCount()
    ours = run(core, CONTROLS[name], mask, counts[0])
    theirs = on_comfyui.run(model, CONTROLS[name], mask, block_calls=counts[1], timestep=SIGMAS)
    assert error(ours, theirs) <= 1e-5
    assert (error(ours, run(core, mask=mask)) > 1e-4) == (name != "nothing")
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["skip, one branch", "disable", "attention", "several"])
def test_a_control_acts_as_on_comfyuis_model_next_to_references_at_timestep_zero(core, model, name):
    torch.manual_seed(4)
    more = {"ref_latents": [torch.randn(4, 16, 1, 6, 4)], "ref_latents_method": "index_timestep_zero"}
    ours = run(core, CONTROLS[name], **more)
    assert error(ours, on_comfyui.run(model, CONTROLS[name], timestep=SIGMAS, **more)) <= 1e-5
    assert error(ours, run(core, **more)) > 1e-4


@pytest.mark.parametrize("length", [TEXT, 4, 60])
@pytest.mark.parametrize("chosen", [(0,), (1, 3), ALL])
def test_a_block_prompt_acts_as_on_comfyuis_model(core, model, chosen, length):
    controls = [BlockControl("prompt", chosen, context=other_context(length)), BlockControl("skip", (2,))]
    ours = run(core, controls)
    assert error(ours, on_comfyui.run(model, controls, timestep=SIGMAS)) <= 1e-5
    assert error(ours, run(core, controls[1:])) > 1e-4


def test_a_block_prompt_in_all_blocks_next_to_a_masked_prompt_is_that_prompt(core):
    other = other_context(5)
    call = ModelCall(DEPTH, 0, (POSITIVE,), batch=4)
    ours = run(core, [BlockControl("prompt", ALL, context=other)], MASK, call=call)
    assert error(ours, run(core, context=other.expand(4, -1, -1))) <= 1e-5
    assert error(ours, run(core, mask=MASK)) > 1e-3


def rows_run(core, controls, mask=None):
    rows = []
    handles = [
        block.img_mlp.register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
        for block in core.transformer_blocks
    ]
    try:
        run(core, controls, mask)
    finally:
        for handle in handles:
            handle.remove()
    return rows


@MASKS
def test_skipping_one_branch_runs_fewer_rows_with_a_mask_too(core, mask):
    assert rows_run(core, CONTROLS["skip, one branch"], mask) == [4, 2, 4, 2]
    assert rows_run(core, CONTROLS["skip"], mask) == [4, 4]


def test_a_hook_that_is_there_is_chained(core):
    calls = []

    def hook(args, extra):
        calls.append(args["attn_mask"].shape)
        return extra["original_block"](args)

    existing = {("double_block", 1): hook}
    ours = run(core, CONTROLS["several"], MASK, existing=existing)
    assert torch.equal(ours, run(core, CONTROLS["several"], MASK)) and calls == [(2, TEXT)]
