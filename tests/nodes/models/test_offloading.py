"""What a host is told: AdaLN's layers come last, a list of another form stays as it is, the table takes memory."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

LAYER = torch.nn.Linear(1, 1)
NAME = "diffusion_model.joint_blocks.0.x_block.adaLN_modulation.1"
LISTS = {
    "of today": ([(7, 5, NAME, LAYER, {})], [(0, 5, NAME, LAYER, {})]),
    "of today, dynamic": ([(True, -7, 5, NAME, LAYER, {})], [(True, 1, 5, NAME, LAYER, {})]),
    "another layer": ([(7, 5, "diffusion_model.x_embedder.proj", LAYER, {})], None),
    "another order": ([(NAME, 7, 5, LAYER, {})], None),
    "more": ([(7, 5, NAME, LAYER, {}, None)], None),
    "more numbers": ([(7, 3, 5, NAME, LAYER, {})], None),
    "a class of its own": ([SimpleNamespace(cost=7, name=NAME)], None),
    "a named tuple": ([namedtuple("Entry", "cost size name layer weights")(7, 5, NAME, LAYER, {})], None),
    "by name": ({NAME: 7}, None),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_another_host_keeps_its_own_order(bench, kind):
    given, expected = LISTS[kind]

    class Patcher:
        def _load_list(self):
            return given

    found = bench.module("comfyui.loading.offloading").last_in(Patcher)()._load_list()
    assert found == (given if expected is None else expected) and type(found) is type(given)
    assert [type(entry) for entry in found] == [type(entry) for entry in given]


def test_memory_is_asked_for_also_where_another_node_put_something_else_in_the_models_place(bench, tiny_file):
    base = (
        bench.module("comfyui.loading.model").load_model(str(tiny_file)).model
    )  # of its own: this test takes it apart
    told = base.memory_required([2, 16, 8, 8])
    engine = torch.nn.Identity()
    engine.dtype = torch.float32  # all that the host asks of it here
    base.diffusion_model = engine
    assert base.memory_required([2, 16, 8, 8]) == told
    assert told > super(type(base), base).memory_required([2, 16, 8, 8])
