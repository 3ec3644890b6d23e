"""The faster product: where it is taken, that it is the same product, and that nobody is left out of it."""

from __future__ import annotations

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from benchmarks.flops import flop_counter
from mmdit_core import MMDiT
from mmdit_core.models import products
from tests.core.models.prepared import CONFIGS, LEVELS, TOLERANCE, call, error, inputs, random_model
from tests.core.models.taken import ONEDNN, taken

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch):
    """On any machine whose torch has the product: it is as right on the others, only not known to be faster."""
    if products.ONEDNN is None:
        pytest.skip("this torch has no such product")
    monkeypatch.setattr(products, "fast_dtypes", lambda: frozenset((torch.float32, torch.bfloat16)))


def layer_of(**given) -> nn.Linear:
    torch.manual_seed(0)
    return products.with_fast_products(nn).Linear(48, 80, **given).requires_grad_(False)


@pytest.mark.parametrize("shape", [(48,), (0, 48), (1, 48), (2, 48), (2, 5, 48), (3, 2, 7, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product_of_a_plain_layer(shape, bias):
    layer, x = layer_of(bias=bias), torch.randn(shape)
    found, expected = layer(x), nn.functional.linear(x.double(), layer.weight.double(), None)
    expected = expected + layer.bias.double() if bias else expected
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert taken(lambda: layer(x)) == [ONEDNN]


@pytest.mark.parametrize("shape", [(1, 48), (2, 48), (2, 5, 48), (300, 48)])
def test_in_bfloat16_it_is_that_of_a_plain_layer_bit_for_bit(shape, monkeypatch):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        monkeypatch.undo()
        assert torch.bfloat16 not in products.fast_dtypes()
        return
    layer, x = layer_of(dtype=torch.bfloat16), torch.randn(shape).bfloat16()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert taken(lambda: layer(x)) == [ONEDNN]


def test_rows_need_not_lie_side_by_side():
    layer, x = layer_of(), torch.randn(2, 48, 9)[:, :, ::2].transpose(1, 2)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x[:, 1:3]), layer(x[:, 1:3].contiguous()))
    assert torch.equal(layer(input=x), layer(x))


def half(layer, x):
    layer.half()
    return x.half()


def double(layer, x):
    layer.double()
    return x.double()


def weight_changed_in_the_call(layer, x):
    layer.weight_function = [lambda weight: weight]
    return x


def bias_changed_in_the_call(layer, x):
    layer.bias_function = [lambda bias: bias]
    return x


class Wrapped(torch.Tensor):
    """As quantized weights come: a kind of tensor that does more than it shows."""


def another_kind_of_weight(layer, x):
    layer.weight = nn.Parameter(layer.weight.as_subclass(Wrapped), requires_grad=False)
    return x


def weight_that_lies_across(layer, x):
    layer.weight = nn.Parameter(layer.weight.t().contiguous().t(), requires_grad=False)
    return x


OTHERS = (
    half,
    double,
    weight_that_lies_across,
    weight_changed_in_the_call,
    bias_changed_in_the_call,
    another_kind_of_weight,
)


@pytest.mark.parametrize("change", OTHERS)
def test_all_else_is_left_to_the_layer(change):
    layer = layer_of()
    x = change(layer, torch.randn(2, 5, 48))
    assert taken(lambda: layer(x)) == ["aten::linear"]


def test_autocast_is_left_to_the_layer():
    layer, x = layer_of(), torch.randn(2, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_another_dtype_is_refused_as_ever():
    with pytest.raises(RuntimeError, match="dtype"):
        layer_of()(torch.randn(2, 48, dtype=torch.float64))


def test_what_does_not_fit_is_refused_as_ever():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer_of()(torch.randn(2, 47))


@pytest.mark.parametrize("learns", ["weight", "bias", "input"])
def test_gradients_are_those_of_the_plain_layer(learns):
    with torch.inference_mode(False), torch.enable_grad():
        layer, x = layer_of(), torch.randn(3, 48)
        values = {"weight": layer.weight, "bias": layer.bias, "input": x}
        values[learns].requires_grad_(True)
        assert taken(lambda: layer(x)) == ["aten::linear"]
        found, expected = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
        assert torch.equal(found, expected)
        gradients = [torch.autograd.grad(out.square().sum(), values[learns])[0] for out in (found, expected)]
        assert torch.equal(*gradients)


def test_derivatives_forward_are_those_of_the_plain_layer():
    with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
        layer, tangent = layer_of(), torch.randn(3, 48)
        out = layer(forward_ad.make_dual(torch.randn(3, 48), tangent))
        assert torch.equal(forward_ad.unpack_dual(out).tangent, tangent @ layer.weight.T)


def test_over_many_at_once_it_is_left_to_the_layer():
    with torch.inference_mode(False), torch.no_grad():
        layer, x = layer_of(), torch.randn(4, 3, 48)
        assert ONEDNN not in taken(lambda: torch.func.vmap(layer)(x))


def test_hooks_and_exchanged_forwards_see_the_layer_as_ever():
    layer, x, seen = layer_of(), torch.randn(2, 48), []
    layer.register_forward_hook(lambda layer, given, out: seen.append(out))
    assert layer(x) is seen[0]
    own = layer.forward
    layer.forward = lambda x: 2 * own(x)  # as a host adds a LoRA beside the weight
    assert torch.equal(layer(x), 2 * seen[0])


def namespace(linear, **more) -> SimpleNamespace:
    return SimpleNamespace(Linear=linear, Conv2d=nn.Conv2d, LayerNorm=nn.LayerNorm, **more)


class Hosts(nn.Linear):
    comfy_cast_weights = False


class Others(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_the_layer_is_a_hosts_own_kind_and_one_class_for_all_models():
    host = namespace(Hosts, RMSNorm=nn.RMSNorm)
    fast = products.with_fast_products(host)
    assert issubclass(fast.Linear, Hosts) and fast.Linear is products.with_fast_products(host).Linear
    assert fast.LayerNorm is nn.LayerNorm and fast.RMSNorm is nn.RMSNorm
    assert not hasattr(products.with_fast_products(namespace(Hosts)), "RMSNorm")


@pytest.mark.parametrize("linear", [Others, object, lambda *sizes: nn.Linear(*sizes)], ids=["class", "any", "function"])
def test_a_linear_layer_of_which_nothing_is_known_is_left_alone(linear):
    host = namespace(linear)
    assert products.with_fast_products(host) is host


def test_what_a_hosts_layers_do_first_is_done(monkeypatch):
    def ended():
        raise KeyboardInterrupt("cancelled")

    monkeypatch.setattr(sys.modules[__name__], "run_every_op", ended, raising=False)
    products.fast_linear.cache_clear()
    layer = products.with_fast_products(namespace(Hosts)).Linear(48, 8)
    products.fast_linear.cache_clear()
    with pytest.raises(KeyboardInterrupt, match="cancelled"):
        layer(torch.randn(1, 48))


def test_copies_and_what_comes_back_from_a_file_are_the_same_layer(monkeypatch):
    layer, x = layer_of(), torch.randn(2, 48)
    stored = pickle.dumps(layer)
    for made in (copy.deepcopy(layer), pickle.loads(stored)):
        assert type(made) is type(layer) and torch.equal(made(x), layer(x))
    monkeypatch.setattr(products, "fast_dtypes", frozenset)
    elsewhere = pickle.loads(stored)
    assert type(elsewhere) is nn.Linear and torch.equal(elsewhere.weight, layer.weight)


def test_compiled_it_is_left_to_the_compiler():
    model, given, targets = random_model(CONFIGS["dual"]), inputs(), []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    found = call(torch.compile(model, backend=backend, fullgraph=True), LEVELS[0], given)
    torch._dynamo.reset()
    assert error(found, call(model, LEVELS[0], given)) <= TOLERANCE
    assert targets and not any("_linear_pointwise" in target for target in targets)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_computes_the_same_and_every_product_of_it_is_the_fast_one(kind, monkeypatch):
    model, given = random_model(CONFIGS[kind]), inputs()
    found = call(model, LEVELS[0], given)
    assert taken(lambda: call(model, LEVELS[0], given)) == [ONEDNN]
    monkeypatch.setattr(products, "fast_dtypes", frozenset)
    assert error(found, call(random_model(CONFIGS[kind]), LEVELS[0], given)) <= TOLERANCE
    assert taken(lambda: call(model, LEVELS[0], given)) == ["aten::linear"]


def test_flops_are_counted_whichever_product_it_is(monkeypatch):
    given, counts = inputs(), []
    for fast in (frozenset((torch.float32,)), frozenset()):
        monkeypatch.setattr(products, "fast_dtypes", lambda fast=fast: fast)
        model = random_model(CONFIGS["dual"])
        with flop_counter() as counter:
            call(model, LEVELS[0], given)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("amd", [True, False])
def test_it_is_taken_only_where_it_gains(amd, carried, bf16, monkeypatch, tmp_path):
    monkeypatch.undo()
    listed = tmp_path / "cpuinfo"
    listed.write_text(f"vendor_id : {'AuthenticAMD' if amd else 'GenuineIntel'}")
    monkeypatch.setattr(products, "Path", lambda _: listed)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: carried)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    expected = {torch.float32} if amd else set()
    expected |= {torch.bfloat16} if bf16 else set()
    assert products.fast_dtypes.__wrapped__() == (expected if carried else set())


def test_where_the_system_lists_no_processors_its_name_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "none")
    monkeypatch.setattr(products.platform, "processor", lambda: "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert "AuthenticAMD" in products._processor()


def test_weights_keep_their_names(monkeypatch):
    fast = MMDiT(CONFIGS["dual"], device="meta")
    monkeypatch.setattr(products, "fast_dtypes", frozenset)
    assert list(fast.state_dict()) == list(MMDiT(CONFIGS["dual"], device="meta").state_dict())
