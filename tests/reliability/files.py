"""Damaged files through everything that reads files: each is read, or refused by an error that says what is wrong.

    python -m tests.reliability.files --count 10000 --seed 0

prints the number of files by outcome as JSON, and each defect with the command that repeats it.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any
from unittest import mock

from scripts import in_process
from tests.reliability import command
from tests.reliability.damage import OUTSIDE, PLAIN, Case, Link, make_case, parts_of, random_state

SLOW = 10.0  # seconds of the processor for one file
LONGEST = 1500  # characters of a message
READ = "read"


class Readers:
    """Everything of the pack that reads files, imported as ComfyUI imports it.

    `read(folder, case)` yields (name of a reader, outcome): READ, the class of a documented error, or "defect: ...".
    """

    def __init__(self, pack: ModuleType):
        self.pack = pack
        self.errors, self.header, self.load, self.gguf = map(
            self._core, ("checkpoints.errors", "checkpoints.header", "checkpoints.load", "checkpoints.gguf")
        )
        self.presets = self._core("control.preset_files")
        self.loader, self.web_api, self.user_presets, self.sampling = map(
            self._node,
            ("loader", "web_api", "comfyui.frontend.user_presets", "comfyui.loading.sampling_of_file"),
        )
        self._number = 0  # in place of a file's time, so that no reader answers from its cache

    def _core(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.pack.__name__}.mmdit_core.{name}")

    def _node(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.pack.__name__}.nodes.{name}")

    def read(self, folder: Path, case: Case) -> Iterator[tuple[str, str]]:
        path = folder / case.path
        for name, call in self._readers_of(path, folder).items():
            began = time.process_time()
            outcome = self._outcome(call, folder)
            took = time.process_time() - began
            yield name, outcome if took < SLOW else f"defect: {name} took {took:.0f} s"

    def _readers_of(self, path: Path, folder: Path) -> dict[str, Callable[[], Any]]:
        self._number += 1
        number = self._number
        if path.suffix == ".json":
            return {
                "presets": lambda: self._presets(path),
                "presets of a user": lambda: self._presets_of_user(path.parent),
                "maker": lambda: self.user_presets.made_by(path),
            }
        blocks = {"blocks route": lambda: self.web_api._read_model(str(path), number, 0)}
        if path.suffix == ".gguf":
            return {"gguf": lambda: self.gguf.tensor_names(path), **blocks}
        return {
            "header": lambda: self._header(path, folder),
            "load": lambda: self.load.load_checkpoint(path),
            "load in bf16": lambda: self.load.load_checkpoint(path, dtype=_bfloat16(), copy=True),
            "loader": lambda: self._loader(path),
            "curve route": lambda: self.sampling._read_sampling(str(path), True, number, 0),
            "curve route, ComfyUI's loader": lambda: self.sampling._read_sampling(str(path), False, number, 0),
            **blocks,
        }

    def _header(self, path: Path, folder: Path) -> Any:
        header = self.header.read_header(path)
        outside = [info.file for info in header.tensors.values() if ".." in info.file.relative_to(folder).parts]
        assert not outside, f"read outside the folder: {outside[0]}"
        return header

    def _loader(self, path: Path) -> Any:
        with mock.patch.object(self.loader.folders, "listed_path", lambda name, folder="": path):
            return self.loader.MMDiTLoader().load("file", "default")

    def _presets(self, path: Path) -> Any:
        return self.presets.read_presets(path.read_text("utf-8", errors="replace")) if path.is_file() else None

    def _presets_of_user(self, folder: Path) -> None:
        found, unreadable = self.user_presets.read_all(folder)
        assert found or unreadable or not any(folder.glob("*.json")), "a file is neither listed nor refused"

    def _outcome(self, call: Callable[[], Any], folder: Path) -> str:
        try:
            call()
        except self.errors.CheckpointError as error:
            return type(error).__name__ if (wrong := self._wrong(error, folder)) is None else f"defect: {wrong}"
        except self.presets.PresetError as error:
            complete = error.field and error.found and error.right and len(str(error)) < LONGEST
            return "PresetError" if complete else f"defect: {error!r:.300}"
        except ValueError as error:
            # The node's own words around a CheckpointError.
            cause = error.__cause__
            if isinstance(cause, self.errors.CheckpointError) and str(error).startswith("MMDiTLoader: checkpoint: "):
                return type(cause).__name__ if (wrong := self._wrong(cause, folder)) is None else f"defect: {wrong}"
            return f"defect: {error!r:.300}"
        except Exception as error:  # whatever else comes out of a reader is what this program looks for
            return f"defect: {error!r:.300}"
        return READ

    def _wrong(self, error: Any, folder: Path) -> str | None:
        """What the message of a CheckpointError lacks."""
        text = str(error)
        names = {path.name for path in folder.rglob("*")} | {folder.name}
        if len(text) > LONGEST:
            return f"{type(error).__name__} with {len(text)} characters"
        if not error.right or not error.found:
            return f"{type(error).__name__} that does not say what is right: {text:.300}"
        if not any(name in text for name in names):
            return f"{type(error).__name__} that names no file: {text:.300}"
        if re.search(r"[\ud800-\udfff]", text):
            return f"{type(error).__name__} that cannot be shown: {text!r:.300}"
        return None


def _bfloat16() -> Any:
    import torch

    return torch.bfloat16


def write(case: Case, folder: Path) -> None:
    """Write the files of a case, and next to the folder one that nothing may open."""
    folder.mkdir()
    for name, content in case.tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)


class Opened:
    """While it is open, notes whether a file of a name is opened by this process."""

    def __init__(self, name: str):
        self.name, self.active, self.seen = name, False, False
        sys.addaudithook(self._hook)  # for the process's whole life: a hook cannot be removed

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event == "open" and str(arguments[0]).endswith(self.name):
            self.seen = True

    def __enter__(self) -> Opened:
        self.active, self.seen = True, False
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False


class Run:
    """Reads cases in a temporary folder and counts their outcomes.

    Fields: outcomes; kinds, the cases of each kind; defects, (seed of the case, what went wrong).
    """

    def __init__(self, pack: ModuleType):
        self.readers, self.opened = Readers(pack), Opened(OUTSIDE)
        self.outcomes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.defects: list[tuple[str, str]] = []

    def __enter__(self) -> Run:
        self._stack = ExitStack()
        self.base = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        (self.base / OUTSIDE).write_bytes(parts_of(random_state(PLAIN)).file())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def one(self, seed: str) -> list[str]:
        """Read the case of a seed. Returns: its defects."""
        case = make_case(Random(seed))
        folder = self.base / "case"
        write(case, folder)
        found = []
        # A link is followed, as into the caches of download tools; a name in a file is not.
        linked = any(isinstance(content, Link) and OUTSIDE in content.target for content in case.tree.values())
        try:
            with self.opened as opened:
                for reader, outcome in self.readers.read(folder, case):
                    self.outcomes[outcome.partition(":")[0]] += 1
                    if outcome.startswith("defect"):
                        found.append(f"{reader} of {case.kind} ({', '.join(case.changes)}): {outcome}")
            if opened.seen and not linked:
                found.append(f"{case.kind} ({', '.join(case.changes)}): a file outside the folder was opened")
        finally:
            shutil.rmtree(folder)
        self.kinds[case.kind] += 1
        self.defects += [(seed, words) for words in found]
        return found


def open_pack() -> ModuleType:
    """The pack in this process, without a server."""
    in_process.prepare("--cpu")
    return in_process.load_pack()


def main(words: list[str]) -> int:
    seeds = command.seeds_of(words, "files", __doc__, "file", 10_000)
    with Run(open_pack()) as run:
        command.run_all(seeds, run.one)
    return command.status(run.defects, files=len(seeds), kinds=run.kinds, outcomes=run.outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
