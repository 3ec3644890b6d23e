"""Results of BlockAnalysis under a name: the report, and presets for the menus of BlockSkip and TextBoost."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ...mmdit_core.control.preset_files import Evidence, MadeFor, MeasuredPreset, PresetError, write_presets
from ...mmdit_core.files import write_whole
from ..comfyui.frontend import user_presets
from ..errors import require
from .attributes import ALL, MEAN
from .choice import Suggestion

NODE, INPUT = "BlockAnalysis", "save_as"
PRESETS, REPORTS = "presets", "reports"  # folders in the user's folder mmdit/
MAX_NAME = 60  # characters
MAX_BYTES = 200  # of a name, which files have with endings
_NAME = re.compile(r"\w(?:[\w .,()+-]*[\w()+-])?")
# Names of devices on Windows, with any ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[\d\u00b9\u00b2\u00b3]|lpt[\d\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)

logger = logging.getLogger(__name__)


class SavedResults:
    """The files of a name. Raises: InputError for a name that is none, or that names a file of another program."""

    def __init__(self, name: str):
        self.name = name.strip()
        shown = f"{self.name[:MAX_NAME]!r}"
        right = f"Write at most {MAX_NAME} letters, digits, spaces and . , ( ) + - without a folder, or empty it"
        fits = (
            len(self.name) <= MAX_NAME
            and len(self.name.encode()) <= MAX_BYTES
            and _NAME.fullmatch(self.name)
            and not _RESERVED.fullmatch(self.name)
        )
        require(fits, NODE, INPUT, f"{shown} cannot be a file's name", right)
        folder = user_presets.folder_of_runs()
        found = "ComfyUI runs with --multi-user, and a run does not know its user"
        require(folder, NODE, INPUT, found, "Empty it, and save from the menu of the block strip")
        assert folder is not None
        self.paths = {kind: folder / kind / f"{self.name}.json" for kind in (REPORTS, PRESETS)}
        foreign = self._foreign()
        found = f"{foreign} exists and is not from BlockAnalysis"
        require(foreign is None, NODE, INPUT, found, "Write another name, or remove the file")

    def write(self, report: Mapping[str, Any], presets: list[MeasuredPreset]) -> str:
        """Write both files. Returns: what was done, in words. A failure is said, not raised: the images are kept."""
        why = "" if presets else "nothing is suggested"
        try:
            texts = {REPORTS: json.dumps({"made_by": NODE, **report}, indent=1, allow_nan=False)}
            try:
                texts[PRESETS] = write_presets(presets, NODE)
            except PresetError as error:  # such as a model file whose name has a sign that no preset may hold
                texts[PRESETS], why = write_presets([], NODE), f"{error!s:.200}"
            if (foreign := self._foreign()) is not None:  # made during the run
                raise FileExistsError(f"{foreign} exists and is not from BlockAnalysis")
            for kind, path in self.paths.items():
                write_whole(path, texts[kind])
        except OSError as error:
            words = f"save_as: the results could not be saved: {error!s:.200}. Run again: finished images are reused."
            logger.warning("BlockAnalysis: %s", words)
            return words
        named = f"the report alone: {why}" if why else f'in the menus of the strips as "{self.name}"'
        return f"Saved as {self.name}.json, {named}."

    def _foreign(self) -> Path | None:
        """A file of the name that BlockAnalysis did not make."""
        return next((path for path in self.paths.values() if user_presets.made_by(path) not in (None, NODE)), None)


def presets_of(
    name: str, model: MadeFor, file: str, report: Mapping[str, Any], suggested: Mapping[str, Suggestion]
) -> list[MeasuredPreset]:
    """The suggestions as presets, "skip" and "boost", as BlockAnalysis measured them: on both branches.

    Args: file, of the model. Evidence is there for a single judged block: blocks were not measured together.
    """
    return [
        MeasuredPreset(
            name=name,
            action=action,
            family=model.family,
            double=model.double,
            single=model.single,
            file=file,
            blocks=found.blocks,
            branch="both",
            strength=report["settings"]["boost_strength"] if action == "boost" else None,
            mode="residual" if action == "boost" else None,
            evidence=_evidence(action, found, report),
        )
        for action, found in suggested.items()
        if found.blocks
    ]


def _evidence(action: str, found: Suggestion, report: Mapping[str, Any]) -> Evidence | None:
    if len(found.numbers) != 1:
        return None
    block, attribute = found.numbers[0], ALL if action == "skip" else MEAN
    (cell,) = (
        cell
        for cell in report["cells"]
        if (cell["operation"], cell["block"], cell["window"]) == (action, block, "whole")
    )
    change = cell.get("change", {}).get(attribute)
    if change is None or change["low"] is None:
        return None
    prompts = report.get("prompts", {"number": 1, "sets": []})
    low, gain, high = (max(-100.0, min(100.0, change[name])) for name in ("low", "points", "high"))
    settings = report["settings"]
    return Evidence(
        date=date.today().isoformat(),
        set=", ".join(prompts["sets"]) or "own",
        prompts=prompts["number"],
        judge="shapes",
        attribute=attribute,
        gain=gain,
        low=low,
        high=high,
        random=None,
        steps=settings["steps"],
        cfg=settings["cfg"],
        saved=round(1 / report["blocks"]["total"], 4) if action == "skip" else None,
    )
