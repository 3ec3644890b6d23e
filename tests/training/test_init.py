"""The weights that training starts from."""

from __future__ import annotations

import torch

from mmdit_core import MMDiT
from tests.core.models.tiny import CONFIGS, inputs
from training.init import init_weights


def test_fresh_weights_start_as_the_zero_velocity():
    torch.manual_seed(0)
    model = MMDiT(CONFIGS["dual"])
    init_weights(model)
    assert model(**inputs(), timesteps=torch.tensor([30.0, 900.0])).abs().max() == 0
    assert model.pos_embed.std() > 0.5
