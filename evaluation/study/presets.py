"""What a study proved, as presets for the nodes' menus."""

from __future__ import annotations

import datetime
from textwrap import shorten

from mmdit_core.control.preset_files import Evidence, MeasuredPreset, write_presets

from .run import Proof, Result
from .statistics import OVERALL


def to_presets(result: Result, date: datetime.date) -> str:
    """The choices of a result as presets, each with its evidence. Returns: JSON."""
    return write_presets([_preset(result, proof, date) for proof in result.proofs])


def saved(result: Result, proof: Proof) -> float:
    """The share of a run's block calls that a skip list saves."""
    control, both = proof.control, result.plan.sampling.get("cfg") != 1
    branch = 1.0 if control.branch == "both" or not both else 0.5
    return branch * len(control.blocks) / (result.plan.double + result.plan.single)


def _preset(result: Result, proof: Proof, date: datetime.date) -> MeasuredPreset:
    plan, control, gain = result.plan, proof.control, proof.gains[OVERALL]
    boost, mean = control.action == "boost", proof.random_mean
    evidence = Evidence(
        date=date.isoformat(),
        set=plan.set_name,
        prompts=gain.n,
        judge=plan.judge,
        attribute=OVERALL,
        gain=round(gain.mean, 2),
        low=round(gain.low, 2),
        high=round(gain.high, 2),
        random=None if mean is None else round(mean.mean, 2),
        steps=plan.sampling.get("steps"),
        cfg=plan.sampling.get("cfg"),
        saved=None if boost else round(saved(result, proof), 4),
    )
    words = f"{control.mode} x{control.strength:g}" if boost else control.branch
    doubt = " (not proven)" if boost and not proof.helps else ""
    return MeasuredPreset(
        name=shorten(f"{plan.model}: {control.action} {words} {control.block_text}", 200, placeholder=" ...") + doubt,
        action=control.action,
        family=plan.family,
        double=plan.double,
        single=plan.single,
        file=plan.model,
        blocks=control.block_text,
        branch=control.branch,
        strength=control.strength if boost else None,
        mode=control.mode if boost else None,
        evidence=evidence,
    )
