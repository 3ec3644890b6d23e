"""ComfyUI's own modules in this process, without a server: for tests, benchmarks and studies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from scripts.console import UserError
from scripts.environment import ROOT
from scripts.installations import NEWEST, RELEASES, installed

BASE = ROOT / ".test-output" / "in-process"
PACK = "mmdit_pack"
ARGUMENTS = ("--use-pytorch-cross-attention",)


def prepare(*arguments: str, base: Path | None = BASE) -> Path:
    """Put ComfyUI first on sys.path and make it parse these arguments instead of this process's own.

    ComfyUI must be first: its module `nodes` has the name of a folder of this repository.

    Args: base, the folder that holds its models, user and other folders; None for ComfyUI's own.
    Returns: ComfyUI's folder.
    Raises: UserError if there is no ComfyUI.
    """
    folder = installed() or RELEASES[NEWEST].folder
    if not folder.is_dir():
        raise UserError("There is no ComfyUI here: run `python scripts/run.py` once.")
    places: tuple[str, ...] = ()
    if base is not None:
        base.mkdir(parents=True, exist_ok=True)
        places = ("--base-directory", str(base))
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    import comfy.options

    before, parsing = sys.argv, comfy.options.args_parsing
    sys.argv = ["main.py", *arguments, *ARGUMENTS, *places]
    comfy.options.enable_args_parsing()
    try:
        import comfy.cli_args  # noqa: F401

        # As main.py does, before `nodes`: ComfyUI 0.24.0 puts its folder comfy/ first on sys.path there, and a later
        # first `import utils` would find comfy/utils.py.
        import utils.install_util  # noqa: F401
    finally:
        sys.argv = before
        comfy.options.enable_args_parsing(parsing)
    return folder


def load_pack() -> ModuleType:
    """This repository imported as ComfyUI imports it: as a package with a name of its own, here `mmdit_pack`.

    Its core is `mmdit_pack.mmdit_core`, a different module from `import mmdit_core`.
    """
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACK] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[PACK]
            raise
    return sys.modules[PACK]
