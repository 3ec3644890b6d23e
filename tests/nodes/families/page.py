"""The page docs/families.md, from a run of every node on every family."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterable
from types import ModuleType

import comfy.supported_models

from tests.nodes.families.node_cells import CELLS, NodeBench, Verdict, judge, refusal
from tests.nodes.families.tiny import FAMILIES

COMMAND = "python -m tests.nodes.families"
BLOCK = tuple(name for name, cell in CELLS.items() if cell.block)
OTHERS = tuple(name for name, cell in CELLS.items() if not cell.block)
HEAD = f"""# Which node works on which model

Each node runs through its node class on a tiny random model of each of ComfyUI's classes in the pack's table, in
float32 on the CPU, two steps or more, at cfg 3 where nothing else is said. The result is compared with something plain
that does not use the pack's controls. *exact* means equal, followed by the largest difference in standard deviations
of the latent; up to 2e-05 (FlowInvert: 1e-04) is rounding. *refused* means that the node raises an error, which the
note gives. *unchanged* means that the node gives back the model as it is, for the reason in the note. Random weights
show that a node does what it says, not what this does to an image.

The command that makes this page: `{COMMAND} > docs/families.md`.

| node | compared with |
| --- | --- |
"""
COMPARED = {
    "BlockSkip": "each block as the identity; on one branch, with the predictions of both branches alone",
    "TextBoost residual": "each block, with its text input multiplied",
    "TextBoost attention": "attention written out, in which image queries weigh text keys; strength 2.5 and 0",
    "TextBoost value": "attention written out, in which image queries read scaled text values; strength 2.5 and 0",
    "TextBoost phrase": "the same three on two tokens of the prompt",
    "TextDisable onward": "another prompt, which must give the same image; text disabled from block 0 on",
    "TextDisable block": "another prompt, which must give the same image; text hidden in all blocks",
    "BlockPrompt": "the second prompt as the sampler's; in all blocks, of the same and of another length",
    "BlockAnalysis": "its skip cells with Block Skip and Flow Matching Sampler; disable and boost run, too",
    "FlowMatchingSampler cfg 1": "ComfyUI's euler with the same sigmas",
    "FlowMatchingSampler cfg 3": "ComfyUI's euler with the same sigmas",
    "MMDiTSampler": "KSampler",
    "SpeedPlan": "the run without it, bit for bit, at 1x; 2x runs and computes fewer steps",
    "FlowEdit": "the image itself, bit for bit, where both prompts are equal; another target changes it",
    "SourcePull": "the source image, with eta 1 in all steps; the run without it, bit for bit, with eta 0",
    "FlowInvert": "the image itself, after leapfrog to noise and back",
    "PrecomputeModulation": "KSampler without it, bit for bit; all its calls read the table",
    "SweepXY": "its images over a block list and a shift with Block Skip and Flow Matching Sampler, bit for bit",
}


def page(pack: ModuleType, names: Iterable[str] = tuple(FAMILIES)) -> str:
    """The page in Markdown. Args: pack, this repository as ComfyUI imports it; names, of the families to run."""
    verdicts = {name: _row(pack, name) for name in names}
    notes: list[str] = []
    parts = [HEAD + "".join(f"| {name} | {COMPARED[name]} |\n" for name in CELLS)]
    parts.append("## The block nodes\n\n" + _table(verdicts, BLOCK, notes))
    parts.append("## The other nodes\n\n" + _table(verdicts, OTHERS, notes))
    if notes:
        parts.append("## Notes\n\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1)))
    parts.append(refused(pack))
    return "\n".join(parts)


def _row(pack: ModuleType, name: str) -> dict[str, Verdict]:
    start, bench = time.monotonic(), NodeBench.of_pack(pack, name)
    found = {column: judge(bench, column) for column in CELLS}
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return found


def _table(verdicts: dict[str, dict[str, Verdict]], columns: tuple[str, ...], notes: list[str]) -> str:
    rows = [["model", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(cell(found[column], notes) for column in columns)] for name, found in verdicts.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(verdict: Verdict, notes: list[str]) -> str:
    """A cell of the table. Args: notes, to which its reason is added."""
    if not verdict.reason:
        return f"{verdict.word} {verdict.difference:.0e}" if verdict.difference else f"{verdict.word} 0"
    if verdict.reason not in notes:
        notes.append(verdict.reason)
    return f"{verdict.word} ({notes.index(verdict.reason) + 1})"


def refused(pack: ModuleType) -> str:
    """The part about ComfyUI's other classes, with the reasons that the block nodes give."""
    by_reason: dict[str, list[str]] = {}
    for kind in importlib.import_module(f"{pack.__name__}.nodes.comfyui.families").REFUSED:
        if hasattr(comfy.supported_models, kind):  # older versions of ComfyUI lack some
            by_reason.setdefault(why_refused(pack, kind), []).append(f"`{kind}`")
    rows = "".join(f"| {', '.join(kinds)} | {reason} |\n" for reason, kinds in by_reason.items())
    nodes = ", ".join(dict.fromkeys(name.split()[0] for name in BLOCK))
    return f"""## Refused models

{nodes} refuse these classes of `comfy.supported_models` by name. A class
that is neither here nor in the tables above is refused as not known. The other nodes do not need to know a model's
blocks: FlowMatchingSampler and FlowInvert take every model that predicts the velocity of a rectified flow, SpeedPlan
and MMDiTSampler every model. PrecomputeModulation gives back a model that it does not know as it is.

| class | reason |
| --- | --- |
{rows}"""


def why_refused(pack: ModuleType, kind: str) -> str:
    """The one reason that all block nodes give for a class."""
    said = {column: refusal(pack, kind, column) for column in BLOCK}
    before = f"model: {kind} is not supported: "
    (reason,) = {words.partition(before)[2].partition(". Connect one of ")[0] for words in said.values()}
    assert all(words.startswith(f"{column.split()[0]}: {before}") for column, words in said.items())
    return reason
