"""The rules of the house, checked by reading every source file: who may import whom, and what the pack never does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CORE = sorted((ROOT / "mmdit_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
ATTRIBUTES = sorted((ROOT / "attributes").rglob("*.py"))
PACK = [ROOT / "__init__.py", *NODES, *CORE, *ATTRIBUTES]
OWN_FOLDERS = ("mmdit_core", "nodes", "attributes", "scripts", "tests", "training", "benchmarks", "web")
SOURCES = [ROOT / "__init__.py"] + [
    path for folder in OWN_FOLDERS for kind in ("*.py", "*.js", "*.mjs") for path in (ROOT / folder).rglob(kind)
]

LONGEST = 450  # lines; what can be read in one sitting

# The modules that are ComfyUI: its packages and the modules that lie at the top of its folder.
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "node_helpers",
    "nodes",
    "server",
}
HOST_INTERNALS = {"comfy", "comfy_execution", "comfy_extras", "execution", "latent_preview", "node_helpers"}
CORE_MAY_USE = {"torch", "safetensors", "numpy", "mmdit_core"}

# module of the core -> modules of the core that it may import; the others are free. design.md's one-way street.
LEAVES: dict[str, set[str]] = {
    "config": set(),
    "layers": {"config"},
    "blocks": {"config", "layers"},
    "modulation": {"blocks"},
    "products": set(),
    "model": {"config", "layers", "blocks", "modulation", "products"},
    "flow": set(),
    "schedule": set(),
    "guidance": set(),
    "text": set(),
    "control": set(),
}

TOP_LEVEL = {
    "__init__.py": "",
    **dict.fromkeys(("nodes", "mmdit_core", "attributes", "models", "training", "web"), "folder"),
    **dict.fromkeys(("locales", "workflows"), "folder"),
    **dict.fromkeys(("scripts", "tests", "benchmarks", "docs", ".ci"), "folder"),
    **dict.fromkeys(("pyproject.toml", "requirements.txt", ".comfyignore", ".gitignore", ".gitattributes"), "file"),
    **dict.fromkeys(("LICENSE", "README.md", "README.zh.md", "CONTRIBUTING.md"), "file"),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, whether relative) of each import; relative ones are spelled from the repository's root."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            module = ".".join((*above, *((node.module,) if node.module else ())))
            yield node.lineno, module, True
            yield from ((node.lineno, f"{module}.{alias.name}".lstrip("."), True) for alias in node.names)


def offences(path: Path, wrong: Callable[[str], bool], *, relative: bool = True) -> list[str]:
    """The imports of a file that a rule forbids; `relative=False` looks at absolute ones alone."""
    found = [(line, module) for line, module, is_relative in imports(path) if relative or not is_relative]
    return [f"{name(path)}:{line} imports {module}" for line, module in found if wrong(module)]


def top(module: str) -> str:
    return module.partition(".")[0]


def test_there_is_something_to_scan():
    assert len(CORE) > 5 and len(NODES) > 2, "an empty scan would pass every rule"


@each(CORE)
def test_the_core_needs_only_torch_safetensors_numpy_and_the_standard_library(path):
    allowed = CORE_MAY_USE | sys.stdlib_module_names
    assert not offences(path, lambda module: top(module) not in allowed)


@each(CORE)
def test_the_core_imports_run_one_way(path):
    allowed = LEAVES.get(path.stem)
    if allowed is None:
        allowed = {other.stem for other in CORE}
    stems = {other.stem for other in CORE}

    def upward(module: str) -> bool:
        part = module.removeprefix("mmdit_core.").partition(".")[0]
        return module.startswith("mmdit_core.") and part in stems and part not in allowed

    assert not offences(path, upward)


@each(NODES)
def test_only_the_host_files_touch_comfys_internals(path):
    inside = path.relative_to(ROOT / "nodes")
    if inside.parts[0].startswith("host"):
        return
    assert not offences(path, lambda module: top(module) in HOST_INTERNALS)


@each(NODES)
def test_nodes_reach_the_pack_by_relative_imports_only(path):
    # ComfyUI loads the pack under a name of its own: `import mmdit_core` would find nothing, or another pack's copy;
    # a plain `import nodes` is ComfyUI's.
    assert not offences(path, lambda module: top(module) in {"mmdit_core", "scripts", "tests"}, relative=False)


@each([ROOT / "__init__.py"])
def test_the_pack_itself_only_hands_on_its_nodes(path):
    assert not offences(path, lambda module: top(module) not in {"nodes", "__future__"})


@each([*CORE, *ATTRIBUTES])
def test_nothing_imports_upward(path):
    assert not offences(path, lambda module: top(module) in HOST_MODULES | {"nodes", "training", "benchmarks"})


@each(ATTRIBUTES)
def test_the_small_models_world_stands_alone_and_needs_only_what_comfyui_ships(path):
    allowed = {"numpy", "scipy", "attributes"} | sys.stdlib_module_names
    assert not offences(path, lambda module: top(module) not in allowed)


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen"), ("np", "load")}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "subprocess", "pip", "ctypes"}


@each(PACK)
def test_the_pack_never_evaluates_unpickles_or_installs(path):
    found = offences(path, lambda module: top(module) in FORBIDDEN_MODULES)
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
            found.append(f"{name(path)}:{node.lineno} calls {called.id}")
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            if (called.value.id, called.attr) in FORBIDDEN_ATTRIBUTES:
                found.append(f"{name(path)}:{node.lineno} calls {called.value.id}.{called.attr}")
    assert not found


@each(PACK)
def test_the_pack_has_no_mutable_default_arguments(path):
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
            assert not [default for default in defaults if isinstance(default, mutable)], f"{name(path)}:{node.lineno}"


def test_every_file_can_be_read_in_one_sitting():
    long = {name(path): count for path in SOURCES if (count := len(path.read_text("utf-8").splitlines())) > LONGEST}
    assert not long


def test_only_known_names_lie_at_the_top():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:  # a copy without its history: nothing to list that is the project's for certain
        names = {path.name for path in ROOT.iterdir() if path.name in TOP_LEVEL}
    else:
        names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert names <= set(TOP_LEVEL), f"unknown at the top: {sorted(names - set(TOP_LEVEL))}"


BLOCKED_IMPORT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"comfy", "nodes", "folder_paths", "transformers", "diffusers", "scipy"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
import mmdit_core
config = mmdit_core.MMDiTConfig
print(mmdit_core.MMDiT.__name__, config.__name__)
"""


def test_the_core_imports_with_no_comfyui_transformers_or_diffusers(tmp_path):
    command = [sys.executable, "-c", BLOCKED_IMPORT, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MMDiT", "MMDiTConfig"]
