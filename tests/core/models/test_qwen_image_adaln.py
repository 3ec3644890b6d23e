"""Qwen-Image in a sampling run: the AdaLN cache and the step cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdit_core.caching.step_cache import StepCache, StepCacheRun
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.flow.schedules import sigmas
from mmdit_core.guidance.cfg import cfg
from mmdit_core.models.adaln import CALL, CallIdentity, row_width
from mmdit_core.solvers import solve
from tests.core.models.tiny import LEVELS, TOLERANCE
from tests.core.models.tiny_qwen import MASK, TINY, inputs, random_model, references

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def model():
    return random_model()


def error(found, expected) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def call(model, level, given, options=None, **more):
    times = torch.full((len(given["x"]),), float(level))
    return model(**{**given, "timesteps": times}, transformer_options=options or {}, **more)


class Reads:
    """How often the layers that the cache replaces are called."""

    def __init__(self, model):
        self.count = 0
        for layer in [
            *(layer for layer, _ in model.adaln_layers()),
            *model.embedders()[1:],
            model.time_text_embed.timestep_embedder,
        ]:
            layer.register_forward_hook(self.add)

    def add(self, *_):
        self.count += 1


def test_every_layer_that_reads_the_vector_is_in_the_table(model):
    layers = model.adaln_layers()
    assert len(layers) == 2 * TINY.depth + 1
    assert {id(layer) for layer, _ in layers} == {
        id(module) for name, module in model.named_modules() if name.endswith(("_mod", "norm_out"))
    }
    assert row_width(model) == 64 * (1 + 12 * TINY.depth + 2)


@pytest.mark.parametrize("timestep", ["stated", "compared"])
def test_every_step_gives_what_the_plain_path_gives_and_reads_no_weights_again(model, timestep):
    given = inputs() | {"attention_mask": MASK}
    expected = [call(model, level, given) for level in LEVELS]
    reads = Reads(model)
    with model.adaln_cache(LEVELS) as options:
        for level, plain in zip(LEVELS, expected, strict=True):
            if timestep == "stated":
                options[CALL] = CallIdentity(("y",), level.item())
            assert error(call(model, level, given, options), plain) <= TOLERANCE
    layers = len(model.adaln_layers())
    assert reads.count == layers + 1 + 2  # once: a tile holds all steps, and one text is embedded by two layers


def test_other_timesteps_and_changed_weights_take_no_stale_row():
    with torch.inference_mode(False), torch.no_grad():  # inference tensors count no changes
        _changes_are_noticed(random_model(), inputs())


def _changes_are_noticed(model, given):
    with model.adaln_cache(LEVELS) as options:
        before = call(model, LEVELS[1], given, options)
        assert torch.equal(call(model, 512.5, given, options), call(model, 512.5, given))
        model.transformer_blocks[1].txt_mod[1].weight.mul_(-1)
        after = call(model, LEVELS[1], given, options)
        assert error(after, call(model, LEVELS[1], given)) <= TOLERANCE and error(after, before) > 100 * TOLERANCE
        embed = model.time_text_embed.timestep_embedder
        for weight in (model.norm_out.linear.bias, embed.linear_1.weight, model.txt_norm.weight):
            weight.mul_(-1).add_(1.0)
            again = call(model, LEVELS[1], given, options)
            assert error(again, call(model, LEVELS[1], given)) <= TOLERANCE and error(again, after) > 100 * TOLERANCE
            after = again


def test_another_text_is_embedded_again(model):
    given = inputs()
    other = {**given, "context": torch.randn(2, 9, 24)}
    with model.adaln_cache(LEVELS) as options:
        for some in (given, other, given):
            assert error(call(model, LEVELS[0], some, options), call(model, LEVELS[0], some)) <= TOLERANCE


@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
def test_references(model, method):
    given = inputs() | {"ref_latents": references([(4, 8)]), "ref_latents_method": method}
    with model.adaln_cache(LEVELS) as options:
        for level in LEVELS[:3]:
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE


def test_the_second_condition_of_layered():
    model = random_model(replace(TINY, additional_t_cond=True))
    given = inputs()
    with model.adaln_cache(LEVELS) as options:
        for kind in (None, torch.tensor([0, 1])):
            found = call(model, LEVELS[2], given, options, additional_t_cond=kind)
            assert error(found, call(model, LEVELS[2], given, additional_t_cond=kind)) <= TOLERANCE


def test_a_control_on_some_rows_keeps_their_rows_of_the_table(model):
    given = inputs() | {"attention_mask": MASK}
    model_call = ModelCall(TINY.depth, 0, (NEGATIVE, POSITIVE), batch=2)
    controls = [BlockControl("skip", (1,), branch="negative"), BlockControl("boost", (0, 2), 2.0)]
    hooks = {"patches_replace": {"dit": compile_controls(controls, model_call)}}
    expected = call(model, LEVELS[1], given, hooks)
    assert error(expected, call(model, LEVELS[1], given)) > 1e-3
    with model.adaln_cache(LEVELS) as options:
        call(model, LEVELS[0], given, {**options, **hooks})
        reads = Reads(model)
        assert error(call(model, LEVELS[1], given, {**options, **hooks}), expected) <= TOLERANCE
    assert reads.count == 0


def sampled(model, given, step_cache=None, options=None):
    """The end of a guided run of 8 steps, and the number of rows that the model computed."""
    levels, rows = sigmas(8, "linear", 3.0), []
    run = StepCacheRun(step_cache or StepCache(), levels.tolist())

    def predict(x, sigma, which):
        rows.append(len(which))
        some = {name: value[which] for name, value in given.items() if name not in ("x", "timesteps")}
        return call(model, 1000 * float(sigma), {"x": x.float().expand(len(which), -1, -1, -1), **some}, options)

    def velocity(x, sigma):
        wanted = run.begin(float(sigma), kind="run")
        if not wanted.computes:
            cond, uncond = run.finish(wanted)
        else:
            out = predict(x, sigma, [0, 1] if wanted.computes_uncond else [0])
            cond, uncond = run.finish(wanted, out[:1], out[1:] if wanted.computes_uncond else None)
        return cfg(cond, uncond, scale=4.0).to(x.dtype)

    return solve(velocity, given["x"][:1].double(), levels, "euler"), sum(rows)


def test_the_step_cache_computes_fewer_rows_and_both_caches_work_together(model):
    given = inputs() | {"attention_mask": MASK}
    exact, all_rows = sampled(model, given)
    cached, rows = sampled(model, given, StepCache(every=2, uncond_every=2, warmup=0.25))
    assert all_rows == 16 and rows < 12
    assert 0 < error(cached, exact) < 0.2
    with model.adaln_cache(1000 * sigmas(8, "linear", 3.0)[:-1]) as options:
        both, same_rows = sampled(model, given, StepCache(every=2, uncond_every=2, warmup=0.25), options)
    assert same_rows == rows and error(both, cached) <= 5 * TOLERANCE
