"""The AdaLN cache: the velocity of the plain path to rounding, fewer weights read, and no stale row."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch

from benchmarks.flops import flop_counter
from mmdit_core import KNOWN_MODELS, MMDiT
from mmdit_core.flow.schedules import sigmas
from mmdit_core.models import adaln
from mmdit_core.models.adaln import CACHE, CALL, TILE, TILE_CPU, AdaLNCache, CallIdentity, row_width
from mmdit_core.solvers import solve
from tests.core.models.tiny import (
    CONFIGS,
    LEVELS,
    TOLERANCE,
    adaln_layers,
    call,
    error,
    inputs,
    random_model,
    reads,
)


@pytest.fixture(params=CONFIGS)
def any_model(request):
    return random_model(CONFIGS[request.param])


@pytest.fixture(params=[TILE_CPU, TILE, 32])
def tile(request, monkeypatch):
    """Each size of a tile, on the device that is here."""
    monkeypatch.setattr(adaln, "TILE_CPU", request.param)
    return request.param


def named(given, names="abcd") -> dict[str, torch.Tensor]:
    """The pooled text of each row as a conditioning of its own."""
    return {name: given["y"][row : row + 1] for row, name in enumerate(names[: len(given["y"])])}


def cache_of(model, timesteps, conditionings) -> AdaLNCache:
    cache = AdaLNCache(model, timesteps)
    for name, pooled in conditionings.items():
        cache.add(name, pooled)
    return cache


def test_every_step_gives_what_the_plain_path_gives(any_model, without_gradients, tile):
    given = inputs()
    with any_model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS:
            assert error(call(any_model, level, given, options), call(any_model, level, given)) <= TOLERANCE


def test_the_table_is_no_further_from_float64_than_the_plain_path_in_bfloat16(inference):
    """A matmul of many rows may round otherwise than one of two rows; neither is better."""
    model, exact = random_model(CONFIGS["dual"]).bfloat16(), random_model(CONFIGS["dual"]).bfloat16().double()
    given = {name: value.bfloat16() for name, value in inputs().items()}
    in_float64 = {name: value.double() for name, value in given.items()}
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS:
            truth = call(exact, level, in_float64)
            found, plain = (call(model, level, given, options=o).double() for o in (options, None))
            assert error(found, truth) <= 1.1 * error(plain, truth)


def test_a_short_run_reads_adaln_weights_once_and_embeds_its_text_once(model, inference):
    given = inputs()
    levels = LEVELS[: TILE_CPU // len(given["y"])]
    with model.adaln_cache(levels, given["y"]) as options, reads(model) as counts:
        call(model, levels[0], given, options)
        assert counts == {"adaln": adaln_layers(model), "text": 1, "vector": 2}
        for level in levels[1:]:
            call(model, level, given, options)
    assert counts == {"adaln": adaln_layers(model), "text": 1, "vector": 2}
    with reads(model) as plain:
        call(model, levels[0], given)
    assert plain == {"adaln": adaln_layers(model), "text": 1, "vector": 2}


def test_a_long_run_reads_them_once_for_each_tile(model, inference, tile):
    given, timesteps = inputs(), torch.linspace(1000, 10, 40)  # 80 rows
    with model.adaln_cache(timesteps, given["y"]) as options, reads(model) as counts:
        for timestep in timesteps:
            call(model, timestep, given, options)
            assert options[CACHE]._tile[1].numel() <= tile * row_width(model)
    assert counts["adaln"] == -(-80 // tile) * adaln_layers(model)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_runs_that_end_within_a_tile_with_it_and_after_it(model, inference, count):
    given, timesteps = inputs(1), torch.linspace(1000, 10, count)
    with model.adaln_cache(timesteps, given["y"]) as options:
        for number in (*range(0, count, 7), count - 1, 0):
            found = call(model, timesteps[number], given, options)
            assert error(found, call(model, timesteps[number], given)) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_whichever_rows_are_computed_with_it(model, inference, tile, dtype):
    """Otherwise a resumed run would make another image than a run in one piece."""
    model.to(dtype)
    timesteps = torch.linspace(1000, 10, 40)
    given = {name: value.to(dtype) for name, value in inputs(4).items()}
    alone = {name: value[1:2] for name, value in given.items()}
    outputs = []
    for first, names in ((0, "b"), (0, "ab"), (5, "b"), (29, "bcda"), (30, "cdba")):
        conditionings = {name: named(given)[name] for name in names}
        with cache_of(model, timesteps[first:], conditionings) as options, reads(model, ["adaln"]) as counts:
            options[CALL] = CallIdentity(("b",), timesteps[30].item())
            outputs.append(call(model, timesteps[30], alone, options))
            assert counts["adaln"] == adaln_layers(model)
    assert all(torch.equal(outputs[0], each) for each in outputs[1:])


@pytest.mark.parametrize("rows", [[0], [1], [1, 0], [2, 0, 1], [0, 0, 1, 1, 2, 2], [3, 3, 0]])
@pytest.mark.parametrize("timestep", ["stated", "compared"])
def test_conditionings_in_any_order_and_number(model, inference, rows, timestep):
    four = inputs(4)
    with cache_of(model, LEVELS, named(four)) as options:
        for level in LEVELS[[0, 1, 0]]:
            options[CALL] = CallIdentity(
                tuple("abcd"[row] for row in rows), level.item() if timestep == "stated" else None
            )
            given = {name: value[rows] for name, value in four.items()}
            with reads(model) as counts:
                found = call(model, level, given, options)
            assert error(found, call(model, level, given)) <= TOLERANCE
    assert not counts["adaln"]


def test_images_of_a_batch_share_a_conditioning_or_have_one_row_each(model, inference):
    four = inputs(4)
    conditionings = {"one for all": four["y"][:1], "one each": four["y"][1:3]}
    rows = [0, 0, 1, 2]
    given = {name: value[rows] for name, value in four.items()}
    with cache_of(model, LEVELS, conditionings) as options:
        for level in LEVELS[:2]:
            options[CALL] = CallIdentity(("one for all", "one each"), level.item())
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE


@pytest.mark.parametrize(("timestep", "waits"), [("stated", 0), ("compared", 1)])
def test_a_call_waits_for_the_device_once_at_most(model, inference, monkeypatch, timestep, waits):
    given, counted = inputs(), []
    for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, _o=original, **more: (counted.append(1), _o(self, *args, **more))[1]
        )
    with cache_of(model, LEVELS, named(given)) as options:
        stated = [level.item() for level in LEVELS]
        for level, value in zip(LEVELS, stated, strict=True):
            options[CALL] = CallIdentity(("a", "b"), value if timestep == "stated" else None)
            times = level.expand(2)
            counted.clear()
            model(timesteps=times, transformer_options=options, **given)
            assert len(counted) == waits


OTHERS = {
    "another timestep": lambda given: (torch.tensor([512.5, 512.5]), given),
    "rows at different timesteps": lambda given: (LEVELS[:2], given),
    "another pooled text": lambda given: (LEVELS[:1].expand(2), {**given, "y": given["y"] * 1.1}),
    "no pooled text": lambda given: (LEVELS[:1].expand(2), {**given, "y": None}),
    "rows exchanged": lambda given: (LEVELS[:1].expand(2), {**given, "y": given["y"].flip(0)}),
    "more rows": lambda given: (LEVELS[:1].expand(3), {name: value[[0, 1, 1]] for name, value in given.items()}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_of_the_run_takes_the_plain_path(model, inference, name):
    given = inputs()
    times, others = OTHERS[name](given)
    with model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, options)
        assert torch.equal(call(model, times, others, options), call(model, times, others))
        assert error(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given)) <= TOLERANCE


def test_more_conditionings_than_a_tile_has_rows_take_the_plain_path(model, inference):
    given = inputs(TILE_CPU + 1)
    with model.adaln_cache(LEVELS, given["y"]) as options:
        assert torch.equal(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given))


def test_a_run_without_pooled_text(model, inference):
    given = {**inputs(), "y": None}
    with model.adaln_cache(LEVELS) as options, reads(model) as counts:
        found = [call(model, level, given, options) for level in LEVELS]
        assert counts["adaln"] == adaln_layers(model)
    for output, level in zip(found, LEVELS, strict=True):
        assert error(output, call(model, level, given)) <= TOLERANCE


@pytest.mark.parametrize("solver", ["midpoint", "heun", "rk4", "bosh3", "dpmpp_2m"])
def test_solvers_that_evaluate_between_the_steps(model, inference, solver):
    given, levels, evaluated = inputs(), sigmas(5, "linear", 3.0), []

    def run(options=None):
        def velocity(x, sigma):
            evaluated.append(1000 * float(sigma))
            return call(model, 1000 * float(sigma), {**given, "x": x.float()}, options)

        return solve(velocity, given["x"].double(), levels, solver).float()

    expected = run()
    for timesteps in (1000 * levels[:-1], evaluated.copy()):  # steps alone, and all timesteps
        with model.adaln_cache(timesteps, given["y"]) as options, reads(model) as counts:
            assert error(run(options), expected) <= 5 * TOLERANCE  # the errors of all steps
    if solver != "bosh3":  # a step size that is chosen moves with the rounding of the velocity
        tiles = math.ceil(len({*evaluated}) / (TILE_CPU // len(given["y"])))
        assert counts["adaln"] == tiles * adaln_layers(model)


def changed(model, kind: str, given):
    """One change that the cache has to notice."""
    layer = model.joint_blocks[1].x_block.adaLN_modulation[1]
    if kind == "lora in place":
        layer.weight += 0.05 * torch.randn_like(layer.weight)
    elif kind == "lora, a new weight":
        layer.weight = torch.nn.Parameter(layer.weight + 0.05 * torch.randn_like(layer.weight), requires_grad=False)
    elif kind == "a new layer":
        model.joint_blocks[1].x_block.adaLN_modulation = torch.nn.Sequential(
            torch.nn.SiLU(), torch.nn.Linear(128, 1152)
        )
    elif kind == "bias of the text's modulation":
        model.joint_blocks[2].context_block.adaLN_modulation[1].bias.normal_()
    elif kind == "timestep embedder":
        model.t_embedder.mlp[0].weight.normal_(std=0.05)
    elif kind == "text embedder":
        model.context_embedder.weight.normal_(std=0.05)
    elif kind == "all weights":
        model.load_state_dict(random_model(model.config, seed=5).state_dict())
    elif kind == "pooled text in place":
        given["y"].mul_(-1)
    elif kind == "text in place":
        given["context"].mul_(1.5)
    elif kind == "dtype":
        model.double()
        given.update({name: value.double() for name, value in given.items()})


CHANGES = ["lora in place", "lora, a new weight", "bias of the text's modulation", "timestep embedder"]
CHANGES += ["a new layer", "text embedder", "all weights", "pooled text in place", "text in place", "dtype"]


@pytest.mark.parametrize("kind", CHANGES)
def test_nothing_stale_is_used_after_a_change_in_the_middle_of_a_run(model, kind):
    with torch.no_grad():
        given = inputs()
        with model.adaln_cache(LEVELS, given["y"].clone()) as options:
            before = call(model, LEVELS[1], given, options)
            changed(model, kind, given)
            found, expected = call(model, LEVELS[1], given, options), call(model, LEVELS[1], given)
    assert found.dtype == expected.dtype and error(found, expected) <= TOLERANCE
    if kind == "dtype":
        assert error(found, expected) <= 1e-14
    else:
        assert error(found, before) > 100 * TOLERANCE


def test_a_new_weight_with_the_id_of_the_old_one_is_noticed(model):
    given, layer = inputs(), model.joint_blocks[1].x_block.adaLN_modulation[1]
    memory = layer.weight.numpy().copy()
    tensor = torch.from_numpy(memory)

    def weight() -> torch.nn.Parameter:
        return torch.nn.Parameter(tensor, requires_grad=False)

    with torch.no_grad(), model.adaln_cache(LEVELS, given["y"]) as options:
        layer.weight = weight()
        first = id(layer.weight)
        call(model, LEVELS[0], given, options)
        memory *= -1  # the same memory, and torch counts no change
        layer.weight = None
        many = [weight() for _ in range(1000)]
        layer.weight = next((each for each in many if id(each) == first), None)
        assert layer.weight is not None, "no other tensor got the id of the first one"
        assert error(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given)) <= TOLERANCE


def test_a_conditioning_that_is_replaced_under_its_name(model, inference):
    given, other = inputs(), inputs(seed=2)
    with cache_of(model, LEVELS, {"y": given["y"]}) as options:
        for some in (given, other, other):
            options[CACHE].add("y", some["y"])
            options[CALL] = CallIdentity(("y",), LEVELS[0].item())
            assert error(call(model, LEVELS[0], {**some, "context": given["context"]}, options),
                         call(model, LEVELS[0], {**some, "context": given["context"]})) <= TOLERANCE  # fmt: skip


def test_a_guidance_embedding_takes_the_plain_path(inference):
    model, given = random_model(CONFIGS["guidance"]), inputs()
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for guidance in (torch.tensor([1.0, 4.0]), None):
            found = call(model, LEVELS[2], given, options, guidance=guidance)
            assert torch.equal(found, call(model, LEVELS[2], given, guidance=guidance))


def test_another_model_given_the_same_options_computes_its_own(model, inference):
    other, given = random_model(CONFIGS["dual"], seed=3), inputs()
    with model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, options)
        assert torch.equal(call(other, LEVELS[0], given, options), call(other, LEVELS[0], given))


def test_controlnet_residuals(model, inference):
    given = inputs()
    control = {"output": [torch.randn(2, 24, 128), None, torch.randn(2, 24, 128)]}
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS[:3]:
            found = call(model, level, given, options, control=control)
            assert error(found, call(model, level, given, control=control)) <= TOLERANCE


def test_gradients_take_the_plain_path(model):
    model.requires_grad_(True)
    given, gradients = inputs(), []
    with model.adaln_cache(LEVELS, given["y"]) as options:
        with torch.no_grad():
            call(model, LEVELS[0], given, options)
        for some in (options, None):
            model.zero_grad()
            call(model, LEVELS[0], given, some).square().mean().backward()
            gradients.append({name: each.grad.clone() for name, each in model.named_parameters()})
    one, other = gradients
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert model.joint_blocks[0].x_block.adaLN_modulation[1].weight.grad.abs().max() > 0


def test_autocast_takes_the_plain_path(model):
    given = inputs()
    with torch.no_grad(), model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, options)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given))


def test_compiling_takes_the_plain_path_in_one_graph(model):
    given = inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), model.adaln_cache(LEVELS, given["y"]) as options:
        assert torch.equal(call(compiled, LEVELS[0], given, options), call(model, LEVELS[0], given))
        assert options[CACHE]._tile is None


def test_tensors_without_values_take_the_plain_path():
    model = MMDiT(CONFIGS["dual"], device="meta")
    given = {name: value.to("meta") for name, value in inputs().items()}
    with torch.no_grad(), model.adaln_cache(LEVELS, given["y"]) as options:
        assert call(model, torch.empty(2, device="meta"), given, options).shape == given["x"].shape


def test_a_copy_of_the_options_is_no_copy_of_the_model(model, inference):
    """Hooks of other packs may copy their options deeply."""
    given, copies = inputs(), []

    def hook(args, extra):
        copies.append(copy.deepcopy(args["transformer_options"]))
        return extra["original_block"]({**args, "transformer_options": copies[-1]})

    with model.adaln_cache(LEVELS, given["y"]) as options:
        hooked = {**options, "patches_replace": {"dit": {("double_block", 1): hook}}}
        assert torch.equal(call(model, LEVELS[0], given, hooked), call(model, LEVELS[0], given, options))
        assert copies[0][CACHE] is options[CACHE]


@pytest.mark.parametrize("how", ["end", "error"])
def test_nothing_is_held_after_a_run_even_by_a_hook_that_keeps_its_options(inference, how):
    model, given, kept = random_model(CONFIGS["dual"]), inputs(), []

    def hook(args, extra):
        kept.append(dict(args["transformer_options"]))
        if how == "error":
            raise RuntimeError("in the middle")
        return extra["original_block"](args)

    try:
        with model.adaln_cache(LEVELS, given["y"]) as options:
            kept.append(options)
            call(model, LEVELS[0], given, options)
            held = [weakref.ref(options[CACHE]._tile[1])]
            call(model, LEVELS[1], given, {**options, "patches_replace": {"dit": {("double_block", 1): hook}}})
    except RuntimeError:
        assert how == "error"
    assert torch.equal(call(model, LEVELS[1], given, options), call(model, LEVELS[1], given)), "it is closed"
    held += [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    assert len(kept) == 2 and not any(tensor() is not None for tensor in held)


def test_an_error_while_the_table_is_computed_leaves_no_half_table(model, inference):
    given = inputs()
    layer = model.joint_blocks[2].x_block.adaLN_modulation[1]
    with model.adaln_cache(LEVELS, given["y"]) as options:
        handle = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("cancelled")))
        with pytest.raises(RuntimeError, match="cancelled"):
            call(model, LEVELS[0], given, options)
        handle.remove()
        assert options[CACHE]._tile is None
        assert error(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given)) <= TOLERANCE


def test_a_step_executes_fewer_flops_by_those_of_adaln_and_the_embedders(model, inference):
    given, config = inputs(), model.config

    def flops(options=None) -> int:
        with flop_counter() as counter:
            call(model, LEVELS[1], given, options)
        return counter.get_total_flops()

    with model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, options)
        saved = flops() - flops(options)
    size = config.hidden_size
    modulation = row_width(model) - size
    embedders = (256 + config.pooled_dim + 2 * size) * size
    text = 21 * config.context_dim * size
    assert saved == 2 * 2 * (modulation * size + embedders + text)  # two rows; a multiplication and an addition


def test_a_tile_of_sd35_large_is_below_200_mb():
    model = MMDiT(KNOWN_MODELS["SD3.5 Large"], device="meta", dtype=torch.bfloat16)
    assert TILE * row_width(model) * 2 < 200e6
    weights = sum(p.nbytes for name, p in model.named_parameters() if "adaLN_modulation" in name)
    assert 0.32 < weights / sum(p.nbytes for p in model.parameters()) < 0.35  # what is not read in the steps
