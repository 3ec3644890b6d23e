"""What a study proved, as presets for the nodes' menus."""

from __future__ import annotations

import datetime

from mmdit_core.control.preset_files import MAX_NAME, Evidence, MeasuredPreset, write_presets

from ..engine.graph import has_negative
from .run import Proof, Result
from .statistics import OVERALL

LONGEST = 100  # characters of a model's name in a preset's, and of a prompt set's name


def to_presets(result: Result, date: datetime.date) -> str:
    """The choices of a result as presets, each with its evidence. Returns: JSON."""
    return write_presets([_preset(result, proof, date) for proof in result.proofs])


def saved(result: Result, proof: Proof) -> float:
    """The fraction of a run's block calls that a skip list saves."""
    plan, control = result.plan, proof.control
    negative = has_negative(plan.graph)
    branches = {"both": 1 + negative, "positive": 1, "negative": int(negative)}[control.branch]
    return branches / (1 + negative) * len(control.blocks) / (plan.double + plan.single)


def _preset(result: Result, proof: Proof, date: datetime.date) -> MeasuredPreset:
    plan, control, gain = result.plan, proof.control, proof.gains[OVERALL]
    boost, mean = control.action == "boost", proof.random_mean
    evidence = Evidence(
        date=date.isoformat(),
        set=_line(plan.set_name, LONGEST),
        prompts=gain.n,
        judge=_line(plan.judge, MAX_NAME),
        attribute=OVERALL,
        gain=round(gain.mean, 2),
        low=round(gain.low, 2),
        high=round(gain.high, 2),
        random=None if mean is None else round(mean.mean, 2),
        steps=plan.sampling.get("steps"),
        cfg=plan.sampling.get("cfg"),
        saved=None if boost else round(saved(result, proof), 4),
    )
    words = f"{control.mode} x{control.strength:g} {control.branch}" if boost else control.branch
    name = f"{_line(plan.model, LONGEST)}: {control.action} {words} {control.block_text}"
    doubt = " (not proven)" if boost and not proof.helps else ""
    return MeasuredPreset(
        name=_line(name, MAX_NAME - len(doubt)) + doubt,
        action=control.action,
        family=plan.family,
        double=plan.double,
        single=plan.single,
        file=_line(plan.model, MAX_NAME),
        blocks=control.block_text,
        branch=control.branch,
        strength=control.strength if boost else None,
        mode=control.mode if boost else None,
        evidence=evidence,
    )


def _line(text: str, longest: int) -> str:
    """A text as preset files take it: one line, of at most so many characters."""
    return "".join(each if each.isprintable() else " " for each in text)[:longest]
