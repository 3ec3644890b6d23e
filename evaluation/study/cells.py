"""The cells of a study on disk: what was measured so far, added to as it comes, and sorted at the end.

`progress.jsonl` gets a line for each finished unit; a line that a kill cut short is dropped at the next start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mmdit_core.files import write_whole

from ..controls import BASELINE, Control

PLAN, PROGRESS, CELLS = "study.json", "progress.jsonl", "cells.jsonl"


@dataclass(frozen=True)
class Unit:
    """The images of one call of the sampler: one control, consecutive prompts, one seed.

    Fields: control, None for the baseline; prompts, the number of the first and of the one after the last.
    """

    control: Control | None
    prompts: tuple[int, int]
    seed: int

    @property
    def name(self) -> str:
        """The control's name."""
        return BASELINE if self.control is None else self.control.name

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells it from the others."""
        return (self.name, self.seed, *self.prompts)


@dataclass(frozen=True)
class Cell:
    """One judged image. Fields: answers, (attribute, value in [0, 1] or None for an unreadable one) in order."""

    control: str
    prompt: int
    seed: int
    answers: tuple[tuple[str, float | None], ...]

    def to_json(self) -> dict[str, Any]:
        """Its line in the files."""
        return {"control": self.control, "prompt": self.prompt, "seed": self.seed, "answers": list(self.answers)}


class FolderError(Exception):
    """A folder that cannot hold this study: what was found, what would be right."""


class Cells:
    """The measured cells of one folder.

    Args: folder, made if it is not there; plan, as JSON; differences, names what differs from a plan that is there.
    Raises: FolderError for a folder with another study, or one that another process writes to.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], differences: Any):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / PLAN
        if stored.exists():
            differing = differences(_plan_in(stored))
            if differing:
                raise FolderError(
                    f"--out: {folder} holds a study with other {', '.join(differing)}. Give another folder, or "
                    "the same options to continue that study"
                )
        else:
            write_whole(stored, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
        self._done: dict[tuple[str, int, int, int], list[Cell]] = {}
        self._file = (folder / PROGRESS).open("a", encoding="utf-8")
        try:
            _lock(self._file, folder)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def missing(self, units: Iterable[Unit]) -> list[Unit]:
        """The units that are not measured yet, in order, each once."""
        return [unit for unit in dict.fromkeys(units) if unit.key not in self._done]

    def add(self, unit: Unit, cells: Sequence[Cell]) -> None:
        """Store a unit's cells; they are on disk when this returns."""
        line = json.dumps({"unit": list(unit.key), "cells": [cell.to_json() for cell in cells]}, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._done[unit.key] = list(cells)

    def of(self, control: Control | None, first: int, end: int) -> list[Cell]:
        """The cells of a control on the prompts from `first` up to, not including, `end`."""
        name = BASELINE if control is None else control.name
        own = (cell for key, cells in self._done.items() if key[0] == name for cell in cells)
        return sorted((cell for cell in own if first <= cell.prompt < end), key=lambda cell: (cell.prompt, cell.seed))

    def all(self) -> Iterator[Cell]:
        """All cells, sorted by control, prompt and seed."""
        every = (cell for cells in self._done.values() for cell in cells)
        yield from sorted(every, key=lambda cell: (cell.control != BASELINE, cell.control, cell.prompt, cell.seed))

    def write(self) -> Path:
        """Write the sorted file."""
        path = self.folder / CELLS
        write_whole(path, "".join(json.dumps(cell.to_json(), ensure_ascii=False) + "\n" for cell in self.all()))
        return path

    def _read(self) -> None:
        path = self.folder / PROGRESS
        if not path.exists():
            return
        whole = 0  # bytes up to the end of the last whole line
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                    if not line.endswith(b"\n"):
                        raise ValueError("cut short")
                except ValueError:
                    break
                except RecursionError:
                    entry = None
                whole += len(line)
                try:
                    name, seed, first, end = entry["unit"]
                    self._done[(name, seed, first, end)] = [_cell(each) for each in entry["cells"]]
                except (KeyError, TypeError, ValueError):
                    found = f"--out: {path}, line {number} is not a part of a study"
                    raise FolderError(f"{found}. Give another folder, or remove the line") from None
        with path.open("rb+") as file:
            file.truncate(whole)


def units(control: Control | None, first: int, end: int, batch: int, seeds: Iterable[int]) -> list[Unit]:
    """The units of a control on the prompts from `first` up to `end`."""
    starts = range(first, end, batch)
    return [Unit(control, (start, min(start + batch, end)), seed) for start in starts for seed in seeds]


def _lock(file: TextIO, folder: Path) -> None:
    """Lock a file until it is closed. Raises: FolderError if another process has it."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FolderError(f"--out: another process runs the study in {folder}. Wait for it, or stop it") from None
    except OSError:  # a file system without locks
        return


def _plan_in(path: Path) -> Any:
    """A stored plan. Raises: FolderError for another file of its name."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        plan = None
    if not isinstance(plan, dict):
        raise FolderError(f"--out: {path} is no plan of a study. Give another folder")
    return plan


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(entry["control"], entry["prompt"], entry["seed"], tuple((a, value) for a, value in entry["answers"]))
