"""What a sampler did: as plain data, in words, and as bands of the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ...mmdit_core.caching.step_cache import PredictionCount
from ...mmdit_core.control.model_call import BlockCallCount
from ...mmdit_core.control.spec import BlockControl
from ...mmdit_core.flow.sigma import PercentToSigma
from ...mmdit_core.flow.window import Window
from ...mmdit_core.solvers import SOLVERS
from ..comfyui import patching
from ..comfyui.run.guidance import Guidance
from ..comfyui.run.solver import SolverRun
from ..plots.canvas import ACTION_COLOURS, GREY, as_image
from ..plots.curve import Band, draw_curve
from .plan import SamplerPlan

MAX_SIGMAS = 40  # that a summary lists in full


@dataclass(frozen=True)
class SamplerReport:
    """What a run did, as JSON can hold it; the fields are the keys of the report in a PNG.

    A seed is None where no noise was drawn from it. levels_from and shift_from say in words where the sigmas and the
    shift come from; calls and seconds are of what ran, without the steps that were reused.
    """

    model: str
    blocks: dict[str, Any] | None
    controls: list[str]
    solver: str
    calls_per_step: int | None
    options: dict[str, float]
    levels_from: str
    shift: float
    shift_from: str
    sigmas: list[float]
    steps: dict[str, int]
    guidance: dict[str, Any]
    noise: dict[str, Any]
    calls: dict[str, int]
    block_calls: dict[str, Any] | None
    speed_plan: dict[str, Any] | None
    modulation: dict[str, Any] | None
    seconds: dict[str, float | None]
    notes: list[str]


def make_report(
    plan: SamplerPlan, run: SolverRun, no_reuse: str | None = None, notes: tuple[str, ...] = ()
) -> SamplerReport:
    """The report of a run that ended.

    Args: no_reuse, in words why the run cache could not be used; notes, besides the plan's.
    """
    steps, guidance, seeds = run.steps, run.steps.guidance, plan.inputs.seeds
    counts = run.counts or patching.Run()
    blocks, start = plan.facts.blocks, steps.start
    sections = [[name, count] for name, count in plan.facts.sections]
    ran, seconds = steps.count - run.reused, sum(run.seconds)
    added, drawn = plan.add_noise, bool(steps.options.get("eta"))
    cached = None if counts.step_cache is None else counts.step_cache.count
    calls, block_calls = counts.calls, counts.block_calls
    return SamplerReport(
        model=plan.facts.name,
        blocks=None if blocks is None else {"double": blocks[0], "single": blocks[1], "sections": sections},
        controls=[f"{control_label(control)}{_window(control)}" for control in plan.controls],
        solver=steps.solver,
        calls_per_step=None if steps.is_adaptive else SOLVERS[steps.solver].calls_per_step,
        options=dict(steps.options),
        levels_from=plan.sigmas_from,
        shift=round(plan.shift, 6),
        shift_from=plan.shift_from,
        sigmas=[round(sigma, 6) for sigma in steps.sigmas.tolist()],
        steps={"first": plan.first, "last": plan.last, "of": len(plan.sigmas) - 1, "reused": run.reused},
        guidance={
            "form": guidance.form,
            "cfg": guidance.cfg,
            "start": guidance.window.start,
            "end": guidance.window.end,
            "curve": guidance.curve,
            **({"rescale": guidance.rescale} if guidance.form == "rescale" else {}),
            **({"resting_steps": min(steps.zero_steps, steps.count)} if steps.zero_steps else {}),
        },
        noise={
            "added": added,
            "seed": seeds.seed if added else None,
            "per_image": seeds.each and (added or drawn),
            "variation_seed": seeds.variation_seed if added and seeds.variation else None,
            "variation_strength": seeds.variation if added else 0.0,
            "step_noise_seed": None if not drawn else seeds.seed if seeds.steps is None else seeds.steps,
            "goes_on": start is not None,
            "turns_back": start is not None and start.flow is not None and bool(start.history),
            "left": float(steps.sigmas[-1]) > 0,
        },
        calls={
            "model": calls.calls,
            "positive_rows": calls.rows["positive"],
            "negative_rows": calls.rows["negative"],
            "predictions": run.predictions,
            "without_negative": run.without_negative,
        },
        block_calls={**asdict(block_calls), "words": str(block_calls)} if block_calls.total else None,
        speed_plan=None if cached is None else _predictions(cached),
        modulation=None if counts.modulation is None else counts.modulation.to_dict(),
        seconds={
            "total": round(seconds, 4),
            "a_step": round(seconds / ran, 4) if ran and not steps.is_adaptive else None,
            "a_call": round(seconds / calls.calls, 4) if calls.calls else None,
        },
        notes=[*plan.notes, *notes, *([] if no_reuse is None else [f"Reuse: not possible, {no_reuse}"])],
    )


def _predictions(count: PredictionCount) -> dict[str, Any]:
    """A step cache's count; what is seldom there only if it is."""
    seldom = ("without_cond", "out_of_range", "ends_at")
    found = {name: value for name, value in asdict(count).items() if value or name not in seldom}
    return {**found, "work": count.work}


def summary(report: SamplerReport) -> str:
    """The report in lines."""
    calls = report.calls
    lines = [
        f"Model: {report.model}{_blocks(report.blocks)}",
        *(f"Control: {control}" for control in report.controls),
        f"Solver: {_solver(report)}",
        f"Schedule: {report.levels_from}, shift {report.shift:g} ({report.shift_from})",
        f"Sigmas: {_sigmas(report.sigmas)}",
        f"Steps: {_steps(report.steps)}",
        f"Guidance: {_guidance(report.guidance, calls)}",
        f"Noise: {_noise(report.noise)}",
        f"Model calls: {calls['model']}; images in them: {calls['positive_rows']} positive, "
        f"{calls['negative_rows']} negative",
        *(f"Skipped: {line}" for line in _skipped(report)),
        *(f"Block prompt: {line}" for line in _extra(report)),
        *([report.modulation["words"]] if report.modulation else []),
        f"Time: {_time(report.seconds)}",
        *report.notes,
    ]
    return "\n".join(lines)


def short(report: SamplerReport) -> str:
    """The lines that the node itself shows: the work, what was saved of it, and the notes."""
    reused = report.steps["reused"]
    lines = [f"{_counted(report.calls['model'], 'model call')}, {_time(report.seconds)}"]
    if reused:
        lines.append(f"{reused} steps taken from the last run")
    lines += [*(f"skipped {line}" for line in _skipped(report)), *_extra(report)]
    return "\n".join([*lines, *report.notes])


def _blocks(blocks: dict[str, Any] | None) -> str:
    """The numbers of each kind of block: ", blocks double 0-18, single 19-56"."""
    kinds, start = [], 0
    for name, count in blocks["sections"] if blocks else ():
        kinds.append(f"{'' if name == 'blocks' else name} {start}-{start + count - 1}".strip())
        start += count
    return f", blocks {', '.join(kinds)}" if kinds else ""


def _solver(report: SamplerReport) -> str:
    each = report.calls_per_step
    calls = "with steps of its own" if each is None else f"{_counted(each, 'model call')} a step"
    options = "".join(f", {name} {value:g}" for name, value in report.options.items())
    return f"{report.solver}, {calls}{options}"


def _sigmas(sigmas: Sequence[float]) -> str:
    written = [f"{sigma:.4g}" for sigma in sigmas]
    return ", ".join(written if len(written) <= MAX_SIGMAS else [*written[:8], "...", *written[-8:]])


def _steps(steps: dict[str, int]) -> str:
    whole = steps["last"] - steps["first"] == steps["of"]
    part = f"{steps['of']}" if whole else f"{steps['first']} to {steps['last']} of {steps['of']}"
    return part + (f"; {steps['reused']} of them taken from the last run" if steps["reused"] else "")


def _guidance(guidance: dict[str, Any], calls: dict[str, int]) -> str:
    if guidance["cfg"] == 1:
        return "none: cfg is 1" if calls["negative_rows"] else "none: at cfg 1 the negative prompt is not computed"
    window = _from_to(guidance["start"], guidance["end"])
    if calls["predictions"] and calls["without_negative"] == calls["predictions"]:
        return f"none: cfg {guidance['cfg']:g} acts{window.removeprefix(',')}, in no step of this run"
    form = "" if guidance["form"] == "cfg" else f" as {guidance['form']}"
    strength = f" {guidance['rescale']:g}" if "rescale" in guidance else ""
    curve = "" if guidance["curve"] == "constant" else f", {guidance['curve'].replace('_', ' ')}"
    zero = f", velocity zero in the first {guidance['resting_steps']} steps" if "resting_steps" in guidance else ""
    return f"cfg {guidance['cfg']:g}{form}{strength}{window}{curve}{zero}"


def _noise(noise: dict[str, Any]) -> str:
    each = " and up, one for each image" if noise["per_image"] else ""
    parts = [f"seed {noise['seed']}{each}"] if noise["added"] else ["none added"]
    if noise["turns_back"]:
        parts = ["none added: the latent goes back exactly the way of its inversion"]
    elif noise["goes_on"]:
        parts = ["none added: the latent continues an earlier run"]
    if noise["variation_strength"]:
        parts.append(f"{noise['variation_strength']:.0%} of the way to seed {noise['variation_seed']}")
    if noise["step_noise_seed"] not in (None, noise["seed"]):
        parts.append(f"in the steps seed {noise['step_noise_seed']}")
    if noise["left"]:
        parts.append("the rest of it stays in the latent")
    return ", ".join(parts)


def _skipped(report: SamplerReport) -> list[str]:
    calls, blocks, plan, lines = report.calls, report.block_calls, report.speed_plan, []
    if calls["without_negative"]:
        saved = calls["without_negative"] / (2 * calls["predictions"])
        lines.append(
            f"the negative prompt in {calls['without_negative']} of {calls['predictions']} predictions, "
            f"which saves {saved:.0%} of the model's work"
        )
    if blocks is not None and blocks["skipped"]:
        lines.append(str(BlockCallCount(blocks["total"], blocks["skipped"])).removeprefix("skipped "))
    if plan is not None and plan["work"] < 1:
        lines.append(
            f"by the speed plan {plan['reused']} negative and {plan['extrapolated']} positive "
            f"of {plan['predictions']} predictions, which saves {1 - plan['work']:.0%} of the model's work"
        )
    return lines


def _extra(report: SamplerReport) -> list[str]:
    """The block calls of block prompts."""
    blocks = report.block_calls
    return [str(BlockCallCount(blocks["total"], extra=blocks["extra"]))] if blocks and blocks["extra"] else []


def _time(seconds: dict[str, float | None]) -> str:
    names = [name for name in ("a_step", "a_call") if seconds[name]][:1]
    each = "".join(f"{seconds[name]:.3g} s {name.replace('_', ' ')}, " for name in names)
    return f"{each}{seconds['total']:.3g} s in all"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def curve(plan: SamplerPlan, subtitle: str) -> Tensor:
    """The plot of a run as ComfyUI's IMAGE: [1, H, W, 3] in [0, 1]."""
    sigmas, bands = plan.sigmas[plan.first : plan.last + 1].tolist(), bands_of(plan)
    title = f"{max(0, len(sigmas) - 1)} steps of {plan.sigmas_from}, shift {plan.shift:.3g}"
    return as_image(draw_curve(title, subtitle, sigmas, plan.first, bands))


def bands_of(plan: SamplerPlan) -> list[Band]:
    """When guidance and each block control act, over the steps that a plan runs."""
    sigmas, guidance = plan.sigmas[plan.first : plan.last].tolist(), plan.inputs.cfg_guidance
    to_sigma = plan.model.get_model_object("model_sampling").percent_to_sigma
    bands = []
    if guidance.cfg != 1:
        label = f"cfg {guidance.cfg:g}" + ("" if guidance.form == "cfg" else f", {guidance.form}")
        bands.append(Band(label, GREY, strengths(guidance, sigmas, to_sigma)))
    for control in plan.controls:
        shares = strengths(control.window, sigmas, to_sigma)
        bands.append(Band(control_label(control), ACTION_COLOURS[control.action], shares))
    return bands


def strengths(acting: Guidance | Window, sigmas: Sequence[float], to_sigma: PercentToSigma) -> tuple[float, ...]:
    """How strongly guidance or a window acts at each sigma, in [0, 1]."""
    return tuple(acting.strength_at(sigma, to_sigma) for sigma in sigmas)


def control_label(control: BlockControl) -> str:
    """A control in words, without its window."""
    blocks = blocks_text(control.blocks)
    if control.action == "prompt":
        return f"another prompt in blocks {blocks}"
    action = control.action if control.action != "boost" else f"boost x{control.strength:g} ({control.mode})"
    phrases = f", {', '.join(control.phrases)!r}" if control.phrases else ""
    branch = "" if control.branch == "both" or control.phrases else f", {control.branch}"
    return f"{action}, blocks {blocks}{branch}{phrases}"


def _window(control: BlockControl) -> str:
    window = control.window
    return _from_to(window.start, window.end) + ("" if window.fade == "constant" else f", fading {window.fade}")


def _from_to(start: float, end: float) -> str:
    return "" if start <= 0 and end >= 1 else f", from {start:.0%} to {end:.0%} of the sampling"


def blocks_text(blocks: Sequence[int]) -> str:
    """Blocks as a node's text: (3, 4, 5, 9) is "3-5, 9"."""
    spans: list[list[int]] = []
    for block in sorted(blocks):
        if spans and block == spans[-1][1] + 1:
            spans[-1][1] = block
        else:
            spans.append([block, block])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans) or "none"
