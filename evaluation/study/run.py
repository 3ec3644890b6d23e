"""A study from its first image to its result: the block map, the choices, and their proof."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmdit_core.analysis import MIN_PAIRS
from mmdit_core.files import write_whole
from scripts.console import say

from ..controls import BASELINE, Control
from ..judges import Judge, JudgeError
from ..runners import Runner
from .cells import Cell, Cells, Unit, units
from .choose import Gains, choose_boost, choose_skips, random_sets
from .settings import Plan
from .statistics import OVERALL, Interval, gains, interval, shares, unreadable

KEPT = 6  # prompts of each part whose images of the first seed are kept for the report
SAY_EVERY = 20.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Proof:
    """A choice, proven on other prompts.

    Fields: control; chosen, its gains on the prompts that it was chosen on; gains, on the others; random, the gain of
        the overall score of each random block set of equal size on these.
    """

    control: Control
    chosen: Gains
    gains: Gains
    random: dict[Control, Interval]

    @property
    def random_mean(self) -> Interval | None:
        """The mean gain of the random sets, with an interval over sets; None without any."""
        return interval([each.mean / 100 for each in self.random.values()]) if self.random else None

    @property
    def beaten(self) -> int:
        """How many of the random sets gain less."""
        return sum(each.mean < self.gains[OVERALL].mean for each in self.random.values())

    @property
    def helps(self) -> bool:
        """Whether the gain of the overall score is above 0 beyond chance, on prompts enough to tell."""
        gain = self.gains[OVERALL]
        return gain.low > 0 and gain.n >= MIN_PAIRS


@dataclass
class Result:
    """What a study found. Fields: map, the gains of each control on one block; baseline, shares on either part."""

    plan: Plan
    baseline_choose: dict[str, Interval]
    baseline_prove: dict[str, Interval]
    map: dict[Control, Gains]
    proofs: list[Proof]
    unchosen: list[str] = field(default_factory=list)  # what nothing was chosen for, in words
    unreadable: tuple[int, int] = (0, 0)


class Study:
    """Runs a plan. Args: most_bytes, of the whole folder with the report's images, 0 for no limit."""

    def __init__(self, plan: Plan, cells: Cells, runner: Runner, judge: Judge, most_bytes: int = 0):
        self.plan, self.cells, self.runner, self.judge = plan, cells, runner, judge
        self.images, self._most_bytes = cells.folder / "images", most_bytes
        self.dropped_images = False
        self.images.mkdir(exist_ok=True)

    def run(self) -> Result:
        """Measure what is missing. Returns: the result, which depends on the cells alone."""
        settings, singles = self.plan.settings, self.plan.settings.single_blocks()
        self._measure("block map", [None, *singles], choose=True)
        baseline = self._cells(None, choose=True)
        found = dict(zip(singles, self._gains(singles), strict=True))
        chosen, unchosen = [], []
        for branch in settings.branches:
            if "boost" in settings.sweep:
                boost = choose_boost(branch, singles, self._gains)
                chosen += [boost] if boost else []
                unchosen += [] if boost else [f"boost, branch {branch}: none helps where it is chosen"]
            if "skip" in settings.sweep:
                skips = choose_skips(branch, singles, self._gains, settings.most_loss)
                chosen += [skips] if skips else []
                loss = f"every block costs more than {settings.most_loss:g} points"
                unchosen += [] if skips else [f"skip, branch {branch}: {loss}"]
        return Result(
            self.plan,
            shares(baseline),
            shares(self._prove(chosen)),
            found,
            [self._proof(control) for control in chosen],
            unchosen,
            unreadable(self.cells.all()),
        )

    def _prove(self, chosen: Sequence[Control]) -> list[Cell]:
        """Measure the choices and their random sets on the other prompts. Returns: the baseline's cells there."""
        every = [each for control in chosen for each in self._random(control)]
        self._measure("proof", [None, *chosen, *every], choose=False)
        return self._cells(None, choose=False)

    def _proof(self, control: Control) -> Proof:
        others = self._random(control)
        (chosen,), (proven, *random) = self._gains([control]), self._gains([control, *others], choose=False)
        return Proof(control, chosen, proven, {each: one[OVERALL] for each, one in zip(others, random, strict=True)})

    def _random(self, control: Control) -> list[Control]:
        return random_sets(control, self.plan.settings.blocks, self.plan.settings.controls)

    def _gains(self, controls: Sequence[Control], choose: bool = True) -> list[Gains]:
        """Raises: JudgeError where no answer about a control or the baseline can be read."""
        self._measure("choice" if choose else "proof", controls, choose)
        baseline, found = self._cells(None, choose), []
        for control in controls:
            found.append(gains(self._cells(control, choose), baseline))
            if OVERALL not in found[-1]:
                bad, asked = unreadable(self.cells.all())
                words = f"{bad} of all {asked} answers could not be read, and none of {control.name} is left to compare"
                raise JudgeError(f"{self.judge.identity}: {words}. Use a model that reads images and answers yes or no")
        return found

    def _part(self, choose: bool) -> tuple[int, int]:
        settings = self.plan.settings
        return (0, settings.choose) if choose else (settings.choose, settings.choose + settings.prove)

    def _cells(self, control: Control | None, choose: bool) -> list[Cell]:
        return self.cells.of(control, *self._part(choose))

    def _measure(self, what: str, controls: Sequence[Control | None], choose: bool) -> None:
        """Sample and judge the missing units of controls on one part of the prompts."""
        settings, (first, end) = self.plan.settings, self._part(choose)
        wanted = [unit for each in controls for unit in units(each, first, end, settings.batch, settings.seeds)]
        missing = self.cells.missing(wanted)
        if missing:
            self._run(f"{what}, {len(controls)} controls", missing, len(wanted), first)

    def _run(self, what: str, missing: Sequence[Unit], wanted: int, first: int) -> None:
        start = last = time.monotonic()
        say(f"{what}: {len(missing)} of {wanted} batches to sample")
        for count, (unit, images) in enumerate(self.runner.run(missing), 1):
            prompts = self.plan.prompts[slice(*unit.prompts)]
            answers = self.judge.answer(images, prompts)
            cells = [
                Cell(unit.name, number, unit.seed, self._answers(prompt, found))
                for number, prompt, found in zip(range(*unit.prompts), prompts, answers, strict=True)
            ]
            self._keep(unit, images, first)
            self.cells.add(unit, cells)
            now = time.monotonic()
            if now - last > SAY_EVERY or count == len(missing):
                left = (now - start) / count * (len(missing) - count)
                say(f"    {count}/{len(missing)} batches, {now - start:.0f} s, about {left:.0f} s left")
                last = now

    def _answers(self, prompt, found) -> tuple[tuple[str, float | None], ...]:
        questions = self.judge.questions(prompt)
        return tuple((question.attribute, answer.value) for question, answer in zip(questions, found, strict=True))

    def _keep(self, unit: Unit, images: np.ndarray, first: int) -> None:
        """Store the images that the report may show, unless the folder is full."""
        if unit.seed != self.plan.settings.seeds[0]:
            return
        for number, image in zip(range(*unit.prompts), images, strict=True):
            if number - first >= KEPT:
                continue
            path = image_path(self.images, unit.control, number)
            if self._most_bytes and folder_bytes(self.cells.folder) + image.nbytes > self._most_bytes:
                self.dropped_images = True
                return
            write_whole(path, as_png(image))


def image_path(folder: Path, control: Control | None, prompt: int) -> Path:
    """The file of a kept image."""
    name = BASELINE if control is None else control.name
    return folder / f"{name.replace(' ', '-').replace(',', '_')}-{prompt:05}.png"


def as_png(image: np.ndarray) -> bytes:
    """An image uint8 [H, W, 3] as a PNG without metadata."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
