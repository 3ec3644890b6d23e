"""Modulation tables where others act on a run's calls: no bit changes, and the count says what was computed and why."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import comfy.model_management as management
import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel

from tests.nodes.families.modulated import STEPS, Runs, assert_same
from tests.nodes.families.oracles import Bench, randn
from tests.nodes.families.tiny import FAMILIES, FLUX, build

NAMES = ("FLUX.1 dev", "Qwen-Image")
ONE_OF_EACH = pytest.mark.parametrize(("runs", "sample"), [(NAMES[0], "KSampler"), (NAMES[1], "ours")], indirect=True)
CHANGED = "a vector that is not the schedule's"
OFF_SCHEDULE = "a sigma between the schedule's points"
LIMIT = "the memory limit is under the rows of one step"
KINDS = comfy.patcher_extension.WrappersMP


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(params=NAMES)
def runs(bench, monkeypatch, request):
    return Runs.of(monkeypatch, Bench.make(bench.module, request.param, 3.0, 2))


@pytest.fixture(params=["KSampler", "ours"])
def sample(runs, request):
    """A run of a MODEL: with the node by KSampler, by our sampler without it."""

    def run(model=None, **given):
        if request.param == "ours":
            return lambda: runs.ours(model, **given)
        made = runs.with_node(model)
        return lambda: runs.ksampler(made, **given)

    return run


# Other nodes' wrappers and hooks: (MODEL) -> it, with one of them. True if it changes the vectors of all calls.


def function_wrapper(model, factor):
    def wrapper(apply, given):
        return apply(given["input"], given["timestep"] * factor, **given["c"])

    model.set_model_unet_function_wrapper(wrapper)


def apply_wrapper(model, factor):
    def wrapper(executor, x, t, *args, **kwargs):
        return executor(x, t * factor, *args, **kwargs)

    model.add_wrapper_with_key(KINDS.APPLY_MODEL, "another node", wrapper)


def network_wrapper(model, factor):
    def wrapper(executor, x, timestep, *args, **kwargs):
        return executor(x, timestep * factor, *args, **kwargs)

    model.add_wrapper_with_key(KINDS.DIFFUSION_MODEL, "another node", wrapper)


@ONE_OF_EACH
@pytest.mark.parametrize("factor", [1.0, 0.9])
@pytest.mark.parametrize("wrap", [function_wrapper, apply_wrapper, network_wrapper])
def test_another_nodes_wrapper(runs, sample, monkeypatch, wrap, factor):
    model = runs.made.model.clone()
    wrap(model, factor)
    run = sample(model)
    count = assert_same(runs, monkeypatch, run, {} if factor == 1 else {CHANGED: STEPS})
    assert count.served == (STEPS if factor == 1 else 0)
    assert (factor == 1) == torch.equal(run(), sample()())


@pytest.mark.parametrize("act", ["nothing", "other", "in place"])
def test_another_nodes_block_hook(runs, sample, monkeypatch, act):
    model, first = runs.made.model.clone(), []

    def hook(args, extra):
        first.append(args["vec"].clone())
        if act == "other":
            args = {**args, "vec": 0.5 * args["vec"]}
        elif act == "in place":
            args["vec"].mul_(0.5)
        return extra["original_block"](args)

    model.set_model_patch_replace(hook, "dit", "double_block", 1)
    run = sample(model)
    assert_same(runs, monkeypatch, run, {} if act == "nothing" else {CHANGED: STEPS})
    assert first and (act == "nothing") == torch.equal(run(), sample()())


def with_values(prompt, **values):
    return [[text, {**options, **values}] for text, options in prompt]


def regions(made):
    """A base prompt and two areas of other sizes and lengths, with pooled texts of their own."""
    parts = [made.prompt(1), made.prompt(2, 11), made.prompt(4, 5)]
    areas = ({}, {"area": (4, 6, 0, 2), "strength": 0.7}, {"area": (6, 4, 0, 0), "strength": 1.2})
    found = []
    for index, (part, area) in enumerate(zip(parts, areas, strict=True)):
        pooled = {"pooled_output": randn((1, 20), index)} if made.tiny.pooled else {}
        found += with_values(part, **area, **pooled, set_area_to_bounds=False)
    return found


def test_several_calls_of_other_shapes_in_a_step(runs, sample, monkeypatch):
    height, width = runs.made.latent.shape[-2:]
    assert (height, width) == (7, 9)
    given = dict(positive=regions(runs.made), negative=runs.made.prompt(3, 9))
    count = assert_same(runs, monkeypatch, sample(**given))
    assert count.served >= 3 * STEPS


@ONE_OF_EACH
def test_more_kinds_of_calls_than_a_run_keeps(bench, runs, sample, monkeypatch):
    monkeypatch.setattr(bench.module("comfyui.modulation.table"), "MOST_SETS", 2)
    run = sample(positive=regions(runs.made))
    count = assert_same(runs, monkeypatch, run, {"more than 2 kinds of calls": 3 * STEPS})
    assert count.served == 2 * STEPS


@ONE_OF_EACH
def test_prompts_that_come_and_go_and_an_uneven_batch(runs, sample, monkeypatch):
    early, late = (with_values(runs.made.prompt(seed), start_percent=a, end_percent=b)
                   for seed, a, b in ((1, 0.0, 0.6), (2, 0.3, 1.0)))  # fmt: skip
    runs.made.batch = 3
    assert_same(runs, monkeypatch, sample(positive=early + late))


def test_inpainting(runs, monkeypatch):
    mask = torch.zeros(1, 1, *runs.made.latent.shape[-2:])
    mask[..., :4] = 1
    model = runs.with_node()
    run = partial(runs.ksampler, model, noise_mask=mask)
    assert_same(runs, monkeypatch, run)
    assert not torch.equal(run(), runs.ksampler(model))


def controls(made, bench, kind):
    """A MODEL with a node's control. Without a text of its own where a family takes none."""
    numbers = made.numbers
    ((context, options),) = made.prompt(2, 12)
    if kind == "SpeedPlan":
        return bench.pack.NODE_CLASS_MAPPINGS["SpeedPlan"]().apply(made.model, "2x")[0]
    values = {
        "BlockSkip": ("skip", (numbers[1],), dict(branch="negative")),
        "TextDisable": ("disable", (numbers[1],), {}),
        "TextDisable, block": ("disable", numbers, dict(scope="block", branch="positive")),
        "TextBoost": ("boost", numbers, dict(strength=2.0, mode="value", branch="positive")),
        "BlockPrompt": ("prompt", (numbers[-1],), dict(context=context, context_inputs=options)),
    }
    action, blocks, named = values[kind]
    return made.attach(made.model, [made.control(action, blocks, **named)])


@pytest.mark.parametrize(
    "kind", ["BlockSkip", "TextDisable", "TextDisable, block", "TextBoost", "BlockPrompt", "SpeedPlan"]
)
def test_our_own_controls_at_the_same_time(bench, runs, sample, monkeypatch, kind):
    count = assert_same(runs, monkeypatch, sample(controls(runs.made, bench, kind)))
    assert count.served


@ONE_OF_EACH
def test_our_control_and_another_nodes_hook(bench, runs, sample, monkeypatch):
    model = controls(runs.made, bench, "BlockSkip")
    model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    count = assert_same(runs, monkeypatch, sample(model))
    assert count.served == STEPS


@pytest.mark.parametrize("kind", ["BlockSkip", "BlockPrompt"])
def test_a_part_of_a_batch_whose_references_are_at_timestep_0(bench, monkeypatch, kind):
    """Each row has two vectors, and so has each row of the part."""
    runs = Runs.of(monkeypatch, Bench.make(bench.module, "Qwen-Image-Edit-2511", 3.0, 2))
    model = runs.with_node(controls(runs.made, bench, kind))
    count = assert_same(runs, monkeypatch, partial(runs.ksampler, model))
    assert count.served == STEPS and count.rows > 8 * STEPS


def test_a_distilled_model_reads_the_next_sigma_too(bench, monkeypatch):
    runs = Runs.of(monkeypatch, Bench.make(bench.module, "HunyuanImage 2.1 distilled"))
    run = partial(runs.ksampler, runs.with_node())
    assert_same(runs, monkeypatch, run)
    before = run()
    runs.made.model.model.diffusion_model.time_r_in.out_layer.weight.data.mul_(2)
    assert_same(runs, monkeypatch, run)
    assert not torch.equal(run(), before)


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_a_table_of_our_solvers_holds_their_stages(runs, monkeypatch, solver):
    count = assert_same(runs, monkeypatch, partial(runs.ours, solver=solver))
    assert count.served == {"midpoint": 8, "rk4": 13}[solver]  # rk4's last step is one of Euler


def test_a_sigma_that_an_adaptive_solver_chooses_is_computed(runs, monkeypatch):
    """As if midpoint's stages were not known before."""
    solver = runs.made.of("comfyui.run.solver").RunSteps
    monkeypatch.setattr(solver, "all_evaluated", property(lambda self: None))
    count = assert_same(runs, monkeypatch, partial(runs.ours, solver="midpoint"), {OFF_SCHEDULE: STEPS})
    assert count.served == STEPS


# The first sigma of dpmpp_sde is moved off the schedule, too.
@pytest.mark.parametrize(("sampler", "served", "off"), [("heun", 7, 0), ("dpm_2", 4, 3), ("dpmpp_sde", 3, 4)])
def test_comfyuis_samplers_between_the_schedules_points(runs, monkeypatch, sampler, served, off):
    run = partial(runs.ksampler, runs.with_node(), sampler=sampler)
    count = assert_same(runs, monkeypatch, run, {CHANGED: off} if off else {})
    assert count.served == served


@pytest.mark.parametrize("what", ["the network", "a block"])
def test_compiled_networks_compute_their_modulation(bench, monkeypatch, what):
    tiny = replace(FAMILIES[NAMES[0]], config={**FLUX, "depth": 1, "depth_single_blocks": 1})
    runs = Runs.of(monkeypatch, Bench(bench.module, tiny, *build(tiny), 1.0))
    plain, model = runs.ksampler(), runs.made.model
    if what == "the network":
        model = TorchCompileModel.execute(model, "eager").result[0]
    else:
        model, name = model.clone(), "diffusion_model.double_blocks.0"
        model.add_object_patch(name, torch.compile(model.get_model_object(name), backend="eager"))
    made = runs.ksampler(runs.with_node(model))
    assert dict(runs.counts[-1].computed) == {"torch.compile": STEPS} and not runs.counts[-1].served
    assert torch.allclose(made, plain, atol=1e-5)
    torch._dynamo.reset()


def limited(bench, monkeypatch, steps: float, of_step: int) -> list[int]:
    """A table that holds so many steps. Returns the steps at which it is filled."""
    module, fills = bench.module("comfyui.modulation.table"), []
    make, fill = module.make, module.ModulationTable._fill

    def small(*args):
        table = make(*args)
        table._limit = int(steps * of_step)
        return table

    def noted(self, rows, step):
        fills.append(step)
        fill(self, rows, step)

    monkeypatch.setattr(module, "make", small)
    monkeypatch.setattr(module.ModulationTable, "_fill", noted)
    return fills


@ONE_OF_EACH
def test_a_limit_of_two_steps_fills_twice(bench, runs, sample, monkeypatch):
    of_step = 4 * sum(layer.out_features for layer in runs.layers)  # the rows of a batch are alike here
    fills = limited(bench, monkeypatch, 2.9, of_step)
    count = assert_same(runs, monkeypatch, sample())
    assert fills == [0, 2] and count.served == STEPS and count.bytes == 2 * of_step


def test_a_limit_under_one_row_serves_nothing_and_the_node_shows_it(bench, runs, monkeypatch, said):
    of_step = 4 * sum(layer.out_features for layer in runs.layers)
    fills = limited(bench, monkeypatch, 0.9, of_step)
    model = runs.with_node(node_id="3")
    count = assert_same(runs, monkeypatch, partial(runs.ksampler, model), {LIMIT: STEPS})
    assert not count.served and not count.bytes and len(fills) == STEPS
    assert f"0 of {STEPS} model calls from the table" in said[-1] and f"{STEPS} calls: {LIMIT}" in said[-1]


def test_comfyui_is_told_the_tables_memory(runs, monkeypatch):
    told = []

    def loading(models, memory_required=0, minimum_memory_required=None, **kwargs):
        told.append((memory_required, minimum_memory_required))

    load = management.load_models_gpu
    monkeypatch.setattr(management, "load_models_gpu", lambda *a, **k: (loading(*a, **k), load(*a, **k)))
    runs.ksampler()
    runs.ksampler(runs.with_node())
    rows = STEPS * runs.made.batch * 2  # two conditionings
    needed = rows * 4 * sum(layer.out_features for layer in runs.layers)
    assert [b - a for a, b in zip(*told, strict=True)] == pytest.approx([needed] * 2, rel=1e-6)
    table = runs.made.of("comfyui.modulation.table").ModulationTable
    monkeypatch.setattr(table, "most_bytes", lambda self, rows: self._limit)
    runs.ksampler(runs.with_node(limit=300))
    assert told[2][0] - told[0][0] == 300 * 2**20
    assert "memory_required" not in runs.made.model.model.__dict__


@ONE_OF_EACH
@pytest.mark.parametrize("error", [management.InterruptProcessingException, RuntimeError])
def test_nothing_stays_after_an_error_in_a_step(runs, sample, monkeypatch, error):
    network, plain, calls = runs.made.model.model.diffusion_model, sample()(), []
    modules = [*network.modules(), runs.made.model.model]
    before = [set(module.__dict__) for module in modules]
    options = repr(runs.made.model.model_options)
    model, last = runs.made.model.clone(), runs.layers[-1]

    def failing(self, x):
        calls.append(1)
        if len(calls) > 3 * len(runs.layers):
            raise error("test")
        return forward(self, x)

    def hook(args, extra):
        calls.append(1)
        if len(calls) == 3:
            raise error("test")
        return extra["original_block"](args)

    forward = type(last).forward
    model.set_model_patch_replace(hook, "dit", "double_block", 1)
    with pytest.raises(error):
        sample(model)()
    calls.clear()
    monkeypatch.setattr(type(last), "forward", failing)  # and within the filling of a table
    with pytest.raises(error):
        sample()()
    monkeypatch.undo()
    assert [set(module.__dict__) for module in modules] == before
    assert repr(runs.made.model.model_options) == options and "forward" not in last.__dict__
    assert torch.equal(sample()(), plain)
