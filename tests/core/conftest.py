"""What several tests of the core share."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.models import adaln as modulation
from mmdit_core.models.adaln import PACES, USUAL_PACE, Pace
from tests.core.models.prepared import CONFIGS, random_model


@pytest.fixture(params=[torch.inference_mode, torch.no_grad])
def without_gradients(request):
    """As the host runs nodes, and as everyone else does: tensors of the former count no changes."""
    with request.param():
        yield


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def model():
    return random_model(CONFIGS["dual"])


@pytest.fixture(params=["cpu", "gpu", "gpu, small tiles"])
def pace(request, monkeypatch):
    """Each way to compute the rows, on the device that is here."""
    if request.param == "cpu":
        return PACES["cpu"]
    found = USUAL_PACE if request.param == "gpu" else Pace(16, whole=True)
    monkeypatch.setattr(modulation, "USUAL_PACE", found)
    monkeypatch.delitem(PACES, "cpu")
    return found
