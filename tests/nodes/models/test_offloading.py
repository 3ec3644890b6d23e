"""Offloading: AdaLN's layers come last, a load list of another form is unchanged, the AdaLN cache needs memory."""

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
def test_a_load_list_of_another_form_keeps_its_order(bench, kind):
    given, expected = LISTS[kind]

    class Patcher:
        def _load_list(self):
            return given

    found = bench.module("comfyui.loading.offloading").adaln_last(Patcher)()._load_list()
    assert found == (given if expected is None else expected) and type(found) is type(given)
    assert [type(entry) for entry in found] == [type(entry) for entry in given]


def test_memory_for_the_cache_is_required_also_after_another_node_exchanged_the_model(bench, tiny_file):
    base = (
        bench.module("comfyui.loading.model").load_model(str(tiny_file)).model
    )  # of its own: this test takes it apart
    required = base.memory_required([2, 16, 8, 8])
    engine = torch.nn.Identity()
    engine.dtype = torch.float32  # all that ComfyUI reads of it here
    base.diffusion_model = engine
    assert base.memory_required([2, 16, 8, 8]) == required
    assert required > super(type(base), base).memory_required([2, 16, 8, 8])
