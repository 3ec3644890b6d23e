"""The AdaLN cache and the step cache on the core's FLUX.1, with block controls too; and torch.compile."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from mmdit_core.caching.step_cache import StepCache, StepCacheRun
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import ModelCall
from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.schedules import sigmas
from mmdit_core.models.adaln import CALL, AdaLNCache, CallIdentity
from mmdit_core.solvers import solve
from tests.core.control.first_args import captured
from tests.core.models.flux_tiny import CONFIGS, inputs, random_model
from tests.core.models.tiny import TOLERANCE, error

LEVELS = 1000 * sigmas(4, "linear", 3.0)[:-1].float()


@pytest.fixture(params=["dev", "schnell"])
def any_model(request):
    return random_model(CONFIGS[request.param])


@pytest.fixture
def dev():
    return random_model(CONFIGS["dev"])


def call(model, level, given, options=None, **more) -> Tensor:
    return model(**{**given, "timesteps": level.expand(len(given["x"])), **more}, transformer_options=options or {})


def cache_of(model, given) -> AdaLNCache:
    return model.adaln_cache(LEVELS, given["y"], given.get("guidance"))


class Reads:
    """How often the layers are called that only turn a timestep, a guidance and a text into vectors."""

    def __init__(self, model):
        self.counts: Counter[str] = Counter()
        layers = {"text": [model.txt_in], "vector": [model.time_in, model.vector_in, model.guidance_in]}
        layers["adaln"] = [layer for layer, _ in model.adaln_layers()]
        for kind, found in layers.items():
            for layer in found:
                if layer is not None:
                    layer.register_forward_hook(lambda *_, kind=kind: self.counts.update([kind]))


def test_every_step_gives_what_the_plain_path_gives_and_reads_the_weights_once(any_model, inference):
    given = inputs(any_model.config)
    expected = [call(any_model, level, given) for level in LEVELS]
    reads = Reads(any_model)
    with cache_of(any_model, given) as options:
        found = [call(any_model, level, given, options) for level in LEVELS]
    for one, two in zip(found, expected, strict=True):
        assert error(one, two) <= TOLERANCE
    layers = 2 * any_model.config.depth + any_model.config.depth_single_blocks + 1
    assert reads.counts == {"adaln": layers, "text": 1, "vector": 2 + any_model.config.guidance_embed}


def test_every_adaln_layer_is_in_the_table(dev):
    width = {f"{name}.weight": layer.width for name, layer in dev.named_modules() if hasattr(layer, "width")}
    linear = sum(width.values()) + 2 * dev.config.hidden_size
    assert linear == sum(width for _, width in dev.adaln_layers())
    assert len(dev.adaln_layers()) == len(width) + 1 == 8


OTHERS = {
    "another guidance": lambda given: {**given, "guidance": given["guidance"] + 0.1},
    "no guidance": lambda given: {**given, "guidance": None},
    "another pooled text": lambda given: {**given, "y": given["y"] * 1.1},
    "rows exchanged": lambda given: {**given, "guidance": given["guidance"].flip(0)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_of_the_run_takes_the_plain_path(dev, inference, name):
    given = inputs(dev.config)
    others = OTHERS[name](given)
    with cache_of(dev, given) as options:
        call(dev, LEVELS[0], given, options)
        assert torch.equal(call(dev, LEVELS[0], others, options), call(dev, LEVELS[0], others))
        assert error(call(dev, LEVELS[0], given, options), call(dev, LEVELS[0], given)) <= TOLERANCE


def test_a_run_without_guidance_takes_the_plain_path_even_for_named_conditionings(dev, inference):
    """As a run that does not know its guidance: a row without it would be of another image."""
    given = inputs(dev.config)
    with dev.adaln_cache(LEVELS, given["y"]) as options:
        options[CALL] = CallIdentity(("y",), LEVELS[0].item())
        assert torch.equal(call(dev, LEVELS[0], given, options), call(dev, LEVELS[0], given))


def test_named_conditionings_with_one_guidance_for_all_their_images(dev, inference):
    given = inputs(dev.config, batch=4)
    scales = torch.tensor([2.0, 2.0, 4.0, 4.0])
    given["guidance"] = scales
    cache = AdaLNCache(dev, LEVELS)
    cache.add("a", given["y"][:2], scales[:1])
    cache.add("b", given["y"][2:], scales[2:3])
    with cache as options:
        for names, rows in ((("a", "b"), [0, 1, 2, 3]), (("b", "a"), [2, 3, 0, 1]), (("b",), [2, 3])):
            options[CALL] = CallIdentity(names, LEVELS[1].item())
            part = {name: value[rows] for name, value in given.items()}
            reads = Reads(dev)
            assert error(call(dev, LEVELS[1], part, options), call(dev, LEVELS[1], part)) <= TOLERANCE
            assert reads.counts["adaln"] <= 2 * 8  # of the plain call, and of a new tile


def test_weights_that_change_start_a_new_table(dev):
    given = inputs(dev.config)
    with torch.no_grad(), cache_of(dev, given) as options:
        before = call(dev, LEVELS[1], given, options)
        for layer in (dev.single_blocks[1].modulation.lin, dev.guidance_in.in_layer, dev.txt_in):
            layer.weight += 0.1 * torch.randn_like(layer.weight)
            found = call(dev, LEVELS[1], given, options)
            assert error(found, call(dev, LEVELS[1], given)) <= TOLERANCE < error(found, before)
            before = found


CONTROLS = {
    "skip, negative": [BlockControl("skip", (1, 3), branch="negative")],
    "boosts": [BlockControl("boost", (0, 2), 1.7), BlockControl("boost", (1, 4), 1.7, mode="attention")],
    "prompt": [BlockControl("prompt", (1, 3), context=torch.linspace(-2, 2, 5 * 24).view(1, 5, 24))],
}


@pytest.mark.parametrize("name", CONTROLS)
def test_block_controls_read_no_adaln_weights_either(dev, inference, name):
    given = inputs(dev.config, batch=2)

    def replace() -> dict:
        without = ModelCall(2, 3, (1, 0), batch=2)
        first_args = captured(dev, without, {**given, "timesteps": LEVELS[1].expand(2)})
        hooks = compile_controls(CONTROLS[name], ModelCall(2, 3, (1, 0), batch=2, first_args=first_args))
        return {"patches_replace": {"dit": hooks}}

    with cache_of(dev, given) as options:
        call(dev, LEVELS[0], given, options)
        expected, again = call(dev, LEVELS[1], given, replace()), replace()
        reads = Reads(dev)
        found = call(dev, LEVELS[1], given, {**options, **again})
        assert not reads.counts
    assert error(found, expected) <= TOLERANCE and error(found, call(dev, LEVELS[1], given)) > 1e-4


def guided(cond: Tensor, uncond: Tensor) -> Tensor:
    return uncond + 2.0 * (cond - uncond)


def step_cached(model, given, levels, step_cache, options=None) -> tuple[Tensor, int]:
    """The end of a guided run of cond and uncond under a step cache, and its model calls."""
    run, calls = StepCacheRun(step_cache, levels.tolist()), 0

    def velocity(x: Tensor, sigma) -> Tensor:
        nonlocal calls
        prediction = run.begin(float(sigma), kind="same")
        computed: tuple[Tensor, ...] = ()
        if prediction.computes:
            calls += 1
            computed = both_of(model, given, x, sigma, options)[: 1 + prediction.computes_uncond]
        return guided(*run.finish(prediction, *computed))

    return solve(velocity, given["x"][:1].double(), levels, "euler"), calls


def both_of(model, given, x: Tensor, sigma, options=None) -> tuple[Tensor, ...]:
    """cond and uncond at a sigma."""
    level = torch.tensor(1000 * float(sigma))
    return call(model, level, {**given, "x": x.float().expand(2, -1, -1, -1)}, options).double().split(1)


def by_hand(model, given, levels, step_cache) -> Tensor:
    """The same run of Euler's method, with the predictions of the last computed step repeated."""
    x = given["x"][:1].double()
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        if step % step_cache.every == 0:
            cond, uncond = both_of(model, given, x, sigma)
            if step // step_cache.every % step_cache.uncond_every == 0:
                difference = cond - uncond
        x = x + guided(cond, cond - difference) * (following - sigma)
    return x


@pytest.mark.parametrize(
    ("step_cache", "computed"),
    [(StepCache(), 6), (StepCache(every=2, order=0), 3), (StepCache(uncond_every=3, order=0), 6)],
    ids=["all", "every=2", "uncond_every=3"],
)
def test_a_step_cache_leaves_out_predictions_of_a_guided_run(dev, inference, step_cache, computed):
    given, levels = inputs(dev.config), sigmas(6, "linear", 3.0)
    found, calls = step_cached(dev, given, levels, step_cache)
    assert calls == computed and error(found, by_hand(dev, given, levels, step_cache)) <= 5 * TOLERANCE  # of all steps
    assert step_cache.does_nothing or error(found, by_hand(dev, given, levels, StepCache())) > 1e-2
    with dev.adaln_cache(1000 * levels[:-1], given["y"], given["guidance"]) as options:
        assert error(step_cached(dev, given, levels, step_cache, options)[0], found) <= 5 * TOLERANCE


def test_a_compiled_call_is_one_graph(dev, inference):
    torch._dynamo.reset()
    given, backend = {**inputs(dev.config), "ref_latents": [torch.randn(2, 16, 4, 6)]}, CompileCounter()

    def replace() -> dict:
        controls = BlockControl("skip", (1, 3), branch="negative"), BlockControl("boost", (0, 4), 1.5, "value")
        return {"patches_replace": {"dit": compile_controls(controls, ModelCall(2, 3, (0, 1), batch=2))}}

    with cache_of(dev, given) as run:
        found = call(torch.compile(dev, backend=backend), LEVELS[1], given, {**replace(), **run})
        expected = call(dev, LEVELS[1], given, replace())
    torch._dynamo.reset()
    assert backend.frame_count == 1 and torch.equal(found, expected)
    assert error(found, call(dev, LEVELS[1], given)) > 1e-4
