"""Controls on a MODEL whose blocks another node replaced: they work exactly, or an error says so."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import pytest
import torch

from tests.nodes.control.rows_bench import ROUNDING, attached, controls, guided, guider, prompts, sample
from tests.nodes.families.oracles import Bench, difference
from tests.nodes.families.tiny import FAMILIES, FEW

CALLING = [name for name in FEW if name != "SD3"]  # ComfyUI's SD3 calls no wrapper next to the network


class Whole(torch.nn.Module):
    """One module that runs all blocks, as first-block caches put it in their place."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)

    def forward(self, *args, **kwargs):
        raise AssertionError("the blocks must not run")


class Around(torch.nn.Module):
    """A module around one block."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


@contextmanager
def replaced(bench, make):
    """The lists of blocks replaced while the body runs. Args: make, of a list of blocks."""
    network, family = bench.model.model.diffusion_model, bench.family
    names = [name for name in (family.double, family.single) if name]
    before = {name: getattr(network, name) for name in names}
    for name in names:
        setattr(network, name, make(before[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(network, name, before[name])


def in_a_list(blocks):
    return torch.nn.ModuleList([Whole(blocks)])


def bare(blocks):
    return Whole(blocks)


@pytest.fixture(scope="module", params=FEW)
def case(bench, request):
    made = Bench.make(bench.module, request.param)
    return made, prompts(made)


REPLACED = r"another node replaced the model's \d blocks by [12] \(Whole\)"
NAMES = ("skip negative", "boost positive", "disable negative", "prompt")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [in_a_list, bare])
def test_one_module_in_the_place_of_all_blocks(case, name, make):
    bench, conds = case
    model = attached(bench, controls(bench)[name])
    with replaced(bench, make), pytest.raises(ValueError, match=REPLACED):
        sample(bench, guider(model, conds))

    def inside(apply_model, args):
        with replaced(bench, make):
            return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(inside)
    with pytest.raises(ValueError, match=REPLACED):
        sample(bench, guider(model, conds))


@pytest.mark.parametrize("family", CALLING)
def test_one_module_in_the_place_of_all_blocks_next_to_the_network(bench, family):
    made = Bench.make(bench.module, family)
    conds = prompts(made)

    def inside(executor, *args, **kwargs):
        with replaced(made, in_a_list):
            return executor(*args, **kwargs)

    for name in NAMES:
        model = attached(made, controls(made)[name])
        model.add_wrapper_with_key("diffusion_model", "another_pack", inside)
        with pytest.raises(ValueError, match=REPLACED):
            sample(made, guider(model, conds))


@pytest.mark.parametrize("name", NAMES)
def test_a_module_around_each_block(case, name):
    bench, conds = case
    control = controls(bench)[name]
    right = guided(bench, conds, control)
    with replaced(bench, lambda blocks: torch.nn.ModuleList([Around(block) for block in blocks])):
        ours = sample(bench, guider(attached(bench, control), conds))
    assert difference(ours, right) <= ROUNDING


@pytest.mark.parametrize("family", [name for name in CALLING if name not in ("Z-Image", "Krea 2")])
def test_blocks_that_run_without_hooks_are_noticed_in_the_first_call(bench, family):
    """A node drops the hooks, or runs the network in its own way."""
    made = Bench.make(bench.module, family)
    conds = prompts(made)

    def without(executor, *args, **kwargs):
        for options in [*args, *kwargs.values()]:
            if isinstance(options, dict) and "patches_replace" in options:
                options["patches_replace"] = {}
        return executor(*args, **kwargs)

    model = attached(made, controls(made)["skip negative"])
    model.add_wrapper_with_key("diffusion_model", "another_pack", without)
    with pytest.raises(ValueError, match="another node runs the model's blocks in its own way"):
        sample(made, guider(model, conds))


@pytest.mark.parametrize("family", CALLING)
def test_a_cache_that_skips_the_network_stays_allowed(bench, family):
    made = Bench.make(bench.module, family)
    conds, kept, runs = prompts(made), [], []

    def every_second(executor, *args, **kwargs):
        kept.append(kept[-1] if len(kept) % 2 else executor(*args, **kwargs))
        return kept[-1]

    def look(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        runs.append(made.of("comfyui.patching").run_of(executor.class_obj.model_options["transformer_options"]))
        return out

    control = controls(made)["skip both"]
    model = attached(made, control)
    model.add_wrapper_with_key("diffusion_model", "another_pack", every_second)
    model.add_wrapper_with_key("outer_sample", "test", look)
    sample(made, guider(model, conds), (1.0, 0.75, 0.3, 0.1, 0.0))
    (run,) = runs
    assert (run.requested.calls, run.computed.calls) == (4, 2)
    # What did not run is not counted as skipped.
    assert (run.block_calls.total, run.block_calls.skipped) == (2 * 2 * len(made.blocks), 2 * 2)


@pytest.mark.parametrize("name", [name for name, tiny in FAMILIES.items() if name in ("Z-Image", "Lumina2", "Krea 2")])
def test_the_table_names_the_arguments_of_a_block_in_order(bench, name):
    made = Bench.make(bench.module, name)
    parameters = list(inspect.signature(type(made.blocks[0]).forward).parameters)[1:]
    assert list(made.family.arguments) == parameters


def test_our_network_with_one_module_for_all_blocks_says_so(bench):
    model = bench.attach(bench.model, [bench.module("comfyui.patching").BlockControl("skip", (1,))])
    network = bench.model.model.diffusion_model
    before = network.joint_blocks
    network.joint_blocks = in_a_list(before)
    try:
        with pytest.raises(ValueError, match=r"another node replaced the model's 2 blocks by 1 \(Whole\)"):
            bench.run(model=model)
    finally:
        network.joint_blocks = before
