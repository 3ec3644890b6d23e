"""The oneDNN linear layer: where it is used, that it computes the same, and that ComfyUI's layer does all else."""

from __future__ import annotations

import copy
import pickle

import comfy.model_management
import comfy.ops
import pytest
import torch
from torch import nn

from benchmarks.flops import flop_counter
from mmdit_core import MMDiT
from tests.core.models.tiny import CONFIGS, LEVELS, TOLERANCE, call, error, inputs, random_model

ONEDNN = "mkldnn::_linear_pointwise"
CPU = torch.device("cpu")


@pytest.fixture
def operations(pack, bench, monkeypatch):
    """The module, as on a processor on which oneDNN is faster. It computes the same on any other."""
    module = bench.module("comfyui.operations")
    if module.LINEAR is None:
        pytest.skip("this torch has no such function")
    monkeypatch.setattr(module, "is_faster", lambda: True)
    with torch.inference_mode():
        yield module


def layer_of(operations, **given) -> nn.Linear:
    torch.manual_seed(0)
    layer = operations.faster(comfy.ops.disable_weight_init, CPU).Linear(48, 80, **given).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return layer


def used(work) -> list[str]:
    """The matmuls that torch dispatches to."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return [event.key for event in profile.key_averages() if event.key in (ONEDNN, "aten::linear")]


@pytest.mark.parametrize("shape", [(48,), (0, 48), (1, 48), (2, 48), (2, 5, 48), (3, 2, 7, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_a_linear_layer(operations, shape, bias):
    layer, x = layer_of(operations, bias=bias), torch.randn(shape)
    expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    found = layer(x)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert used(lambda: layer(x)) == [ONEDNN]


def test_rows_need_not_be_contiguous(operations):
    layer, x = layer_of(operations), torch.randn(2, 48, 9)[:, :, ::2].transpose(1, 2)
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-4)
    assert torch.equal(layer(x[:, 1:3]), layer(x[:, 1:3].contiguous()))


def half(layer, x):
    layer.half()
    return x.half()


def bfloat16(layer, x):
    layer.bfloat16()
    return x.bfloat16()


def double(layer, x):
    layer.double()
    return x.double()


def weight_patched_in_the_call(layer, x):
    layer.weight_function = [lambda weight: 2 * weight]
    return x


def bias_patched_in_the_call(layer, x):
    layer.bias_function = [lambda bias: 2 * bias]
    return x


def weight_cast_in_the_call(layer, x):
    layer.comfy_cast_weights = True
    return x


class Wrapped(torch.Tensor):
    """A tensor subclass, as quantized weights are."""


def another_kind_of_weight(layer, x):
    layer.weight = nn.Parameter(layer.weight.as_subclass(Wrapped), requires_grad=False)
    return x


def weight_that_is_not_contiguous(layer, x):
    layer.weight = nn.Parameter(layer.weight.t().contiguous().t(), requires_grad=False)
    return x


OTHERS = (half, double, weight_patched_in_the_call, bias_patched_in_the_call, weight_cast_in_the_call,
          another_kind_of_weight, weight_that_is_not_contiguous)  # fmt: skip


@pytest.mark.parametrize("change", OTHERS)
def test_all_else_is_computed_by_comfyuis_layer(operations, change):
    layer, twin = layer_of(operations), comfy.ops.disable_weight_init.Linear(48, 80).requires_grad_(False)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 48)
    given, same = change(layer, x), change(twin, x)
    assert ONEDNN not in used(lambda: layer(given))
    assert torch.equal(layer(given), twin(same))


@pytest.mark.parametrize("mode", ["autocast", "gradients"])
def test_autocast_and_gradients_are_left_to_torch(operations, mode):
    with torch.inference_mode(False):
        layer, x = layer_of(operations), torch.randn(2, 48)
        context = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else torch.enable_grad()
        with context:
            assert used(lambda: layer(x)) == ["aten::linear"]
        if mode == "gradients":
            layer.requires_grad_(True)
            layer(x).square().sum().backward()
            assert layer.weight.grad is not None and layer.bias.grad is not None


@pytest.mark.parametrize(("x", "words"), [
    (torch.randn(2, 48, dtype=torch.float64), "dtype"), (torch.randn(2, 47), "shapes cannot be multiplied"),
])  # fmt: skip
def test_inputs_that_do_not_fit_get_torchs_error(operations, x, words):
    with pytest.raises(RuntimeError, match=words):
        layer_of(operations)(x)


def test_a_cancelled_run_ends_in_the_layer(operations):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        layer_of(operations)(torch.randn(1, 48))


def test_copies_and_pickles_are_the_same_layer(operations):
    layer, x = layer_of(operations), torch.randn(2, 48)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert type(copy.deepcopy(layer)) is type(layer)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_it_is_used_on_a_cpu_in_place_of_comfyuis_plain_layers_alone(operations, monkeypatch):
    plain = comfy.ops.disable_weight_init
    assert operations.faster(plain, CPU) is operations.onednn
    assert operations.faster(plain, torch.device("cuda")) is plain
    assert operations.faster(comfy.ops.manual_cast, CPU) is comfy.ops.manual_cast
    assert operations.onednn.LayerNorm is plain.LayerNorm and issubclass(operations.onednn.Linear, plain.Linear)
    monkeypatch.setattr(operations, "is_faster", lambda: False)
    assert operations.faster(plain, CPU) is plain


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("amd", [True, False])
def test_the_rule_depends_on_the_processor_and_the_libraries_alone(bench, amd, mkl, onednn, monkeypatch, tmp_path):
    operations, listed = bench.module("comfyui.operations"), tmp_path / "cpuinfo"
    listed.write_text(f"vendor_id : {'AuthenticAMD' if amd else 'GenuineIntel'}")
    monkeypatch.setattr(operations, "Path", lambda _: listed)
    monkeypatch.setattr(operations, "LINEAR", object())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert operations.is_faster.__wrapped__() == (amd and mkl and onednn)


def test_without_cpuinfo_the_name_of_the_processor_decides(bench, monkeypatch, tmp_path):
    operations = bench.module("comfyui.operations")
    monkeypatch.setattr(operations, "Path", lambda _: tmp_path / "none")
    monkeypatch.setattr(operations.platform, "processor", lambda: "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert "AuthenticAMD" in operations._processor()


def test_a_model_computes_the_same_with_it_and_flops_are_counted(operations):
    given, flops, outputs = inputs(), [], []
    for layers in (comfy.ops.disable_weight_init, operations.onednn):
        model = MMDiT(CONFIGS["dual"], operations=layers).eval().requires_grad_(False)
        model.load_state_dict(random_model(CONFIGS["dual"]).state_dict())
        with flop_counter() as counter:
            outputs.append(call(model, LEVELS[0], given))
        flops.append(counter.get_total_flops())
        assert used(lambda model=model: call(model, LEVELS[0], given)) == (
            ["aten::linear"] if layers is comfy.ops.disable_weight_init else [ONEDNN]
        )
    assert error(*outputs) <= TOLERANCE and flops[0] == flops[1] > 0


def test_compiled_it_is_left_to_the_compiler(operations):
    model = MMDiT(CONFIGS["dual"], operations=operations.onednn).eval().requires_grad_(False)
    model.load_state_dict(random_model(CONFIGS["dual"]).state_dict())
    given, targets = inputs(), []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    found = call(torch.compile(model, backend=backend, fullgraph=True), LEVELS[0], given)
    torch._dynamo.reset()
    assert error(found, call(model, LEVELS[0], given)) <= TOLERANCE
    assert targets and not any("_linear_pointwise" in target for target in targets)
