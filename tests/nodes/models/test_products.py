"""The faster product in the host's own layers: they still do what else they have to do."""

from __future__ import annotations

import comfy.model_management
import comfy.ops
import pytest
import torch

from mmdit_core.models import products
from tests.core.models.taken import ONEDNN, taken

pytestmark = pytest.mark.usefixtures("on_such_a_processor")


@pytest.fixture
def on_such_a_processor(monkeypatch):
    monkeypatch.setattr(products, "fast_dtypes", lambda: frozenset((torch.float32, torch.bfloat16)))
    with torch.inference_mode():
        yield


@pytest.fixture(params=["disable_weight_init", "manual_cast"])
def layer(request):
    torch.manual_seed(0)
    made = products.with_fast_products(getattr(comfy.ops, request.param)).Linear(48, 80)
    made.weight, made.bias = (torch.nn.Parameter(torch.randn(size), requires_grad=False) for size in ((80, 48), 80))
    return made


def test_a_layer_takes_it_and_gives_what_the_hosts_own_gives(layer):
    x = torch.randn(2, 5, 48)
    assert taken(lambda: layer(x)) == [ONEDNN]
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_patched_in_the_call_is_the_patched_one(layer):
    layer.weight_function = [lambda weight: 2 * weight]
    x = torch.randn(2, 5, 48)
    assert taken(lambda: layer(x)) == ["aten::linear"]
    assert torch.equal(layer(x), torch.nn.functional.linear(x, 2 * layer.weight, layer.bias))


def test_a_run_that_was_cancelled_ends_in_it(layer):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        layer(torch.randn(1, 48))
    layer(torch.randn(1, 48))  # the host forgets a cancelled run once it has ended


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_a_weight_of_another_dtype_is_cast_by_the_host(dtype):
    layer = products.with_fast_products(comfy.ops.manual_cast).Linear(48, 80)
    layer.weight = torch.nn.Parameter(torch.randn(80, 48).to(dtype), requires_grad=False)
    layer.bias = torch.nn.Parameter(torch.randn(80).to(dtype), requires_grad=False)
    x = torch.randn(2, 48)
    assert taken(lambda: layer(x)) == ["aten::linear"]
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight.float(), layer.bias.float()))
