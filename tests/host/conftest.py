"""In-process access to ComfyUI's own modules, for tests that compare our code with the host's without a server.

Test modules in this folder may `import comfy...` at their top: ComfyUI is put on sys.path before they are imported.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts.environment import ROOT
from scripts.host import HOST_FOLDER, installed

COMFY = installed() or HOST_FOLDER / "ComfyUI"
BASE = ROOT / ".test-output" / "in-process"
ARGUMENTS = ("--cpu", "--use-pytorch-cross-attention", "--base-directory", str(BASE))


def prepare(folder: Path) -> None:
    """Put ComfyUI on sys.path and let it read our arguments once, in place of pytest's."""
    if not folder.is_dir():
        raise pytest.UsageError("There is no ComfyUI to test with: run `python scripts/test.py` once.")
    BASE.mkdir(parents=True, exist_ok=True)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import comfy.options

    before, parsing = sys.argv, comfy.options.args_parsing
    sys.argv = ["main.py", *ARGUMENTS]
    comfy.options.enable_args_parsing()
    try:
        import comfy.cli_args  # noqa: F401
    finally:
        sys.argv = before
        comfy.options.enable_args_parsing(parsing)


prepare(COMFY)


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """ComfyUI's folder, on sys.path, its options parsed for the CPU."""
    return COMFY


@pytest.fixture(scope="session")
def pack(comfy_path: Path) -> ModuleType:
    """This repository imported as ComfyUI imports it: a package of its own, here named `mmdit_pack`.

    Its core is `mmdit_pack.mmdit_core`, another module object than a plain `import mmdit_core`.
    """
    if "mmdit_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "mmdit_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["mmdit_pack"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["mmdit_pack"]
            raise
    return sys.modules["mmdit_pack"]
