"""The faster product: where it is taken, that it is the same product, and that nobody is left out of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.flops import flop_counter
from mmdit_core import MMDiT, products
from tests.core.prepared import CONFIGS, LEVELS, TOLERANCE, call, error, inputs, random_model

ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch):
    """On any machine whose torch has the product: it is as right on the others, only not known to be faster."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no such product")
    monkeypatch.setattr(products, "has_fast_products", lambda: True)


def layer_of(**given) -> nn.Linear:
    torch.manual_seed(0)
    return products.with_fast_products(nn).Linear(48, 80, **given).requires_grad_(False)


def taken(work) -> list[str]:
    """The products among what torch is asked for."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return [event.key for event in profile.key_averages() if event.key in (ONEDNN, "aten::linear")]


@pytest.mark.parametrize("shape", [(48,), (0, 48), (1, 48), (2, 48), (2, 5, 48), (3, 2, 7, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product_of_a_plain_layer(shape, bias):
    layer, x = layer_of(bias=bias), torch.randn(shape)
    found, expected = layer(x), nn.functional.linear(x.double(), layer.weight.double(), None)
    expected = expected + layer.bias.double() if bias else expected
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert taken(lambda: layer(x)) == [ONEDNN]


def test_rows_need_not_lie_side_by_side():
    layer, x = layer_of(), torch.randn(2, 48, 9)[:, :, ::2].transpose(1, 2)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x[:, 1:3]), layer(x[:, 1:3].contiguous()))


def half(layer, x):
    layer.bfloat16()
    return x.bfloat16()


def double(layer, x):
    layer.double()
    return x.double()


def training(layer, x):
    layer.requires_grad_(True)
    return x


def input_that_learns(layer, x):
    return x.requires_grad_(True)


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


OTHERS = (
    half,
    double,
    training,
    input_that_learns,
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


def test_gradients_are_those_of_the_plain_layer():
    layer = layer_of(dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(layer, (torch.randn(3, 48, dtype=torch.float64, requires_grad=True),))


def test_hooks_and_exchanged_forwards_see_the_layer_as_ever():
    layer, x, seen = layer_of(), torch.randn(2, 48), []
    layer.register_forward_hook(lambda layer, given, out: seen.append(out))
    assert layer(x) is seen[0]
    own = layer.forward
    layer.forward = lambda x: 2 * own(x)  # as a host adds a LoRA beside the weight
    assert torch.equal(layer(x), 2 * seen[0])


def test_the_layer_is_a_hosts_own_kind_and_one_class_for_all_models():
    class Linear(nn.Linear):
        comfy_cast_weights = False

    host = SimpleNamespace(Linear=Linear, Conv2d=nn.Conv2d, LayerNorm=nn.LayerNorm, RMSNorm=nn.RMSNorm)
    fast = products.with_fast_products(host)
    assert issubclass(fast.Linear, Linear) and fast.Linear is products.with_fast_products(host).Linear
    assert fast.LayerNorm is nn.LayerNorm


def test_a_linear_layer_that_is_none_of_torchs_is_left_alone():
    host = SimpleNamespace(Linear=object)
    assert products.with_fast_products(host) is host


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_computes_the_same_and_every_product_of_it_is_the_fast_one(kind, monkeypatch, inference):
    model, given = random_model(CONFIGS[kind]), inputs()
    monkeypatch.setattr(products, "has_fast_products", lambda: False)
    plain = random_model(CONFIGS[kind])
    assert error(call(model, LEVELS[0], given), call(plain, LEVELS[0], given)) <= TOLERANCE
    assert taken(lambda: call(model, LEVELS[0], given)) == [ONEDNN]
    assert taken(lambda: call(plain, LEVELS[0], given)) == ["aten::linear"]


def test_flops_are_counted_whichever_product_it_is(monkeypatch, inference):
    given, counts = inputs(), []
    for fast in (True, False):
        monkeypatch.setattr(products, "has_fast_products", lambda fast=fast: fast)
        model = random_model(CONFIGS["dual"])
        with flop_counter() as counter:
            call(model, LEVELS[0], given)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("processor", "has", "expected"),
    [
        ("vendor_id : AuthenticAMD", True, True),
        ("vendor_id : GenuineIntel", True, False),
        ("vendor_id : AuthenticAMD", False, False),
    ],
)
def test_only_where_it_gains(processor, has, expected, monkeypatch, tmp_path):
    monkeypatch.undo()
    listed = tmp_path / "cpuinfo"
    listed.write_text(processor)
    monkeypatch.setattr(products, "Path", lambda _: listed)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has)
    assert products.has_fast_products.__wrapped__() is expected


def test_where_the_system_lists_no_processors_its_name_is_asked(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "none")
    monkeypatch.setattr(products.platform, "processor", lambda: "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert products.has_fast_products.__wrapped__() is True


def test_weights_keep_their_names(monkeypatch):
    fast = MMDiT(CONFIGS["dual"], device="meta")
    monkeypatch.setattr(products, "has_fast_products", lambda: False)
    assert list(fast.state_dict()) == list(MMDiT(CONFIGS["dual"], device="meta").state_dict())
