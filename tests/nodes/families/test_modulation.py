"""Modulation computed ahead of the steps, on every family that has a table: the same latent, without the layers."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.families.oracles import Bench, difference
from tests.nodes.families.tiny import FAMILIES

SIGMAS = (1.0, 0.8, 0.5, 0.2, 0.0)
KINDS = ("SD3", "FLUX.1", "Qwen", "LongCat", "Ovis", "MageFlow", "AuraFlow", "Lens", "Hunyuan", "HiDream", "Lumina2")
KINDS = (*KINDS, "NewBie", "OmniGen2", "Boogu", "Kandinsky", "PixelDiT", "PiD", "CogVideoX")
WITH_A_TABLE = [name for name in FAMILIES if name.startswith(KINDS)]


def runs(bench, monkeypatch, made, **given):
    """A run without and with a table by our sampler, and what the table did."""
    patching, model = bench.module("comfyui.patching"), made.model.clone()
    patching.install(model)
    counts, make = [], patching._modulation

    def noted(run, *args):
        table = make(run, *args)
        counts.append(run.modulation)
        return table

    plain = made.run(sigmas=SIGMAS, **given)
    monkeypatch.setattr(patching, "_modulation", noted)
    return plain, made.run(model=model, sigmas=SIGMAS, **given), counts[-1]


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", WITH_A_TABLE)
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_with_a_table_has_the_same_bits(bench, monkeypatch, name, lora):
    made = Bench.make(bench.module, name, 3.0, 2, lora)
    plain, ours, count = runs(bench, monkeypatch, made)
    assert count.served and not count.computed, str(count)
    assert difference(ours, plain) <= 1e-6
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", WITH_A_TABLE)
def test_no_layer_runs_in_the_steps(bench, monkeypatch, name):
    """The table is filled once; then the layers' weights are NaN, which would reach the image."""
    made = Bench.make(bench.module, name)
    table = bench.module("comfyui.modulation.table").ModulationTable
    layers = bench.module("comfyui.modulation").layers_of(made.model.model)
    filled, fills = table._fill, []

    def fill(self, rows, step):
        filled(self, rows, step)
        fills.append(step)
        for layer in layers:
            layer.linear.weight.data.fill_(float("nan"))  # which torch counts as no change

    monkeypatch.setattr(table, "_fill", fill)
    plain, ours, count = runs(bench, monkeypatch, made)
    assert fills == [0] and count.served == len(SIGMAS) - 1 and not count.computed
    assert torch.equal(ours, plain)
    assert not [layer for layer in layers if "forward" in {**layer.owner.__dict__, **layer.linear.__dict__}]


def test_the_node_on_ksampler_counts_what_it_serves_and_what_it_does_not(bench, monkeypatch):
    """KSampler's euler stays on the schedule; heun's last and dpm_2's middle evaluations do not."""
    import comfy.sample

    node, made = bench.module("caching").PrecomputeModulation(), Bench.make(bench.module, "FLUX.1 dev")
    before = dict(made.model.model_options["transformer_options"]), type(made.model)
    model, said = node.apply(made.model)
    assert "modulation layers" in said and model is not made.model
    assert (made.model.model_options["transformer_options"], type(made.model)) == before
    patching, counts = bench.module("comfyui.patching"), []
    make = patching._modulation

    def noted(run, *args):
        table = make(run, *args)
        counts.append(run.modulation)
        return table

    monkeypatch.setattr(patching, "_modulation", noted)
    latent = torch.zeros_like(made.latent)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    for sampler, off in (("euler", 0), ("dpm_2", 3)):
        given = (noise, 4, 3.0, sampler, "simple", made.prompt(1), made.prompt(3), latent)
        plain = comfy.sample.sample(made.model, *given, disable_pbar=True)
        ours = comfy.sample.sample(model, *given, disable_pbar=True)
        assert torch.equal(plain, ours)
        assert counts[-1].served == 4 and sum(counts[-1].computed.values()) == off, str(counts[-1])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITH_A_TABLE])
def test_the_node_says_why_a_model_is_unchanged(bench, name):
    made = Bench.make(bench.module, name)
    model, said = bench.module("caching").PrecomputeModulation().apply(made.model)
    reason = bench.module("comfyui.modulation").NO_TABLE[made.family.label]
    assert model is made.model and said == f"Unchanged: {made.family.label}: {reason}."


def test_a_family_has_a_table_or_a_reason(bench):
    rows, reasons = bench.module("comfyui.families").FAMILIES, bench.module("comfyui.modulation").NO_TABLE
    assert {row.label for row in rows if not row.modulation} == set(reasons)


@pytest.mark.parametrize("name", ["FLUX.1 dev", "Qwen-Image", "AuraFlow", "OmniGen2"])
def test_comfyui_loads_the_layers_last(bench, name):
    made = Bench.make(bench.module, name)
    model, _ = bench.module("caching").PrecomputeModulation().apply(made.model)
    names = {f"{layer}" for layer in bench.module("comfyui.modulation").names_last(made.model.model)}
    listed = [entry for entry in model._load_list() if entry[-4]]  # some layers have no weights
    listed.sort(reverse=True, key=lambda entry: entry[:1])
    own = [any(entry[-3].startswith(each) for each in names) for entry in listed]
    first = own.index(True)
    assert all(own[first:]) and sum(own) == len(names)


def test_a_small_limit_fills_again_and_a_tiny_one_serves_nothing(bench, monkeypatch):
    made = Bench.make(bench.module, "Qwen-Image-Edit-2511")
    modulation, patching = bench.module("comfyui.modulation"), bench.module("comfyui.patching")
    monkeypatch.setattr(patching, "MEMORY_MB", 0)
    plain, ours, count = runs(bench, monkeypatch, made)
    assert torch.equal(plain, ours) and not count.served and modulation.layers_of(made.model.model)
