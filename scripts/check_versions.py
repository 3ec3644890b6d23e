"""Checks that the shipped code runs on every Python and every ComfyUI that it promises, as far as reading it can tell.

    python -m scripts.check_versions

vermin finds what a newer Python is needed for. comfy-import-guard resolves each name and each call of ComfyUI's against
the releases of which there is a copy. It reads them from a git repository with a tag for each, made here and thrown
away. Neither sees a method that changed, or a keyword that is dropped: the tests marked `floor` do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.environment import OLDEST as OLDEST_PYTHON
from scripts.environment import ROOT
from scripts.installations import REFUSED, RELEASES, Release, is_comfyui

SHIPPED = ("__init__.py", "nodes", "attributes", "mmdit_core")
# Neither can be run with `python -m`.
VERMIN = "from vermin import main; main()"
GUARD = "import sys; from comfy_import_guard.cli import main; sys.exit(main())"


def main() -> int:
    """Run both; returns the exit status."""
    python = ".".join(map(str, OLDEST_PYTHON))
    vermin = subprocess.run([sys.executable, "-c", VERMIN, f"-t={python}-", "--no-tips", *SHIPPED], cwd=ROOT)
    copies = [r for version, r in RELEASES.items() if version != REFUSED and is_comfyui(r.folder)]
    return vermin.returncode or (guard(copies) if copies else 0)


def guard(releases: list[Release]) -> int:
    """Resolve the pack against these releases; returns 1 if it breaks on one of them."""
    with tempfile.TemporaryDirectory() as temporary:
        cache, comfyui = Path(temporary) / "cache", Path(temporary) / "comfyui"
        repository = cache / "ComfyUI"
        repository.mkdir(parents=True)
        git(repository, "init")
        for release in releases:
            commit(repository, release)
        pack = comfyui / "custom_nodes" / "mmdit"
        for name in SHIPPED:
            copy_python(ROOT / name, pack / name)
        codes = []
        for release in releases:
            words = ("check", "--comfy-dir", comfyui, "--target", tag(release))
            options = ("--offline", "--no-update", "--quiet", "--cache-dir", cache)
            answer = subprocess.run([sys.executable, "-c", GUARD, *words, *options], capture_output=True, text=True)
            # A run that found no pack, or nothing to resolve in it, would pass as well.
            seen = re.search(r"([1-9]\d+) comfy\.\* reference", answer.stdout)
            codes.append(answer.returncode or int(not seen))
            print(f"ComfyUI {release.version}: {seen[0] + 's resolved' if seen and not codes[-1] else ''}")
            if codes[-1]:
                print(answer.stdout, answer.stderr)
        return max(codes)


def commit(repository: Path, release: Release) -> None:
    """Make a release's Python files the repository's next commit, with its tag."""
    for child in repository.iterdir():
        if child.name != ".git":
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    for child in release.folder.iterdir():
        if child.suffix == ".py" or (child / "__init__.py").is_file() or child.name.startswith("comfy"):
            copy_python(child, repository / child.name)
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--message", release.version)
    git(repository, "tag", tag(release))


def copy_python(source: Path, target: Path) -> None:
    """Copy a Python file, or those of a folder."""
    for path in source.rglob("*.py") if source.is_dir() else [source]:
        to = target / path.relative_to(source) if source.is_dir() else target
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)


def tag(release: Release) -> str:
    """A release's tag, as ComfyUI names them."""
    return f"v{release.version}"


def git(folder: Path, *words: str) -> None:
    """Run git without the user's settings: a name to sign with, hooks and templates may be missing or in the way."""
    settings = ("user.name=checks", "user.email=checks@localhost", "commit.gpgsign=false", "core.hooksPath=/dev/null")
    options = [word for setting in settings for word in ("-c", setting)]
    subprocess.run(["git", *options, *words], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
