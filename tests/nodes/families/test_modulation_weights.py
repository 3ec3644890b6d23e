"""Modulation tables of weights that ComfyUI casts, dequantises, patches or offloads: no bit of the image changes."""

from __future__ import annotations

import json

import comfy.hooks
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import pytest
import torch

from tests.nodes.families.modulated import STEPS, Runs, assert_same
from tests.nodes.families.oracles import Bench, randn
from tests.nodes.families.tiny import FAMILIES, build

NAMES = ("FLUX.1 dev", "Qwen-Image")
HOOKS = "hooks may change the weights during the run"


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=["KSampler", "ours"])
def sampler(request):
    return request.param


def sample(runs: Runs, sampler: str, model=None, **given):
    """A run of a MODEL: with the node by KSampler, by our sampler without it."""
    if sampler == "ours":
        return lambda: runs.ours(model, **given)
    made = runs.with_node(model)
    return lambda: runs.ksampler(made, **given)


def made_of(bench, name: str, state=None, cls=None, **described) -> Bench:
    """A bench with weights of another dtype or of another patcher."""
    model, prompt, latent = build(FAMILIES[name], state=state, **described)
    if cls is not None:
        model = cls(model.model, model.load_device, model.offload_device)
    return Bench(bench.module, FAMILIES[name], model, prompt, latent, 3.0, 2)


def diff_on_layers(runs: Runs, scale: float = 0.05):
    """Patches of the modulation layers, as a LoRA loader makes them."""
    layers = runs.made.of("comfyui.modulation").layers_of(runs.made.model.model)
    names = {id(module): name for name, module in runs.made.model.model.named_modules()}
    return {
        f"{names[id(layer.linear)]}.weight": ("diff", (scale * randn(tuple(layer.linear.weight.shape), 4),))
        for layer in layers
    }


CASTS = {
    "bf16": dict(dtype=torch.bfloat16),
    "fp8 as bf16": dict(dtype=torch.float8_e4m3fn, compute=torch.bfloat16),
    "fp8 as float32": dict(dtype=torch.float8_e4m3fn, compute=torch.float32),
}


@pytest.mark.parametrize("cast", CASTS)
def test_weights_of_another_dtype(bench, monkeypatch, name, sampler, cast):
    runs = Runs.of(monkeypatch, made_of(bench, name, **CASTS[cast]))
    assert runs.layers[0].weight.dtype == CASTS[cast]["dtype"]
    count = assert_same(runs, monkeypatch, sample(runs, sampler))
    assert count.served == STEPS and count.rows == STEPS * 4


def quantised(network, layers, kind: str):
    """The state of a network whose modulation layers are quantised, as published files hold them."""
    state, names = dict(network.state_dict()), {id(module): name for name, module in network.named_modules()}
    for linear in layers:
        key, weight = f"{names[id(linear)]}.weight", linear.weight
        if kind == "int8_tensorwise":
            scale = weight.abs().amax(1, keepdim=True) / 127
            state[key] = (weight / scale).round().to(torch.int8)
        else:
            scale = weight.abs().max() / 448
            state[key] = (weight / scale).to(torch.float8_e4m3fn)
        state[key.replace("weight", "weight_scale")] = scale
        state[key.replace("weight", "comfy_quant")] = torch.tensor(
            list(json.dumps({"format": kind}).encode()), dtype=torch.uint8
        )
    return state


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise"])
def test_quantised_layers(bench, monkeypatch, name, sampler, kind):
    plain = Runs.of(monkeypatch, made_of(bench, name))
    state = quantised(plain.made.model.model.diffusion_model, plain.layers, kind)
    runs = Runs.of(monkeypatch, made_of(bench, name, state, quant_config={"mixed_ops": True}, compute=torch.float32))
    assert all(isinstance(layer.weight, comfy.quant_ops.QuantizedTensor) for layer in runs.layers) and runs.layers
    count = assert_same(runs, monkeypatch, sample(runs, sampler))
    assert count.served == STEPS


class Little(comfy.model_patcher.ModelPatcher):
    """ComfyUI's patcher with memory for a part of the weights alone."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        super().load(device_to, self.model_size() // 2, force_patch_weights, False)


def loaded(runs: Runs) -> list[bool]:
    """Of each modulation layer, whether ComfyUI has loaded it."""
    return [bool(getattr(layer, "comfy_patched_weights", False)) for layer in runs.layers]


def test_a_lora_in_little_memory(bench, monkeypatch, name):
    """The layers are those that stay offloaded, with the LoRA as functions of their weights."""
    runs = Runs.of(monkeypatch, made_of(bench, name, cls=Little))
    plain = runs.ksampler()
    assert any(loaded(runs)), "without the node some of them are loaded first"
    runs.made.model.add_patches(diff_on_layers(runs), 1.0)
    count = assert_same(runs, monkeypatch, sample(runs, "KSampler"))
    assert count.served == STEPS
    assert not any(loaded(runs)) and all(layer.weight_function for layer in runs.layers)
    others = [m for m in runs.made.model.model.modules() if getattr(m, "comfy_patched_weights", False)]
    assert others and not torch.equal(plain, runs.ksampler())


def test_the_layers_are_evicted_first(bench, monkeypatch, name):
    runs = Runs.of(monkeypatch, made_of(bench, name))
    model = runs.with_node()
    model.load(torch.device("cpu"), full_load=True)
    assert all(loaded(runs))
    needed = sum(weight.nbytes for layer in runs.layers for weight in layer.parameters())
    model.partially_unload(torch.device("cpu"), needed - 1)
    assert not any(loaded(runs))
    others = sum(bool(getattr(m, "comfy_patched_weights", False)) for m in model.model.modules())
    assert others > len(runs.layers)
    assert_same(runs, monkeypatch, lambda: runs.ksampler(model))


def test_a_lora_hook_with_keyframes_is_computed_in_every_call(bench, monkeypatch, name, sampler):
    runs = Runs.of(monkeypatch, made_of(bench, name))
    weights = {key.replace(".weight", ".diff"): value[1][0] for key, value in diff_on_layers(runs).items()}
    hooks, frames = comfy.hooks.create_hook_lora(weights, 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for strength, start in ((2.0, 0.0), (0.0, 0.4), (0.5, 0.8)):
        frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    hooks.set_keyframes_on_hooks(frames)
    positive = comfy.hooks.set_hooks_for_conditioning(runs.made.prompt(1), hooks)
    run = sample(runs, sampler, positive=positive)
    assert_same(runs, monkeypatch, run, {HOOKS: 2 * STEPS})  # cond and uncond have a call of their own
    assert not torch.equal(run(), sample(runs, sampler)())


def test_a_function_of_a_weight_is_computed_in_every_call(bench, monkeypatch, sampler):
    runs = Runs.of(monkeypatch, made_of(bench, NAMES[0]))
    model, calls = runs.made.model.clone(), []

    def growing(weight):
        calls.append(1)
        return weight * (1 + 0.01 * len(calls))

    model.add_weight_wrapper("diffusion_model.double_blocks.0.img_mod.lin.weight", growing)
    run = sample(runs, sampler, model)
    plain = runs.without(monkeypatch, run)
    calls.clear()
    assert torch.equal(run(), plain) and dict(runs.counts[-1].computed) == {HOOKS: STEPS} and calls


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_torch_on_a_layer_acts_once(bench, monkeypatch, name, sampler, kind):
    runs = Runs.of(monkeypatch, made_of(bench, name))
    acts = {
        "register_forward_hook": lambda module, args, out: 1.5 * out,
        "register_forward_pre_hook": lambda module, args: (0.5 * args[0],),
    }
    plain = sample(runs, sampler)()
    handle = getattr(runs.layers[1], kind)(acts[kind])
    try:
        run = sample(runs, sampler)
        assert not torch.equal(plain, run())
        assert_same(runs, monkeypatch, run, {"another node's hook on a modulation layer": STEPS})
    finally:
        handle.remove()


def test_rows_of_one_run_are_not_those_of_the_next(bench, monkeypatch, name, sampler):
    """Another prompt, another LoRA, weights written in place: each as without a table."""
    runs = Runs.of(monkeypatch, made_of(bench, name))
    patched = runs.made.model.clone()
    patched.add_patches(diff_on_layers(runs), 1.0)
    pooled = [[text, {**options, "pooled_output": -options.get("pooled_output", torch.zeros(1, 20)), "guidance": 1.0}]
              for text, options in runs.made.prompt(2)]  # fmt: skip
    found = []
    for given in ({}, {"positive": pooled}, {"model": patched}, {}):
        run = sample(runs, sampler, **given)
        assert_same(runs, monkeypatch, run)
        found.append(run())
    runs.layers[0].weight.data.mul_(1.1)
    run = sample(runs, sampler)
    assert_same(runs, monkeypatch, run)
    assert torch.equal(found[0], found[3]) and len({str(each.double().sum().item()) for each in [*found, run()]}) == 4


def test_a_layer_on_another_device_is_fetched_once_for_all_steps(bench, monkeypatch):
    """As from main memory to a GPU; each step has the bits of a product of its own."""
    table = bench.module("comfyui.modulation.table")
    layer = comfy.ops.manual_cast.Linear(24, 40, dtype=torch.float32)
    weight, bias = randn((40, 24), 1), randn((40,), 2)
    x = randn((5, 3, 24), 3)
    expected = torch.stack([torch.nn.functional.linear(each, weight, bias) for each in x])
    layer.weight, layer.bias = (torch.nn.Parameter(each.to("meta"), requires_grad=False) for each in (weight, bias))
    fetches = []

    def fetch(module, given=None, **named):
        fetches.append(given.shape)
        return weight, bias, None

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", fetch)
    assert torch.equal(table._outputs(layer, x), expected) and fetches == [x.shape]
    assert torch.equal(table._outputs(layer, x[:, :, None]), expected[:, :, None]) and len(fetches) == 2
