"""The curve on the node while inputs change: exactly the sigmas and windows that the sampler then runs."""

from __future__ import annotations

import comfy.ops
import pytest
import torch
from comfy.ldm.aura.mmdit import MMDiT as AuraFlow
from comfy.ldm.flux.model import Flux
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel as QwenImage
from safetensors.torch import save_file

from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.window import Window

OPERATIONS = comfy.ops.disable_weight_init
DIALS = dict(
    steps=6, cfg=3.0, solver="euler", schedule="linear", shift=0.0, denoise=1.0, cfg_start=0.0, cfg_end=1.0,
    start_step=0, end_step=10_000, custom_sigmas="", cfg_curve="constant", size_shift="off",
)  # fmt: skip
WINDOWS = ((0.0, 1.0, "constant"), (0.25, 0.6, "constant"), (0.1, 0.9, "cosine"), (0.4, 1.0, "in"), (0.5, 0.2, "out"))
FLUX_SIZES = dict(
    in_channels=64, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, num_heads=24,
    mlp_ratio=4.0, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, txt_ids_dims=[],
    operations=OPERATIONS,
)  # fmt: skip
# ComfyUI's models -> the shift that they have when nothing else is set.
OTHERS = {
    "FLUX.1-dev": (lambda: Flux(guidance_embed=True, **FLUX_SIZES), 3.1582),
    "FLUX.1-schnell": (lambda: Flux(guidance_embed=False, **FLUX_SIZES), 1.0),
    "Qwen-Image": (
        lambda: QwenImage(
            in_channels=64, out_channels=16, num_layers=1, attention_head_dim=128, num_attention_heads=24,
            joint_attention_dim=3584, axes_dims_rope=(16, 56, 56), operations=OPERATIONS,
        ),
        3.1582,
    ),
    "AuraFlow": (
        lambda: AuraFlow(n_layers=2, n_double_layers=1, dim=64, n_heads=2, global_conddim=64, max_seq=16,
                         operations=OPERATIONS),
        1.73,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ask(bench, tiny_file):
    """The curve for changed inputs, of the tiny model's file."""
    live = bench.module("sampler.live_curve").live_curve

    def asked(path=tiny_file, own_loader=True, model_shift=None, size=(None, None), windows=(), **changed):
        given = {"inputs": {**DIALS, **changed}, "model_shift": model_shift, "own_loader": own_loader}
        given |= {"width": size[0], "height": size[1]}
        given["windows"] = [dict(zip(("start", "end", "fade"), window, strict=True)) for window in windows]
        return live(given, path)

    return asked


CASES = {
    "as it comes": {},
    "another shift": {"shift": 5.5},
    "image to image": {"denoise": 0.35, "schedule": "sd3"},
    "part of a run": {"start_step": 2, "end_step": 4, "schedule": "beta"},
    "written levels": {"custom_sigmas": "1, 0.8, 0.3, 0"},
    "cfg for a while": {"cfg_start": 0.2, "cfg_end": 0.7, "schedule": "karras"},
    "cfg that rises": {"cfg_curve": "rising", "cfg_end": 0.8, "shift": 2.0},
    "FLUX's rule": {"size_shift": "flux"},
    "by the root of the pixels": {"size_shift": "sd3", "shift": 4.0},
    "no cfg": {"cfg": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_what_the_sampler_then_runs(bench, ask, case):
    plans, summary = (bench.module(name) for name in ("sampler.plan", "sampler.report"))
    made = [BlockControl("boost", (0,), 2.0, window=Window(*window)) for window in WINDOWS]
    model = bench.attach(bench.model, made)
    latent = bench.empty()
    inputs = bench.module("sampler.inputs").SamplerInputs(seed=1, **DIALS | CASES[case])
    plan = plans.make_plan(model, bench.positive, bench.negative, latent, inputs)
    bands = [band.strengths for band in summary.bands_of(plan)]

    told = ask(size=(64, 64), windows=WINDOWS, **CASES[case])
    assert [level for _, level in told["points"]] == pytest.approx(plan.sigmas.tolist(), abs=1e-5)
    assert (told["first"], told["last"], told["steps"]) == (plan.first, plan.last, len(plan.sigmas) - 1)
    assert told["shift"] == pytest.approx(plan.shift, abs=1e-4)
    if inputs.cfg == 1:
        assert told["cfg"] is None
        bands.insert(0, None)
    else:
        assert told["cfg"][plan.first : plan.last] == pytest.approx(bands[0], abs=1e-3)
    acting = [shares for shares, window in zip(told["windows"], made, strict=True) if not window.does_nothing]
    assert len(acting) == len(bands) - 1
    for shares, band in zip(acting, bands[1:], strict=True):
        assert shares[plan.first : plan.last] == pytest.approx(band, abs=1e-3)


def test_a_schedule_longer_than_the_plot_keeps_both_ends(ask):
    told = ask(steps=1001)
    assert len(told["points"]) <= 201 and len(told["cfg"]) == len(told["points"]) - 1
    assert told["points"][0] == [0, 1.0] and told["points"][-1] == [1001, 0.0]


def test_comfyuis_loader_gives_the_same_shift(bench, ask, tiny_file):
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(tiny_file))
    assert ask(own_loader=False)["shift"] == bench.module("comfyui.run.sampling").read_model(model).shift == 3.0


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_shifts_are_read_from_their_headers(ask, tmp_path, name):
    make, shift = OTHERS[name]
    with torch.device("meta"):
        state = make().state_dict()
    path = tmp_path / "other.safetensors"
    save_header(path, {key: list(value.shape) for key, value in state.items()})
    told = ask(path, own_loader=False)
    assert told["shift"] == pytest.approx(shift, abs=1e-4) and told["own"]
    assert ask(path, own_loader=False, model_shift=7.0)["shift"] == pytest.approx(7.0)


def save_header(path, shapes) -> None:
    """A file with a whole header and, on disks that can, no bytes behind it."""
    import json
    import math
    import struct

    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_what_is_not_known_is_reported_as_missing(ask, tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "no-model.safetensors")
    for path in (None, tmp_path / "no-model.safetensors"):
        assert ask(path) == ask(path, own_loader=False) == {"missing": "shift"}
        assert ask(path, shift=3.0)["shift"] == ask(path, model_shift=3.0)["shift"] == 3.0
    assert ask(size_shift="sd3") == ask(size_shift="flux") == {"missing": "size"}


def test_inputs_that_the_node_refuses_are_refused_with_its_message(ask):
    assert ask(cfg_start=0.6, cfg_end=0.5)["error"].startswith("cfg_end: 0.5 is before cfg_start, 0.6")
    assert ask(steps=10_000, denoise=0.001)["error"].startswith("denoise: 0.001 with 10,000 steps is the end of")
    assert ask(custom_sigmas="1, 2")["error"].startswith("custom_sigmas: sigma 1 is 2")
    assert ask(steps=0)["error"].startswith("steps: 0")
    assert ask(shift=float("nan"))["error"].startswith("shift: nan")
