"""FlowMatchingSampler with any inputs that its widgets allow: a finite latent of the right shape, or a named error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.schedules import SCHEDULES
from mmdit_core.flow.window import Window
from mmdit_core.guidance.cfg import CURVES
from mmdit_core.solvers import SOLVERS

SHARES = st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
STEPS = st.sampled_from([0, 1, 2, 3, 10_000])
SEEDS = st.sampled_from([0, 1, 2**63, 2**64 - 1])
DIALS = {
    "seed": SEEDS,
    "steps": st.integers(1, 4),
    "cfg": st.sampled_from([0.0, 1.0, 4.5, 100.0]),
    "solver": st.sampled_from(sorted(SOLVERS)),
    "schedule": st.sampled_from(sorted(SCHEDULES)),
    "shift": st.sampled_from([0.0, 0.05, 1.0, 3.0, 100.0]),
    "denoise": st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    "cfg_start": SHARES,
    "cfg_end": SHARES,
    "guidance": st.sampled_from(["cfg", "rescale", "cfg_zero_star", "apg"]),
    "eta": SHARES,
    "start_step": STEPS,
    "end_step": STEPS,
    "variation_seed": SEEDS,
    "variation_strength": SHARES,
    "reuse": st.booleans(),
    "custom_sigmas": st.sampled_from(["", "1 0.5 0", "0.7, 0.2", "1, 0", "0.3, 0.9"]),
    "cfg_curve": st.sampled_from(sorted(CURVES)),
    "rescale": SHARES,
    "zero_steps": STEPS,
    "size_shift": st.sampled_from(["off", "flux", "sd3"]),
    "batch_noise": st.sampled_from(["shared", "per image"]),
    "add_noise": st.sampled_from(["auto", "enable", "disable"]),
    "step_noise_seed": st.sampled_from([-1, 0, 2**64 - 1]),
    "tolerance": st.sampled_from([0.03, 0.3, 1.0]),
}
LATENTS = {
    "empty": lambda bench: bench.empty(),
    "batch": lambda bench: {**bench.empty(2), "batch_index": [3, 1]},
    "odd": lambda bench: {"samples": torch.ones(1, 16, 7, 5)},
    "masked": lambda bench: {"samples": bench.latent, "noise_mask": torch.eye(8)[None]},
    "unfinished": lambda bench: bench.all(end_step=2, steps=4)[0],
}
CONTROLS = st.lists(
    st.builds(
        lambda kind, start, end: BlockControl(window=Window(start, end), **kind),
        st.sampled_from([dict(action="skip", blocks=(1,)), dict(action="boost", blocks=(0,), strength=2.0)]),
        SHARES,
        SHARES,
    ),
    max_size=1,
)


def test_all_widgets_are_covered(bench):
    inputs = bench.module("sampler.node").FlowMatchingSampler.INPUT_TYPES()
    widgets = {name for part in ("required", "optional") for name, spec in inputs[part].items()}
    assert widgets - {"model", "positive", "negative", "latent_image", "sigmas"} == set(DIALS)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    # Most inputs at their defaults, as people leave them, and any few at any value.
    changed=st.lists(st.sampled_from(sorted(DIALS)), max_size=7, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: DIALS[name] for name in names})
    ),
    kind=st.sampled_from(sorted(LATENTS)),
    controls=CONTROLS,
)
def test_any_valid_inputs_give_a_finite_latent_or_a_named_error(bench, changed, kind, controls):
    latent = LATENTS[kind](bench)
    model = bench.attach(bench.model, controls)
    given = {"steps": 3, "tolerance": 0.3, **changed}
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in latent.items()}
    try:
        out, curve, summary = bench.all(latent, model=model, **given)
    except ValueError as error:
        event("an error")
        assert any(str(error).startswith(f"FlowMatchingSampler: {name}: ") for name in DIALS), error
        return
    event("a latent")
    assert out["samples"].shape == latent["samples"].shape and out["samples"].isfinite().all()
    assert curve.isfinite().all() and curve.shape[0] == 1 and summary
    assert torch.equal(before["samples"], latent["samples"]) and set(before) == set(latent)  # what came in stays


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["cfg", "shift", "denoise", "eta", "rescale", "tolerance", "steps", "seed", "zero_steps"]),
    value=st.one_of(st.floats(), st.integers(-(2**70), 2**70)),
)
def test_any_number_is_accepted_or_refused_by_name(bench, name, value):
    options = bench.module("sampler.node").FlowMatchingSampler.INPUT_TYPES()
    spec = {**options["required"], **options["optional"]}[name][1]
    if spec["min"] <= value <= spec["max"]:
        return
    with pytest.raises(ValueError, match=f"FlowMatchingSampler: {name}: "):
        bench.run(**{name: value})


def test_the_first_inputs_keep_their_positions(bench):
    """Shared workflows store values by position: required ones first, then those that were appended, in order."""
    inputs = bench.module("sampler.node").FlowMatchingSampler.INPUT_TYPES()
    assert [*inputs["required"], *inputs["optional"]][:21] == [
        *("model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "solver", "schedule", "shift"),
        *("denoise", "cfg_start", "cfg_end", "guidance", "eta", "start_step", "end_step", "variation_seed"),
        *("variation_strength", "reuse", "sigmas"),
    ]
    node = bench.module("sampler.node").FlowMatchingSampler
    assert node.RETURN_TYPES == ("LATENT", "IMAGE", "STRING") and node.RETURN_NAMES == ("LATENT", "curve", "summary")
    for name, (kind, options) in inputs["optional"].items():
        assert options["tooltip"], name
        assert kind == "SIGMAS" or "default" in options
        assert not (isinstance(options.get("default"), float) and math.isnan(options["default"]))
