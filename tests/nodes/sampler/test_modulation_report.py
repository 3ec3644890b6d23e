"""FlowMatchingSampler on another family: its modulation is computed ahead, loaded last, planned for and reported."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.families.oracles import Bench as FamilyBench

STEPS, BATCH = 6, 2


@pytest.fixture(scope="module")
def flux(bench):
    return FamilyBench.make(bench.module, "FLUX.1 dev")


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


def sampled(bench, flux, **changed):
    """The report in the PNG and the summary of a run with a batch of 2."""
    written = {}
    latent = {"samples": torch.zeros(BATCH, *flux.latent.shape[1:])}
    given = dict(model=flux.model, positive=flux.prompt(1), negative=flux.prompt(3), steps=STEPS)
    summary = bench.all(latent, unique_id="7", extra_pnginfo=written, **given | changed)[2]
    return written["mmdit_sampler"]["7"], summary


def test_the_table_is_reported_with_the_calls_that_it_did_not_serve(bench, flux):
    facts, summary = sampled(bench, flux)
    modulation = facts["modulation"]
    assert (modulation["served"], modulation["computed"]) == (facts["calls"]["model"], {})
    assert modulation["words"] in summary.splitlines()
    facts, _ = sampled(bench, flux, solver="heun")
    assert facts["modulation"]["served"] == facts["calls"]["model"] > STEPS
    assert bench.facts()["modulation"] is None  # our own model has an AdaLN cache of its own


def test_its_memory_is_in_comfyuis_estimate_and_its_layers_are_loaded_last(bench, flux, monkeypatch):
    import comfy.model_management as management

    asked, original = [], management.load_models_gpu

    def noted(models, memory_required=0, **kwargs):
        asked.append((memory_required, models[0]))
        return original(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(management, "load_models_gpu", noted)
    facts, _ = sampled(bench, flux)
    with monkeypatch.context() as without:
        without.setattr(bench.module("comfyui.patching"), "layers_of", lambda base: ())
        sampled(bench, flux)
    (ours, patcher), (theirs, plain) = asked
    layers = bench.module("comfyui.modulation").layers_of(flux.model.model)
    width = sum(layer.linear.out_features for layer in layers)
    rows = STEPS * BATCH * 2  # two conditionings
    assert ours - theirs == pytest.approx(rows * width * 4, rel=1e-6)
    assert facts["modulation"]["bytes"] <= rows * width * 4
    assert type(patcher) is not type(plain) and type(plain) is type(flux.model)
