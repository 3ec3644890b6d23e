"""What several tests of the core share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=[torch.inference_mode, torch.no_grad])
def without_gradients(request):
    """As the host runs nodes, and as everyone else does: tensors of the former count no changes."""
    with request.param():
        yield


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield
