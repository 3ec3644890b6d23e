"""FlowMatchingSampler's first eleven inputs make the images that they always made: frozen numbers of a tiny model.

The numbers are of the node as it was when it had these inputs alone. They change for no reason but a mistake.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdit_core import MMDiT, MMDiTConfig

NUMBERS = Path(__file__).with_name("golden_latents.json")
TOLERANCE = 1e-4  # of latents with a spread of 1: processors differ by 1e-6, another setting by far more

USUAL = dict(seed=5, steps=4, cfg=3.0, solver="euler", schedule="linear", shift=0.0, denoise=1.0)
# By name: solvers and schedules that came later have no old images.
SOLVERS = (
    *("euler", "heun", "midpoint", "ralston", "rk4", "dpmpp_2m", "dpmpp_2m_logsnr", "res_2m", "res_2m_logsnr"),
    *("res_2s", "unipc", "ab2", "ab3", "ab4", "bosh3", "dopri5", "euler_ancestral", "dpmpp_2m_sde"),
)
SCHEDULES = ("linear", "sd3", "beta", "karras", "cosine", "log_snr", "cosmap")
CASES = {
    **{f"solver {name}": {"solver": name, "steps": 6} for name in SOLVERS},
    **{f"schedule {name}": {"schedule": name, "steps": 5} for name in SCHEDULES},
    "cfg 1": {"cfg": 1.0},
    "cfg 0": {"cfg": 0.0},
    "shift 1.6": {"shift": 1.6, "solver": "dpmpp_2m"},
    "another seed": {"seed": 2**64 - 1, "steps": 2},
    "picture": {"latent": "picture", "denoise": 0.5},
    "picture, stochastic": {"latent": "picture", "denoise": 0.7, "solver": "euler_ancestral"},
    "mask": {"latent": "mask"},
    "batch": {"latent": "batch"},
    "batch, stochastic": {"latent": "batch", "solver": "dpmpp_2m_sde"},
    "batch_index": {"latent": "batch_index"},
}


@pytest.fixture(scope="module")
def model(pack, tmp_path_factory):
    """Every weight drawn for itself, so that no change of the model's own initialisation reaches it."""
    with torch.device("meta"):
        shapes = MMDiT(
            MMDiTConfig(hidden_size=128, num_heads=2, depth=2, pos_embed_max_size=24, qk_norm="rms")
        ).state_dict()
    source = torch.Generator().manual_seed(2601)
    weights = {name: torch.randn(shapes[name].shape, generator=source) for name in sorted(shapes)}
    path = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    scaled = {name: value if name == "pos_embed" else 0.05 * value for name, value in weights.items()}
    save_file({f"model.diffusion_model.{name}": value for name, value in scaled.items()}, path)
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(path))


def made_of(model, pack, latent="empty", **changed) -> list[float]:
    """A few numbers that any change of the latent would move: mean, spread, and six of its values."""
    source = torch.Generator().manual_seed(2602)
    texts = [
        [[torch.randn(1, 20, 4096, generator=source), {"pooled_output": torch.randn(1, 2048, generator=source)}]]
        for _ in range(2)
    ]
    picture = torch.randn(1, 16, 8, 8, generator=source)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    given = {
        "empty": {"samples": torch.zeros(1, 16, 8, 8)},
        "picture": {"samples": picture},
        "mask": {"samples": picture, "noise_mask": mask},
        "batch": {"samples": torch.zeros(3, 16, 8, 8)},
        "batch_index": {"samples": torch.zeros(2, 16, 8, 8), "batch_index": [3, 1]},
    }[latent]
    node = sys.modules[f"{pack.__name__}.nodes.sampler.node"].FlowMatchingSampler()
    made = node.sample(model, *texts, given, **{**USUAL, **changed})[0]["samples"].flatten()
    picked = made[:: len(made) // 6][:6]
    return [round(value, 6) for value in (made.mean().item(), made.std().item(), *picked.tolist())]


@pytest.mark.parametrize("case", CASES)
def test_old_settings_give_the_old_image(pack, model, case):
    frozen = json.loads(NUMBERS.read_text(encoding="utf-8"))[case]
    assert made_of(model, pack, **CASES[case]) == pytest.approx(frozen, abs=TOLERANCE)


def test_every_case_is_frozen_and_no_two_are_the_same_image():
    frozen = json.loads(NUMBERS.read_text(encoding="utf-8"))
    assert list(frozen) == list(CASES)
    assert len({tuple(numbers) for numbers in frozen.values()}) == len(CASES)
