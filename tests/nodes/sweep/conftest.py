"""The fixtures of SweepXY."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="module")
def nodes(pack):
    return pack.NODE_CLASS_MAPPINGS


@pytest.fixture
def node(nodes):
    return nodes["SweepXY"]()


@pytest.fixture
def model(pack, tiny_file):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(tiny_file))
