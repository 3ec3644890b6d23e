"""`python -m evaluation study`: from the options to cells, report and presets."""

from __future__ import annotations

import argparse
import datetime
import re
import time
from pathlib import Path

from mmdit_core.control.grammar import BlockTextError, parse_blocks
from mmdit_core.files import write_whole
from scripts.console import say

from ..command_line import numbers
from ..engine.graph import has_negative
from ..engine.renderer import About
from ..judges import Judge, make_judge
from ..prompts import Prompt, PromptSet, default_set, read_prompts
from ..start import start_runner
from .cells import Cells
from .presets import to_presets
from .report import verdict, write_report
from .run import Study
from .settings import Plan, Settings, SettingsError

PRESETS, REPORT, JUDGED = "preset.json", "report.html", "answers"
LONGEST_NAME = 50  # characters of a model in a file's name: each has at most four bytes


def run(given: argparse.Namespace) -> None:
    """Run or continue a study. Raises: what the user can mend, see `__main__`."""
    start = time.monotonic()
    judge = make_judge(given.judge, url=given.judge_url, model=given.judge_model, cache=given.out / JUDGED)
    found = read_prompts(given.prompts or default_set(given.judge))
    prompts = _different(found.prompts[: given.limit or None])
    seeds, choose = numbers(given.seeds, "seeds"), _to_choose_on(given, len(prompts))
    for prompt in prompts:
        judge.questions(prompt)  # raises for a prompt that it cannot judge
    with start_runner(given, prompts) as runner:
        about = runner.about()
        plan = _plan(given, about, judge, PromptSet(found.name, prompts, found.kind), seeds, choose)
        say(
            f"{about.model}: {about.facts.family}, {about.facts.double} + {about.facts.single} blocks. "
            f"{plan.settings.choose} prompts to choose on, {plan.settings.prove} to prove on; "
            f"{len(plan.settings.single_blocks())} controls on one block"
        )
        with Cells(given.out, plan.to_json(), plan.differences) as cells:
            study = Study(plan, cells, runner, judge, int(given.max_disk_gb * 1e9))
            result = study.run()
            say(f"Cells: {cells.write()}")
            write_report(result, study, given.out / REPORT)
            say(f"Report: {given.out / REPORT}")
    for proof in result.proofs:
        say(f"    {proof.control.name}: {verdict(proof)}")
    for line in result.unchosen:
        say(f"    {line}")
    bad, asked = result.unreadable
    if bad:
        say(f"    {bad} of {asked} answers could not be read")
    text = to_presets(result, datetime.date.today())
    write_whole(given.out / PRESETS, text)
    say(f"Presets: {given.out / PRESETS}")
    if not given.no_menu:
        say(f"In the menus of Block Skip and Text Boost: {_put_into_menu(text, about)}")
    say(f"{time.monotonic() - start:.0f} s")


def _different(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The prompts, each text once: to prove on one that was chosen on would prove nothing."""
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        kept.setdefault(prompt.text, prompt)
    if len(kept) < len(prompts):
        say(f"{len(prompts) - len(kept)} prompts are repeated: each is used once")
    return tuple(kept.values())


def _to_choose_on(given: argparse.Namespace, number: int) -> int:
    """How many of the prompts the choices are made on. Raises: SettingsError."""
    choose = given.choose or number // 2
    if min(choose, number - choose) < 2:
        found = f"{choose} prompts to choose on and {max(0, number - choose)} to prove on"
        raise SettingsError(f"--choose, --limit: {found}; at least 2 of each are needed")
    if given.controls < 0 or not given.max_loss >= 0:
        raise SettingsError("--controls, --max-loss: a number below 0. Write 0 or more")
    return choose


def _plan(
    given: argparse.Namespace, about: About, judge: Judge, found: PromptSet, seeds: tuple[int, ...], choose: int
) -> Plan:
    facts = about.facts
    if "negative" in given.branch and not has_negative(about.graph):
        raise SettingsError("--branch negative: the model runs for no negative prompt here, as at a cfg of 1")
    try:
        blocks = parse_blocks(given.blocks, facts.double, facts.single)
    except BlockTextError as error:
        raise SettingsError(f"--blocks: {error.found}. {error.right}") from error
    if not blocks:
        raise SettingsError(f'--blocks: {given.blocks!r} names no block. Write "all", or numbers such as 0-5, 9')
    settings = Settings(
        sweep=given.sweep,
        blocks=tuple(blocks),
        branches=given.branch,
        modes=given.modes,
        strengths=given.strength,
        choose=choose,
        prove=len(found.prompts) - choose,
        seeds=seeds,
        batch=given.batch,
        threads=given.threads,
        controls=given.controls,
        most_loss=given.max_loss,
    )
    return Plan(
        settings,
        about.model,
        facts.family,
        facts.double,
        facts.single,
        about.graph,
        about.sampling,
        about.files,
        about.software,
        judge.identity,
        found.name,
        found.prompts,
    )


def _put_into_menu(text: str, about: About) -> Path:
    """Store the presets where the nodes' menus find them, under the model's name; a later study replaces them."""
    folder = about.user_folder / "mmdit" / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", Path(about.model).stem)[:LONGEST_NAME]
    path = folder / f"study-{name}.json"
    write_whole(path, text)
    return path
