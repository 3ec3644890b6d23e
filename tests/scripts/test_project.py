"""The project's own files: its version, its requirements, the library that pip installs, the registry's package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import mmdit_core

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def value(key: str) -> str:
    """A string of pyproject.toml; tomllib would need Python 3.11."""
    found = re.search(rf'^{key} = "(.*)"$', PYPROJECT, re.MULTILINE)
    assert found, key
    return found[1]


def test_the_library_the_project_and_the_changelog_have_one_version():
    assert mmdit_core.__version__ == value("version")
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0] == value("version")


def test_the_requirements_are_the_projects_dependencies_without_versions():
    """The node registry reads one list, other installers the other; ComfyUI chooses the versions."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert f"dependencies = {str(listed).replace(chr(39), chr(34))}" in PYPROJECT
    assert listed == ["torch", "safetensors", "numpy"]


IMPORT = """
import importlib, pkgutil, sys

OTHERS = {"comfy", "nodes", "attributes", "scripts", "aiohttp", "PIL", "scipy", "diffusers"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OTHERS:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
import mmdit_core
names = [module.name for module in pkgutil.walk_packages(mmdit_core.__path__, "mmdit_core.")]
for name in names:
    importlib.import_module(name)
print(mmdit_core.__version__, mmdit_core.__file__, len(names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` makes, built in a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("mmdit_core", "nodes", "attributes", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = ("wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "out")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "out").glob("*.whl")
    return path


def test_pip_installs_mmdit_core_alone(wheel):
    with ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mmdit_core"}
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mmdit_core").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == shipped and "mmdit_core/py.typed" in names
    assert re.findall(r"^Requires-Dist: (\w+)$", metadata, re.MULTILINE) == ["numpy", "safetensors", "torch"]


def test_the_modules_of_the_installed_library_and_the_examples_run_with_its_requirements_only(wheel, tmp_path):
    """In a process whose path holds neither this repository nor ComfyUI."""
    with ZipFile(wheel) as file:
        file.extractall(tmp_path)
    examples = shutil.copytree(
        ROOT / "docs" / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-I", "-c", IMPORT + RUN_EXAMPLES, str(tmp_path), str(examples)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    facts, *printed = done.stdout.splitlines()
    version, place, count = facts.split()
    assert sum("finite: True" in line for line in printed) == 3 and any("loss" in line for line in printed)
    assert version == value("version") and Path(place).is_relative_to(tmp_path) and int(count) > 20


# After IMPORT, in the same process.
RUN_EXAMPLES = """
import pathlib, runpy
examples = pathlib.Path(sys.argv[2])
sys.path.insert(0, str(examples))
for path in sorted(examples.glob("*.py")):
    sys.argv = [path.name, "--device", "cpu"]
    runpy.run_path(str(path), run_name="__main__")
"""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_github_workflow_is_yaml_and_its_files_exist(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["jobs"] and workflow[True] and workflow["permissions"] == {"contents": "read"}
    for step in (step for job in workflow["jobs"].values() for step in job["steps"]):
        assert ("uses" in step) != ("run" in step)
        assert "@" in step.get("uses", "@")
    for module in re.findall(r"python -m scripts\.(\w+)", text):
        assert (ROOT / "scripts" / f"{module}.py").is_file()
    for script in re.findall(r"run: (\.\S+)", text):
        assert (ROOT / script).stat().st_mode & 0o111


def test_the_tests_run_on_the_oldest_python_that_is_promised():
    versions = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    matrix = versions["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert f">={matrix[0]}" == value("requires-python") and value("python_version") == matrix[0]
    assert f'target-version = "py{matrix[0].replace(".", "")}"' in PYPROJECT


def test_the_registrys_package_has_all_that_the_pack_needs_and_no_developers_folder():
    patterns = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    left_out = {line.strip("/") for line in patterns if line and not line.startswith("#")}
    assert all(line.startswith("/") for line in patterns if line and not line.startswith("#")), "web/docs/ must stay"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    kept = {line.partition("/")[0] for line in listed if line} - left_out
    needed = {"__init__.py", "nodes", "mmdit_core", "attributes", "models", "web", "locales", "workflows"}
    assert kept == needed | {"pyproject.toml", "requirements.txt", "LICENSE", "README.md", "README.zh.md"} | {
        ".comfyignore", "CHANGELOG.md", "SECURITY.md",
    }  # fmt: skip
