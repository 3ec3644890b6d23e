"""What several tests of the core share."""

from __future__ import annotations

import pytest
import torch

from tests.core.models.tiny import CONFIGS, random_model


@pytest.fixture(params=[torch.inference_mode, torch.no_grad])
def without_gradients(request):
    """As ComfyUI runs nodes, and as a library user may run the model: inference tensors count no changes."""
    with request.param():
        yield


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def model():
    return random_model(CONFIGS["dual"])
