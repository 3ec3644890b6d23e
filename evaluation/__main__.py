"""`python -m evaluation study` and `python -m evaluation generate`, see their --help and docs/studies.md."""

from __future__ import annotations

import sys

from mmdit_core.control.preset_files import PresetError
from scripts.console import UserError

from . import generate
from .cluster import ClusterError
from .command_line import check, parse
from .engine.graph import WorkflowError
from .engine.host import HostError
from .judges import JudgeError, PromptError
from .prompts import PromptSetError
from .study import command as study
from .study.cells import FolderError
from .study.settings import SettingsError

COMMANDS = {"study": study.run, "generate": generate.run}
EXPECTED = (
    UserError,
    ClusterError,
    FolderError,
    HostError,
    JudgeError,
    OSError,  # a folder or a disk that cannot be written
    PresetError,
    PromptError,
    PromptSetError,
    SettingsError,
    WorkflowError,
)


def main(words: list[str]) -> None:
    """Run one command. What the user can mend is said without a traceback."""
    given = parse(words)
    try:
        check(given)
        COMMANDS[given.command](given)
    except EXPECTED as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command continues from here.")


if __name__ == "__main__":
    main(sys.argv[1:])
