"""The one attachment mechanism: values on a MODEL, one run object, three wrappers, and the table of model families."""

from __future__ import annotations

import comfy.sd
import pytest
import torch

import nodes as comfyui_nodes


@pytest.fixture(scope="module")
def patching(bench):
    return bench.module("comfyui.patching")


@pytest.fixture(scope="module")
def plain(tiny_file):
    """A MODEL that ComfyUI loads: our wrappers are not on it."""
    return comfy.sd.load_diffusion_model(str(tiny_file))


def keys_of(model) -> dict[str, int]:
    """How many of our wrappers a MODEL carries, by kind."""
    ours = {
        kind: [w for key, found in by_key.items() for w in found if "mmdit" in str(key)]
        for kind, by_key in model.wrappers.items()
    }
    return {kind: len(found) for kind, found in ours.items() if found}


def ksampler(bench, model, **changed):
    given = {"seed": 5, "steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", **changed}
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    return comfyui_nodes.KSampler().sample(
        model, positive=bench.positive, negative=bench.negative, latent_image=latent, **given
    )[0]["samples"]


def test_values_stand_in_the_order_in_which_they_were_attached_and_the_model_stays_as_it_was(patching, plain):
    skip, boost = patching.BlockControl("skip", (1,)), patching.BlockControl("boost", (0,), 2.0)
    first = patching.attach(plain, [skip], "7")
    both = patching.attach(first, [boost], "8")
    assert patching.controls_of(both) == (skip, boost)
    assert [item.node_id for item in patching.attached(both)] == ["7", "8"]
    assert patching.controls_of(first) == (skip,) and patching.attached(plain) == ()
    assert keys_of(plain) == {}


def test_a_control_without_effect_and_a_step_cache_are_no_controls_in_effect(patching, plain):
    idle = patching.BlockControl("skip", ())
    model = patching.attach(plain, [idle, patching.StepCache(every=2)])
    assert patching.controls_of(model) == () and len(patching.attached(model)) == 2


def test_a_new_step_cache_replaces_the_old_one_and_one_without_effect_takes_it_away(patching, plain):
    skip = patching.BlockControl("skip", (1,))
    first = patching.attach(plain, [patching.StepCache(every=2), skip])
    second = patching.attach(first, [patching.StepCache(every=3)])
    assert patching.step_cache_of(second).every == 3 and patching.step_cache_of(first).every == 2
    assert patching.controls_of(second) == (skip,) and len(patching.attached(second)) == 2
    assert patching.step_cache_of(patching.attach(second, [patching.StepCache()])) is None


def test_four_wrappers_do_everything_however_much_is_attached(bench, patching):
    model = bench.model
    once = {"outer_sample": 1, "prepare_sampling": 1, "calc_cond_batch": 1, "apply_model": 1}
    assert keys_of(model) == once
    for values in ([patching.BlockControl("skip", (1,))], [patching.StepCache(every=2)]) * 2:
        model = patching.attach(model, values)
    assert keys_of(model) == once


def test_a_run_is_there_while_it_runs_and_gone_afterwards_even_after_an_error(bench, patching):
    found = []

    def look(executor, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]
        out = executor(*args, **kwargs)
        found.append((options, patching.run_of(options)))
        return out

    def fail(executor, *args, **kwargs):
        found.append((executor.class_obj.model_options["transformer_options"], None))
        raise RuntimeError("in the middle")

    for wrapper, failing in ((look, False), (fail, True)):
        model = patching.attach(bench.model, [patching.BlockControl("skip", (1,), branch="negative")])
        model.add_wrapper_with_key("outer_sample", "test", wrapper)
        if failing:
            with pytest.raises(RuntimeError, match="in the middle"):
                ksampler(bench, model)
        else:
            ksampler(bench, model)
        options, run = found.pop()
        assert patching.run_of(options) is None and not [key for key in options if "adaln" in key]
        assert patching.RUN not in model.model_options["transformer_options"]
        if run is not None:
            assert len(run.sigmas) == 4 and run.sigmas[-1] == 0 and run.evaluated is None and run.step_cache is None
            assert (run.block_calls.total, run.block_calls.skipped) == (12, 3)
            assert run.calls.calls == 3 and dict(run.calls.rows) == {"positive": 3, "negative": 3}


def test_block_calls_are_counted_with_controls_alone(bench, patching):
    counts = []

    def look(executor, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]
        out = executor(*args, **kwargs)
        counts.append(patching.run_of(options).block_calls.total)
        return out

    for model in (bench.model, patching.attach(bench.model, [patching.StepCache(every=2)])):
        clone = model.clone()
        clone.add_wrapper_with_key("outer_sample", "test", look)
        ksampler(bench, clone)
    assert counts == [0, 0]


def test_calls_that_another_nodes_cache_answers_are_not_counted_as_computed(bench, patching):
    """A wrapper next to the model answers every second call, as EasyCache does."""
    runs, kept = [], []

    def every_second(executor, *args, **kwargs):
        if len(kept) % 2:
            kept.append(kept[-1])
            return kept[-1]
        kept.append(executor(*args, **kwargs))
        return kept[-1]

    def look(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        runs.append(patching.run_of(executor.class_obj.model_options["transformer_options"]))
        return out

    model = bench.model.clone()
    model.add_wrapper_with_key("diffusion_model", "cache", every_second)
    model.add_wrapper_with_key("outer_sample", "test", look)
    ksampler(bench, model, steps=6)
    (run,) = runs
    assert (run.requested.calls, run.computed.calls, run.calls.calls) == (6, 3, 3)
    assert dict(run.calls.rows) == {"positive": 3, "negative": 3}
