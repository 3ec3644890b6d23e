"""ComfyUI releases: what is too old is refused before anything is registered, all others are taken."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import installations
from scripts.client import ComfyUIError
from scripts.server import Server
from tests.conftest import find_installation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def release(bench):
    return bench.module("comfyui.release")


def state(monkeypatch, version):
    """Make ComfyUI state a version; None: it has no file for it."""
    stated = None if version is None else SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "comfyui_version", stated)


@pytest.mark.floor
def test_this_comfyui_is_taken(release):
    release.require()
    assert release.found_version() == (find_installation().folder / "comfyui_version.py").read_text().split('"')[1]


@pytest.mark.parametrize("version", ["0.24.0", "0.24.0rc1", "0.24.1.dev3+g0a1b2c3", "v0.30.0", "1.0", "0.100.0"])
def test_a_new_enough_version_is_taken(release, monkeypatch, version):
    state(monkeypatch, version)
    release.require()


@pytest.mark.parametrize("version", ["0.23.9", "0.3.60", "0.20.1", "0.9"])
def test_an_older_version_is_refused_with_what_to_do(release, monkeypatch, version):
    state(monkeypatch, version)
    words = rf"needs ComfyUI 0\.24\.0 or newer.*it is {re.escape(version)}\. No node.*Update ComfyUI and start it again"
    with pytest.raises(ImportError, match=words):
        release.require()


@pytest.mark.parametrize("version", [None, "unknown", ""])
def test_without_a_version_the_functions_of_comfyui_decide(release, monkeypatch, version):
    import comfy.sample

    state(monkeypatch, version)
    release.require()
    monkeypatch.setattr(comfy.sample, "fix_empty_latent_channels", lambda model, latent, downscale_ratio_spacial: 0)
    with pytest.raises(ImportError, match=r"needs ComfyUI 0\.24\.0.*it lacks what came with that release"):
        release.require()


def test_the_project_promises_the_releases_that_are_tested(release):
    oldest = ".".join(map(str, release.OLDEST))
    assert oldest == installations.OLDEST in installations.RELEASES
    promised = re.search(r'^requires-comfyui = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert promised and promised[1] == f">={oldest}"
    assert f"ComfyUI {oldest}" in (ROOT / "README.md").read_text("utf-8")
    assert f"ComfyUI {oldest}" in (ROOT / "README.zh.md").read_text("utf-8")


def test_a_comfyui_that_is_too_old_starts_without_the_pack_and_says_why(comfyui, tmp_path):
    """A real one: its log has one error for the pack, and nothing of the pack is left in it."""
    folder = installations.RELEASES[installations.REFUSED].folder
    if not folder.is_dir():
        pytest.skip(f"there is no copy of ComfyUI {installations.REFUSED}: run `python scripts/test.py` once")
    old = installations.Installation(folder, find_installation().python, owned=True)
    ours = {name for name, info in comfyui.object_info().items() if info["python_module"].startswith("custom_nodes")}
    with Server(old, tmp_path) as server:
        failure, log = server.pack_failure(), server.read_log()
        found = server.client.object_info()
        extensions = server.client.get("/extensions")
        with pytest.raises(ComfyUIError):
            server.client.get("/mmdit/presets")
    assert failure and failure.splitlines()[-1].endswith(
        f"needs ComfyUI 0.24.0 or newer, and this ComfyUI is older: it is {installations.REFUSED}. "
        "No node of MMDiT was added. Update ComfyUI and start it again."
    )
    assert log.count("Cannot import") - len(other_failures(log)) == 1
    assert ours and not ours & set(found)
    assert not [path for path in extensions if "mmdit" in path.lower()], json.dumps(extensions)


def other_failures(log: str) -> list[str]:
    """ComfyUI's own modules that it could not import, such as one for which a package is missing."""
    return re.findall(r"^Cannot import \S*comfy_extras\S* module", log, re.MULTILINE)


@pytest.mark.floor
def test_only_a_pack_of_the_server_itself_fails_the_start(tmp_path):
    """Next to a broken pack of somebody else's, which ComfyUI reports with the same words."""
    broken = tmp_path / "somebodys" / "broken_pack"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import a_package_that_is_not_there\n")
    others = tmp_path / "base" / "custom_nodes" / broken.name
    others.parent.mkdir(parents=True)
    others.symlink_to(broken, target_is_directory=True)
    with Server(find_installation(), tmp_path / "base") as server:
        assert server.pack_failure() is None and "MMDiTLoader" in server.client.object_info()
        failures = {path.name: log for path, log in server.import_failures().items()}
        server.packs = (*server.packs, broken)
        of_ours = server.pack_failure()
    assert "a_package_that_is_not_there" in failures[broken.name] and ROOT.name not in failures
    assert of_ours is not None and of_ours == failures[broken.name] and of_ours.count("Cannot import") == 1
