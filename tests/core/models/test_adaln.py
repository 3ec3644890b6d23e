"""Modulation and embedded text prepared ahead: the same velocity as the plain path, and nothing stale, ever."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from benchmarks.flops import flop_counter
from mmdit_core import KNOWN_MODELS, MMDiT
from mmdit_core.flow.schedules import sigmas
from mmdit_core.models import products
from mmdit_core.models.adaln import ROWS, RUN, layout_of
from mmdit_core.solvers import solve
from tests.core.models.prepared import (
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


def test_every_step_gives_what_the_plain_path_gives(any_model, without_gradients, pace):
    given = inputs()
    more = {"guidance": torch.tensor([3.5, 1.0])} if any_model.config.guidance_embed else {}
    with any_model.prepared(LEVELS) as options:
        for level in LEVELS:
            found = call(any_model, level, given, options, **more)
            assert error(found, call(any_model, level, given, **more)) <= TOLERANCE


def test_the_table_is_no_further_from_the_truth_than_the_plain_path_in_bfloat16(inference):
    """The matrix products of many rows may round otherwise than those of 2: neither is the better one."""
    model, exact = random_model(CONFIGS["dual"]).bfloat16(), random_model(CONFIGS["dual"]).bfloat16().double()
    given = {name: value.bfloat16() for name, value in inputs().items()}
    truth_of = {name: value.double() for name, value in given.items()}
    with model.prepared(LEVELS) as options:
        for level in LEVELS:
            truth = call(exact, level, truth_of)
            found, plain = (call(model, level, given, options=o).double() for o in (options, None))
            assert error(found, truth) <= 1.1 * error(plain, truth)


def test_adaln_weights_are_read_once_a_short_run_and_the_text_is_embedded_once(any_model, inference):
    given = inputs()
    with any_model.prepared(LEVELS) as options, reads(any_model) as first:
        call(any_model, LEVELS[0], given, options)
        assert first["adaln"] == adaln_layers(any_model) and first["text"] == 1
        with reads(any_model) as later:
            for level in LEVELS[1:]:
                call(any_model, level, given, options)
        assert not later
    with reads(any_model) as plain:
        call(any_model, LEVELS[0], given)
    assert plain == {"adaln": adaln_layers(any_model), "text": 1, "vector": 2}


@pytest.mark.parametrize("rows", [[0], [1], [1, 0], [2, 0, 1], [0, 0, 1, 1, 2, 2], [3, 3, 0]])
def test_rows_in_any_order_and_number(model, inference, rows, pace):
    four = inputs(4)
    with model.prepared(LEVELS) as options:
        call(model, LEVELS[0], {name: value[:2] for name, value in four.items()}, options)  # two of them are known
        for level in LEVELS[[0, 3, 1]]:
            given = {name: value[rows] for name, value in four.items()}
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE


def test_rows_at_different_timesteps_and_without_pooled_text(model, inference):
    given = inputs()
    with model.prepared(LEVELS) as options:
        for times in (LEVELS[:2], LEVELS[2:4], torch.tensor([LEVELS[1], 333.0])):
            for some in (given, {**given, "y": None}):
                assert error(call(model, times, some, options), call(model, times, some)) <= TOLERANCE


@pytest.mark.parametrize("solver", ["midpoint", "heun", "rk4", "bosh3", "dpmpp_2m"])
def test_solvers_that_ask_between_the_levels(model, inference, solver, pace):
    given, levels = inputs(), sigmas(5, "linear", 3.0)

    def run(options=None):
        def velocity(x, sigma):
            return call(model, 1000 * float(sigma), {**given, "x": x.float()}, options)

        return solve(velocity, given["x"].double(), levels, solver).float()

    with model.prepared(1000 * levels[:-1]) as options:
        found = run(options)
    assert error(found, run()) <= 5 * TOLERANCE  # the errors of all steps


def test_a_timestep_between_the_levels_is_computed_when_it_is_asked_for_and_then_known(model, inference):
    given = inputs()
    with model.prepared(LEVELS) as options:
        call(model, LEVELS[0], given, options)
        with reads(model) as counts:
            found = call(model, 512.5, given, options)
            assert counts["adaln"] == adaln_layers(model)
            again = call(model, 512.5, given, options)
            assert counts["adaln"] == adaln_layers(model)
    assert torch.equal(found, call(model, 512.5, given)) and torch.equal(again, found)


def changed(model, kind: str, given):
    """One change that must be seen."""
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
        given["context"].mul_(1.5)  # an encoder's strength
    elif kind == "dtype":
        model.double()
        given.update({name: value.double() for name, value in given.items()})


CHANGES = ["lora in place", "lora, a new weight", "bias of the text's modulation", "timestep embedder"]
CHANGES += ["a new layer", "text embedder", "all weights", "pooled text in place", "text in place", "dtype"]


@pytest.mark.parametrize("kind", CHANGES)
def test_nothing_stale_is_used_after_a_change_in_the_middle_of_a_run(model, kind):
    with torch.no_grad(), model.prepared(LEVELS) as options:
        given = inputs()
        before = call(model, LEVELS[1], given, options)
        changed(model, kind, given)
        found, expected = call(model, LEVELS[1], given, options), call(model, LEVELS[1], given)
        assert found.dtype == expected.dtype and error(found, expected) <= TOLERANCE
        if kind == "dtype":
            assert error(found, expected) <= 1e-14
        else:
            assert error(found, before) > 100 * TOLERANCE


def test_a_new_weight_in_the_old_ones_place_in_memory_is_seen(model):
    given, layer = inputs(), model.joint_blocks[1].x_block.adaLN_modulation[1]
    memory = layer.weight.numpy().copy()
    tensor = torch.from_numpy(memory)

    def weight() -> torch.nn.Parameter:
        return torch.nn.Parameter(tensor, requires_grad=False)

    with torch.no_grad(), model.prepared(LEVELS) as options:
        layer.weight = weight()
        first = id(layer.weight)
        call(model, LEVELS[0], given, options)
        memory *= -1  # behind torch's back: the same memory, and no count of its changes
        layer.weight = None
        many = [weight() for _ in range(1000)]
        layer.weight = next((each for each in many if id(each) == first), None)
        assert layer.weight is not None, "no other tensor came to lie where the first one was"
        assert error(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given)) <= TOLERANCE


def test_another_guidance_and_none(inference):
    model, given = random_model(CONFIGS["guidance"]), inputs()
    seen = []
    with model.prepared(LEVELS) as options:
        for guidance in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0]), torch.tensor([4, 4]), None):
            seen.append(call(model, LEVELS[2], given, options, guidance=guidance))
            assert error(seen[-1], call(model, LEVELS[2], given, guidance=guidance)) <= TOLERANCE
    assert min(error(a, b) for a, b in zip(seen, seen[1:], strict=False)) > 100 * TOLERANCE


def test_another_model_given_the_same_options_computes_its_own(model, inference):
    other, given = random_model(CONFIGS["dual"], seed=3), inputs()
    with model.prepared(LEVELS) as options:
        call(model, LEVELS[0], given, options)
        assert torch.equal(call(other, LEVELS[0], given, options), call(other, LEVELS[0], given))


def test_controlnet_residuals(model, inference):
    given = inputs()
    control = {"output": [torch.randn(2, 24, 128), None, torch.randn(2, 24, 128)]}
    with model.prepared(LEVELS) as options:
        for level in LEVELS[:3]:
            found = call(model, level, given, options, control=control)
            assert error(found, call(model, level, given, control=control)) <= TOLERANCE


def test_gradients_take_the_plain_path(model):
    model.requires_grad_(True)
    given, gradients = inputs(), []
    with model.prepared(LEVELS) as options:
        with torch.no_grad():
            call(model, LEVELS[0], given, options)
        for some in (options, None):
            model.zero_grad()
            call(model, LEVELS[0], given, some).square().mean().backward()
            # The norm of the last text's queries has none: nobody reads what they find.
            found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
            gradients.append(found)
    one, other = gradients
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert model.joint_blocks[0].x_block.adaLN_modulation[1].weight.grad.abs().max() > 0


def test_autocast_takes_the_plain_path(model):
    given = inputs()
    with torch.no_grad(), model.prepared(LEVELS) as options:
        call(model, LEVELS[0], given, options)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(model, LEVELS[0], given, options), call(model, LEVELS[0], given))


def test_compiling_takes_the_plain_path_in_one_graph(monkeypatch):
    monkeypatch.setattr(products, "fast_dtypes", frozenset)  # compiled, they are not taken
    model, given = random_model(CONFIGS["dual"]), inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), model.prepared(LEVELS) as options:
        assert torch.equal(call(compiled, LEVELS[0], given, options), call(model, LEVELS[0], given))
        assert options[RUN].nbytes == 0


def test_without_values_there_is_nothing_to_look_up():
    model = MMDiT(CONFIGS["dual"], device="meta")
    given = {name: value.to("meta") for name, value in inputs().items()}
    with torch.no_grad(), model.prepared(LEVELS) as options:
        assert call(model, torch.empty(2, device="meta"), given, options).shape == given["x"].shape


def test_a_copy_of_the_options_is_no_copy_of_the_model(model, inference):
    """Hooks of other packs copy what they are given, deeply."""
    given, copies = inputs(), []

    def hook(args, extra):
        copies.append(copy.deepcopy(args["transformer_options"]))
        return extra["original_block"]({**args, "transformer_options": copies[-1]})

    with model.prepared(LEVELS) as options:
        hooked = {**options, "patches_replace": {"dit": {("double_block", 1): hook}}}
        assert torch.equal(call(model, LEVELS[0], given, hooked), call(model, LEVELS[0], given, options))
        assert all(copies[0][name] is not None for name in (RUN, ROWS))
        assert copies[0][RUN] is options[RUN]


def test_who_keeps_the_options_of_a_run_keeps_neither_its_table_nor_the_weights(inference):
    model, given, kept = random_model(CONFIGS["dual"]), inputs(), []

    def hook(args, extra):
        kept.append(args["transformer_options"])
        return extra["original_block"](args)

    with model.prepared(LEVELS) as options:
        kept.append(options)
        call(model, LEVELS[0], given, {**options, "patches_replace": {"dit": {("double_block", 1): hook}}})
        seen = [weakref.ref(page) for page, _ in options[RUN]._table.places.values()]
    seen += [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    assert len(kept) == 2 and not any(tensor() is not None for tensor in seen)


@pytest.mark.parametrize("how", ["end", "error"])
def test_nothing_stays_after_a_run(model, inference, how):
    given, seen = inputs(), []

    def broken(args, extra):
        raise RuntimeError("in the middle")

    try:
        with model.prepared(LEVELS) as options:
            call(model, LEVELS[0], given, options)
            run = options["mmdit_prepared"]
            seen += [weakref.ref(page) for page, _ in run._table.places.values()]
            assert run.nbytes and seen
            if how == "error":
                call(model, LEVELS[1], given, {**options, "patches_replace": {"dit": {("double_block", 2): broken}}})
    except RuntimeError:
        pass
    gc.collect()
    assert run.nbytes == 0 and not any(page() is not None for page in seen)
    assert torch.equal(call(model, LEVELS[1], given, options), call(model, LEVELS[1], given))  # it is closed


def test_an_error_while_preparing_leaves_nothing_half_done(model, inference):
    given = inputs()
    layer = model.joint_blocks[2].x_block.adaLN_modulation[1]
    with model.prepared(LEVELS) as options:
        handle = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("cancelled")))
        with pytest.raises(RuntimeError, match="cancelled"):
            call(model, LEVELS[0], given, options)
        handle.remove()
        assert options["mmdit_prepared"].nbytes == 0
        found = call(model, LEVELS[0], given, options)
    with model.prepared(LEVELS) as options:
        assert torch.equal(call(model, LEVELS[0], given, options), found)


def test_a_step_executes_fewer_flops_by_those_of_adaln_and_the_embedders(model, inference):
    given, config = inputs(), model.config

    def flops(options=None) -> int:
        with flop_counter() as counter:
            call(model, LEVELS[1], given, options)
        return counter.get_total_flops()

    with model.prepared(LEVELS) as options:
        call(model, LEVELS[0], given, options)
        saved = flops() - flops(options)
    size = config.hidden_size
    modulation = layout_of(model).width - size
    embedders = (256 + config.pooled_dim + 2 * size) * size
    text = 21 * config.context_dim * size
    assert saved == 2 * 2 * (modulation * size + embedders + text)  # two rows; a multiplication and an addition


def test_the_table_of_sd35_large_at_40_steps_and_two_prompts_is_below_200_mb():
    model = MMDiT(KNOWN_MODELS["SD3.5 Large"], device="meta", dtype=torch.bfloat16)
    assert 40 * 2 * layout_of(model).width * 2 < 200e6
    weights = sum(p.nbytes for name, p in model.named_parameters() if "adaLN_modulation" in name)
    assert 0.32 < weights / sum(p.nbytes for p in model.parameters()) < 0.35  # what is not read in the steps
