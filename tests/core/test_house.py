"""The rules of the house, checked by reading every source file: who may import whom, and what the pack never does."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmdit_core.checkpoints.families import FAMILIES

ROOT = Path(__file__).parents[2]

CORE = sorted((ROOT / "mmdit_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
ATTRIBUTES = sorted((ROOT / "attributes").rglob("*.py"))
PACK = [ROOT / "__init__.py", *NODES, *CORE, *ATTRIBUTES]
OWN_FOLDERS = ("mmdit_core", "nodes", "attributes", "scripts", "tests", "training", "benchmarks", "evaluation", "web")
OWN_FOLDERS += ("docs/examples",)
SOURCES = [ROOT / "__init__.py"] + [
    path for folder in OWN_FOLDERS for kind in ("*.py", "*.js", "*.mjs") for path in (ROOT / folder).rglob(kind)
]

LONGEST = 450  # lines; what can be read in one sitting

# The modules that are ComfyUI: its packages and the modules that lie at the top of its folder.
COMFYUI_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "node_helpers",
    "nodes",
    "server",
}
COMFYUI_INTERNALS = {"comfy", "comfy_execution", "comfy_extras", "execution", "latent_preview", "node_helpers"}
CORE_MAY_USE = {"torch", "safetensors", "numpy", "mmdit_core"}

# package of the core -> the packages and modules of the core that it may import, and why where it is not plain.
CORE_PACKAGES: dict[str, set[str]] = {
    "config": set(),
    "models": {"config"},
    "checkpoints": {"config", "models"},  # load_model builds the model
    "typed": set(),  # texts that users typed: sigmas and block lists
    "files": set(),
    "flow": {"typed"},
    "solvers": {"flow"},  # the tolerance for equal sigmas
    "guidance": {"flow"},  # windows and sigmas
    "text": set(),
    # phrases are found in token maps; hooks keep AdaLN rows for part of a batch; controls act in windows
    "control": {"text", "models", "flow", "typed"},
    "caching": {"config", "flow"},  # a plan names the model that it was measured on; sigmas are compared
    "editing": {"flow"},  # the path between image and noise
    "analysis": {"control", "flow"},  # a cell is a block control in a window
    "sweep": {"control", "flow"},  # values are block lists and windows
    "__init__": {"config", "models", "checkpoints", "flow", "solvers", "control"},  # the public names
}

# package of nodes/ -> the packages and modules of nodes/ that it may import.
NODE_PACKAGES: dict[str, set[str]] = {
    "comfyui": set(),
    "errors": set(),
    "plots": set(),
    "widgets": {"errors"},
    "links": {"comfyui", "errors"},
    "sampler": {"comfyui", "errors", "links", "plots", "widgets"},
    "analysis": {"comfyui", "errors", "links", "plots", "widgets", "sampler", "control"},
    "sweep": {"comfyui", "errors", "links", "plots", "widgets", "sampler", "control"},
    "loader": {"comfyui", "errors", "widgets"},
    "text": {"comfyui", "errors", "links", "widgets"},
    "boost_rows": {"errors"},
    "control": {"boost_rows", "comfyui", "errors", "links", "widgets"},
    "caching": {"comfyui", "errors", "links", "widgets"},
    "invert": {"comfyui", "errors", "links", "widgets", "sampler"},
    "web_api": {"comfyui", "sampler", "text"},
    "edit": {"comfyui", "errors", "links", "widgets", "sampler"},
    "__init__": {
        *(
            "comfyui",
            "sampler",
            "analysis",
            "sweep",
            "loader",
            "text",
            "control",
            "caching",
            "edit",
            "invert",
            "web_api",
        ),
    },
}

TOP_LEVEL = {
    "__init__.py": "",
    **dict.fromkeys(("nodes", "mmdit_core", "attributes", "models", "training", "web"), "folder"),
    **dict.fromkeys(("locales", "workflows"), "folder"),
    **dict.fromkeys(("scripts", "tests", "benchmarks", "docs", "evaluation", ".ci", ".github"), "folder"),
    **dict.fromkeys(("pyproject.toml", "requirements.txt", ".comfyignore", ".gitignore", ".gitattributes"), "file"),
    **dict.fromkeys(("LICENSE", "README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"), "file"),
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


def room(module: str, house: str) -> str:
    """The package, or module of its own, of a dotted name in a house: mmdit_core.flow.path -> flow."""
    return module.removeprefix(house).lstrip(".").partition(".")[0]


def across(path: Path, house: str, packages: dict[str, set[str]]) -> list[str]:
    """The imports of a file from other rooms of its house than it may use."""
    inside = path.relative_to(ROOT / house)
    own = inside.parts[0] if len(inside.parts) > 1 else path.stem

    def wrong(module: str) -> bool:
        name = room(module, house)
        return module.startswith(f"{house}.") and name in packages and name != own and name not in packages[own]

    return offences(path, wrong)


@each(CORE)
def test_the_core_imports_run_one_way(path):
    assert not across(path, "mmdit_core", CORE_PACKAGES)


FAMILY_MODELS = [ROOT / f"{family.model.__module__.replace('.', '/')}.py" for family in FAMILIES]


@each(FAMILY_MODELS)
def test_a_models_file_needs_no_other_familys(path):
    others = {f"mmdit_core.models.{other.stem}" for other in FAMILY_MODELS if other != path}
    assert not offences(path, lambda module: module in others)


@each(NODES)
def test_the_nodes_import_one_way(path):
    assert not across(path, "nodes", NODE_PACKAGES)


@pytest.mark.parametrize(("house", "packages"), [("mmdit_core", CORE_PACKAGES), ("nodes", NODE_PACKAGES)])
def test_every_room_has_its_rule(house, packages):
    folder = ROOT / house
    found = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert found == set(packages)


def test_comfyui_takes_no_other_folder_for_that_of_the_workflows():
    """It serves the first of these that a pack has; the workflows in the others are listed, and cannot be opened."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (ROOT / name).exists()] == ["workflows"]


def test_no_room_is_crowded():
    folders = {path.parent for path in [*CORE, *NODES]}
    crowded = {name(folder): n for folder in folders if (n := len(list(folder.glob("[!_]*.py")))) > 11}
    assert not crowded


@each(NODES)
def test_only_nodes_comfyui_touches_comfys_internals(path):
    if path.relative_to(ROOT / "nodes").parts[0] == "comfyui":
        return
    assert not offences(path, lambda module: top(module) in COMFYUI_INTERNALS)


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
    assert not offences(
        path, lambda module: top(module) in COMFYUI_MODULES | {"nodes", "training", "benchmarks", "evaluation"}
    )


@each([ROOT / "__init__.py", *NODES])
def test_nothing_shipped_imports_what_stays_out_of_the_package(path):
    left_out = {"training", "benchmarks", "evaluation", "tests", "scripts"}
    assert not offences(path, lambda module: top(module) in left_out)


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
def test_messages_go_to_a_logger_with_the_modules_name(path):
    # So that all of them are below one logger, the pack's package: one setting shows or hides them.
    found = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "print" or (called.startswith("logging.") and ast.unparse(node) != "logging.getLogger(__name__)"):
            found.append(f"{name(path)}:{node.lineno} calls {ast.unparse(node)}")
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


COUNTED = {"BlockCallCount", "PredictionCount", "Distances", "_Stored"}  # filled during a run


def test_values_of_the_core_are_frozen():
    names = [path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__") for path in CORE]
    modules = [importlib.import_module(name.replace("/", ".")) for name in names]
    values = {value for module in modules for value in vars(module).values() if dataclasses.is_dataclass(value)}
    thawed = {value.__name__ for value in values if isinstance(value, type) and not value.__dataclass_params__.frozen}
    assert thawed == COUNTED


# Where an except clause takes every error, and why: ComfyUI's loaders raise whatever torch raises.
TAKES_ALL = {
    "nodes/comfyui/loading/clip_vae.py": {
        "_check_encoders": "ComfyUI builds text encoders from metadata that may hold anything",
        "load_vae": "ComfyUI's loader of VAEs",
    },
    "nodes/comfyui/loading/other_models.py": {
        "_config_of": "ComfyUI's detection fails in many ways on unknown models; their loader reports the error",
        "load_model": "ComfyUI's loader of diffusion models",
        "load_parts": "ComfyUI's loader of checkpoints",
    },
    "nodes/comfyui/loading/sampling_of_file.py": {
        "_detect": "some of ComfyUI's models read values of tensors that are not loaded here"
    },
    "nodes/comfyui/text/contexts.py": {"_note": "ComfyUI's encoding must not fail because of what is noted after it"},
}


@each([*NODES, *CORE])
def test_no_except_clause_is_wider_than_the_errors_that_it_names(path):
    wide = {
        function.name
        for function in ast.walk(tree(path))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for handler in ast.walk(function)
        if isinstance(handler, ast.ExceptHandler) and takes_all(handler) and not raises_again(handler)
    }
    assert wide == set(TAKES_ALL.get(name(path), {}))


def takes_all(handler: ast.ExceptHandler) -> bool:
    """Whether a clause takes every error, alone or among others."""
    if handler.type is None:
        return True
    named = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(each, ast.Name) and each.id in ("Exception", "BaseException") for each in named)


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether a clause ends by raising the error that it took."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
