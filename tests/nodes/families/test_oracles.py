"""Every oracle on every family: tiny random models in float32, cfg 1 and 3, batch 1 and 2, odd sizes, with a LoRA."""

from __future__ import annotations

import pytest

from tests.nodes.families.oracles import ORACLES, ROUNDING, SKIP_ALONE, Bench
from tests.nodes.families.tiny import FAMILIES

SETTINGS = {"cfg 3, batch 2, LoRA": (3.0, 2, True), "cfg 1, batch 1": (1.0, 1, False)}
# Its image is padded to a multiple of 32 tokens at position 0, so that the refiners before the blocks see how long the
# text is: with another padded length the prompt is not quite that prompt.
SEES_THE_LENGTH = (("Z-Image", "longer"), ("Z-Image Pixel Space", "longer"))
# Latent pixels along a token, where the number of channels does not tell.
PATCHES = {**dict.fromkeys(("Chroma Radiance", "Z-Image Pixel Space", "PixelDiT", "PiD"), 4), "MiniMax H3": 2}


@pytest.fixture(params=SETTINGS)
def setting(request):
    return SETTINGS[request.param]


PAIRS = [
    (n, oracle) for n, tiny in FAMILIES.items() for oracle in ORACLES if not tiny.only_skip or oracle in SKIP_ALONE
]


@pytest.mark.parametrize(("name", "oracle"), PAIRS)
def test_an_oracle_on_a_family(bench, name, oracle, setting):
    made = Bench.make(bench.module, name, *setting)
    assert made.family is not None
    if (name, oracle) in SEES_THE_LENGTH:
        assert ROUNDING < ORACLES[oracle](made) < 5e-3
    else:
        assert ORACLES[oracle](made) <= ROUNDING


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_knows_the_size_of_an_image_token(bench, name):
    """A schedule's shift by size is that of the image's tokens, of one frame and without padding and references."""
    made = Bench.make(bench.module, name)
    height, width = made.latent.shape[-2:]
    patch = PATCHES.get(name, 1 if made.latent.shape[1] in (128, 64, 32) else 2)
    expected = -(-height // patch) * -(-width // patch)
    assert (
        bench.module("comfyui.run.sampling").tokens_of(made.model, made.latent)
        == expected
        == (24 if name == "WanDancer" else 20)
    )
