"""`python -m evaluation generate`: a prompt set to images, named as its benchmark expects them."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdit_core.files import write_whole
from scripts.console import say

from .command_line import numbers, source_of
from .engine.graph import read_workflow
from .engine.renderer import Source
from .prompts import Prompt, default_set, read_prompts
from .start import start_runner
from .study.cells import Unit, units
from .study.run import as_png, folder_bytes
from .study.settings import SettingsError

SETTINGS = "generate.json"
LONGEST = 200  # bytes of a file name without its number


def run(given: argparse.Namespace) -> None:
    """Sample what is missing in the folder. Raises: what the user can mend, see `__main__`."""
    found = read_prompts(given.prompts or default_set("endpoint"))
    prompts, seeds = found.prompts[: given.limit or None], numbers(given.seeds, "seeds")
    names = file_names(found.kind, prompts, seeds)
    source = source_of(given)
    note = check_settings(given.out, found.kind, source, seeds)
    write_metadata(given.out, found.kind, prompts)
    wanted = units(None, 0, len(prompts), given.batch, seeds)
    missing = [unit for unit in wanted if not all((given.out / path).is_file() for path in _files(names, unit))]
    say(f"{len(prompts)} prompts x {len(seeds)} seeds: {len(missing)} of {len(wanted)} batches to sample")
    if not missing:
        return
    start = time.monotonic()
    with start_runner(given, prompts) as runner:
        for count, (unit, images) in enumerate(runner.run(missing), 1):
            for path, image in zip(_files(names, unit), images, strict=True):
                _check_size(given, image.nbytes, count - 1, len(missing))
                write_whole(given.out / SETTINGS, note)  # not before there is an image: the options may be wrong
                write_whole(given.out / path, as_png(image))
            seconds = time.monotonic() - start
            say(f"    {count}/{len(missing)}, about {seconds / count * (len(missing) - count):.0f} s left")
    say(f"Images: {given.out}")


def file_names(kind: str, prompts: Sequence[Prompt], seeds: Sequence[int]) -> dict[tuple[int, int], Path]:
    """The file of each (prompt, seed), relative to the folder.

    compbench: CATEGORY/samples/PROMPT_000000.png, the number counting the images of the category. All others as
    GenEval: 00000/samples/0000.png, prompt and image.
    """
    if kind != "compbench":
        return {
            (number, seed): Path(f"{number:05}", "samples", f"{place:04}.png")
            for number in range(len(prompts))
            for place, seed in enumerate(seeds)
        }
    counts: dict[str, int] = {}
    names = {}
    for number, prompt in enumerate(prompts):
        for seed in seeds:
            folder = _as_name(prompt.category)
            count = counts.get(folder, 0)
            counts[folder] = count + 1
            names[number, seed] = Path(folder, "samples", f"{_as_name(prompt.text)}_{count:06}.png")
    return names


def _as_name(text: str) -> str:
    """A text as a part of a path: without separators, and no name of a folder above."""
    name = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", text).strip(". ")
    return name.encode()[:LONGEST].decode(errors="ignore")


def check_settings(folder: Path, kind: str, source: Source, seeds: Sequence[int]) -> str:
    """Compare what decides the images with what a folder has noted of its own.

    Returns: the note to write. Raises: SettingsError for a folder with images of other settings.
    """
    found: dict[str, Any] = {
        "workflow": source.workflow and read_workflow(source.workflow),
        "model": Path(source.model).name,
        "clip": [Path(name).name for name in source.clips],
        "clip_type": source.clip_type,
        "vae": Path(source.vae).name,
        "settings": source.settings,
        "seeds": list(seeds),
    }
    noted = folder / SETTINGS
    if noted.exists():
        try:
            before = json.loads(noted.read_text(encoding="utf-8"))
            known = isinstance(before["seeds"], list)
        except (ValueError, TypeError, KeyError, RecursionError):
            known = False
        if not known:
            raise SettingsError(f"--out: {noted} is not from this command. Remove it, or give another folder")
        differing = [name for name in found if name != "seeds" and found[name] != before.get(name)]
        # One list may be the start of the other, but the names of T2I-CompBench++ count over the seeds of all prompts.
        shared = min(len(seeds), len(before["seeds"])) if kind != "compbench" else None
        differing += ["seeds"] * (found["seeds"][:shared] != before["seeds"][:shared])
        if differing:
            raise SettingsError(f"--out: {folder} holds images of other {', '.join(differing)}. Give another folder")
        found["seeds"] = max(found["seeds"], before["seeds"], key=len)
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def write_metadata(folder: Path, kind: str, prompts: Sequence[Prompt]) -> None:
    """GenEval's metadata.jsonl in each prompt's folder. Raises: SettingsError for a folder of other prompts."""
    listed = folder / "prompts.txt"
    text = "".join(f"{prompt.text}\n" for prompt in prompts)
    folder.mkdir(parents=True, exist_ok=True)
    before = listed.read_text(encoding="utf-8") if listed.exists() else text
    if not (text.startswith(before) or before.startswith(text)):
        raise SettingsError(f"--out: {folder} holds images of other prompts. Give another folder")
    write_whole(listed, text)
    if kind == "compbench":
        return
    for number, prompt in enumerate(prompts):
        own = folder / f"{number:05}"
        own.mkdir(exist_ok=True)
        entry = {"tag": prompt.category, **prompt.expected, "prompt": prompt.text}
        write_whole(own / "metadata.jsonl", json.dumps(entry, ensure_ascii=False) + "\n")


def _check_size(given: argparse.Namespace, more: int, done: int, wanted: int) -> None:
    if given.max_disk_gb and folder_bytes(given.out) + more > given.max_disk_gb * 1e9:
        raise SettingsError(
            f"--max-disk-gb: {given.out} reaches {given.max_disk_gb:g} GB after {done} of {wanted} batches. Set a "
            "larger size, or --limit the prompts"
        )


def _files(names: dict[tuple[int, int], Path], unit: Unit) -> list[Path]:
    return [names[number, unit.seed] for number in range(*unit.prompts)]
