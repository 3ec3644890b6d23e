"""What a sampler ran, as plain facts, in words, and as bands of a drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...mmdit_core.control.spec import BlockControl
from ...mmdit_core.solvers import SOLVERS
from ..comfyui import patching
from ..comfyui.families import block_counts
from ..comfyui.frontend import progress
from ..comfyui.run.guider import FlowGuider, Guidance
from ..comfyui.run.solver import Walk
from ..plots.canvas import ACTION_COLOURS
from ..plots.curve import Band
from .plan import Plan

FEW = 40  # sigmas that are all written out
GREY, PURPLE = "#6b7280", "#cc79a7"


def facts_of(plan: Plan, walk: Walk, guider: FlowGuider, notes: Sequence[str]) -> dict[str, Any]:
    """All that is to be told of a run, as plain data; numbers are finite."""
    route, guidance, seeds, count = walk.route, plan.guidance, plan.seeds, guider.count
    run = route.steps - walk.reused
    blocks = block_counts(plan.model)
    block_calls = guider.block_calls
    predictions = guider.alone + guider.guided
    return {
        "model": progress.model_name(plan.model),
        "blocks": None if blocks is None else {"double": blocks[0], "single": blocks[1]},
        "controls": [f"{control_label(item)[0]}{_window(item)}" for item in patching.controls_of(plan.model)],
        "solver": route.solver,
        "calls_per_step": None if route.is_adaptive else SOLVERS[route.solver].calls_per_step,
        "options": dict(route.options),
        "levels_from": plan.source,
        "shift": round(plan.shift, 6),
        "shift_from": plan.shift_from,
        "sigmas": [round(level, 6) for level in route.levels.tolist()],
        "steps": {"first": plan.first, "last": plan.last, "of": len(plan.levels) - 1, "reused": walk.reused},
        "guidance": {
            "form": guidance.form,
            "cfg": guidance.cfg,
            "start": guidance.start,
            "end": guidance.end,
            "curve": guidance.curve,
            **({"rescale": guidance.rescale} if guidance.form == "rescale" else {}),
            **({"resting_steps": route.resting} if route.resting else {}),
        },
        "noise": {
            "seed": seeds.seed,
            "per_image": seeds.each,
            "variation_seed": seeds.variation_seed,
            "variation_strength": seeds.variation,
            "step_noise_seed": seeds.steps,
            "goes_on": plan.start is not None,
            "turns_back": plan.start is not None and plan.start.flow is not None and bool(plan.start.history),
            "left": float(route.levels[-1]) > 0,
        },
        "calls": {
            "model": count.calls,
            "positive_rows": count.rows[0],
            "negative_rows": count.rows[1],
            "predictions": predictions,
            "without_negative": guider.alone,
        },
        "block_calls": None
        if block_calls is None
        else {
            "total": block_calls.total,
            "skipped": block_calls.skipped,
            "extra": block_calls.extra,
            "words": str(block_calls),
        },
        "speed_plan": None if guider.spared is None else {**asdict(guider.spared), "work": guider.spared.work},
        "seconds": {
            "total": round(sum(walk.seconds), 4),
            "a_step": round(sum(walk.seconds) / run, 4) if run and not route.is_adaptive else None,
            "a_call": round(sum(walk.seconds) / count.calls, 4) if count.calls else None,
        },
        "notes": list(notes),
    }


def to_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, allow_nan=False)


def words_of(facts: dict[str, Any]) -> str:
    """The facts in short lines."""
    lines = [
        f"Model: {facts['model']}{_blocks(facts['blocks'])}",
        *(f"Control: {control}" for control in facts["controls"]),
        f"Solver: {_solver(facts)}",
        f"Noise levels: {facts['levels_from']}, shift {facts['shift']:g} ({facts['shift_from']})",
        f"Sigmas: {_sigmas(facts['sigmas'])}",
        f"Steps: {_steps(facts['steps'])}",
        f"Guidance: {_guidance(facts['guidance'])}",
        f"Noise: {_noise(facts['noise'])}",
        f"Model calls: {_calls(facts['calls'])}",
        *(f"Skipped: {line}" for line in _skipped(facts)),
        f"Time: {_time(facts['seconds'])}",
        *facts["notes"],
    ]
    return "\n".join(lines)


def short_of(facts: dict[str, Any]) -> str:
    """What is shown on the node itself: the work and what was saved of it."""
    calls = facts["calls"]["model"]
    lines = [f"{calls} model {'call' if calls == 1 else 'calls'}, {_time(facts['seconds'])}"]
    if facts["steps"]["reused"]:
        lines.append(f"{facts['steps']['reused']} steps taken from the last run")
    return "\n".join([*lines, *(f"skipped {line}" for line in _skipped(facts))])


def _blocks(blocks: dict[str, int] | None) -> str:
    if blocks is None:
        return ""
    if not blocks["single"]:
        return f", {blocks['double']} blocks"
    return f", {blocks['double']} double and {blocks['single']} single blocks"


def _solver(facts: dict[str, Any]) -> str:
    each = facts["calls_per_step"]
    calls = "steps of its own" if each is None else f"{each} model {'call' if each == 1 else 'calls'} a step"
    options = "".join(f", {name} {value:g}" for name, value in facts["options"].items() if name != "max_calls")
    return f"{facts['solver']}, {calls}{options}"


def _sigmas(levels: Sequence[float]) -> str:
    written = [f"{level:.4g}" for level in levels]
    return ", ".join(written if len(written) <= FEW else [*written[:8], "...", *written[-8:]])


def _steps(steps: dict[str, int]) -> str:
    run = steps["last"] - steps["first"]
    part = f"{run}" if run == steps["of"] else f"{steps['first']} to {steps['last']} of {steps['of']}"
    reused = f"; {steps['reused']} of them taken from the last run" if steps["reused"] else ""
    return part + reused


def _guidance(guidance: dict[str, Any]) -> str:
    if guidance["cfg"] == 1:
        return "none: at cfg 1 the negative prompt is not computed"
    form = "" if guidance["form"] == "cfg" else f" as {guidance['form']}"
    if "rescale" in guidance:
        form += f" {guidance['rescale']:g}"
    window = _from_to(guidance["start"], guidance["end"])
    curve = "" if guidance["curve"] == "constant" else f", {guidance['curve'].replace('_', ' ')}"
    rest = f", at rest in the first {guidance['resting_steps']} steps" if "resting_steps" in guidance else ""
    return f"cfg {guidance['cfg']:g}{form}{window}{curve}{rest}"


def _noise(noise: dict[str, Any]) -> str:
    parts = [f"seed {noise['seed']}" + (" and on, one for each picture" if noise["per_image"] else "")]
    if noise["variation_strength"]:
        parts.append(f"{noise['variation_strength']:.0%} of the way to seed {noise['variation_seed']}")
    if noise["step_noise_seed"] is not None:
        parts.append(f"of the steps {noise['step_noise_seed']}")
    if noise["turns_back"]:
        parts.append("none added: the latent goes back the way that FlowInvert came, exactly")
    elif noise["goes_on"]:
        parts.append("none added: the latent goes on where an earlier run ended")
    if noise["left"]:
        parts.append("what is left stays in the latent")
    return ", ".join(parts)


def _calls(calls: dict[str, int]) -> str:
    return f"{calls['model']}; pictures in them: {calls['positive_rows']} positive, {calls['negative_rows']} negative"


def _skipped(facts: dict[str, Any]) -> list[str]:
    calls, lines = facts["calls"], []
    if calls["without_negative"]:
        share = calls["without_negative"] / (2 * calls["predictions"])
        lines.append(
            f"the negative prompt in {calls['without_negative']} of {calls['predictions']} predictions, "
            f"which saves {share:.0%} of the model's work"
        )
    blocks = facts["block_calls"]
    if blocks is not None and (blocks["skipped"] or blocks["extra"]):
        lines.append(blocks["words"].removeprefix("skipped "))
    plan = facts["speed_plan"]
    if plan is not None and plan["work"] < 1:
        spared = plan["reused"] + plan["left_out"]
        lines.append(
            f"by the speed plan {spared} negative and {plan['extrapolated']} positive of "
            f"{plan['predictions']} predictions, "
            f"which saves {1 - plan['work']:.0%} of the model's work"
        )
    return lines


def _time(seconds: dict[str, float | None]) -> str:
    each = next(
        (f"{seconds[name]:.3g} s {name.replace('_', ' ')}, " for name in ("a_step", "a_call") if seconds[name]), ""
    )
    return f"{each}{seconds['total']:.3g} s in all"


def bands_of(plan: Plan) -> list[Band]:
    """When guidance and each block control act, over the steps that a plan runs."""
    levels = plan.levels[plan.first : plan.last].tolist()
    to_sigma = plan.model.get_model_object("model_sampling").percent_to_sigma
    bands = []
    if plan.guidance.cfg != 1:
        bands.append(Band(guidance_label(plan.guidance), GREY, _scales(plan.guidance, levels, to_sigma)))
    for item in patching.controls_of(plan.model):
        label, colour = control_label(item)
        bands.append(Band(label, colour, tuple(item.window.strength_at(level, to_sigma) for level in levels)))
    return bands


def _scales(guidance: Guidance, levels: Sequence[float], to_sigma) -> tuple[float, ...]:
    return tuple((guidance.scale(level, to_sigma) - 1) / (guidance.cfg - 1) for level in levels)


def guidance_label(guidance: Guidance) -> str:
    return f"cfg {guidance.cfg:g}" + ("" if guidance.form == "cfg" else f", {guidance.form}")


def control_label(item: BlockControl) -> tuple[str, str]:
    """A control's label and colour."""
    if item.action == "prompt":
        return f"another prompt in blocks {blocks_text(item.blocks)}", PURPLE
    what = item.action if item.action != "boost" else f"boost x{item.strength:g} ({item.mode})"
    words = f", {', '.join(item.phrases)!r}" if item.phrases else ""
    branch = "" if item.branch == "both" or item.phrases else f", {item.branch}"
    return f"{what}, blocks {blocks_text(item.blocks)}{branch}{words}", ACTION_COLOURS[item.action]


def _window(item: BlockControl) -> str:
    fade = "" if item.window.fade == "constant" else f", fading {item.window.fade}"
    return _from_to(item.window.start, item.window.end) + fade


def _from_to(start: float, end: float) -> str:
    return "" if start <= 0 and end >= 1 else f", from {start:.0%} to {end:.0%} of the sampling"


def blocks_text(blocks: Sequence[int]) -> str:
    """Blocks as one would write them for a node: (3, 4, 5, 9) is "3-5, 9"."""
    spans: list[list[int]] = []
    for block in sorted(blocks):
        if spans and block == spans[-1][1] + 1:
            spans[-1][1] = block
        else:
            spans.append([block, block])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans) or "none"
