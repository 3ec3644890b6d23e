"""The package that the node registry hands out, unpacked into an empty ComfyUI, draws an image."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from PIL import Image

from scripts.server import Server
from scripts.workflow import to_prompt
from tests.conftest import find_installation

ROOT = Path(__file__).parents[2]


def listed(*options: str) -> set[str]:
    """The paths of files that git tracks."""
    words = ("git", "ls-files", "-z", "--cached", *options)
    return set(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A zip by the registry's rule: all files that git tracks, without those that .comfyignore names."""
    path = tmp_path_factory.mktemp("package") / "node.zip"
    left_out = listed("--ignored", "--exclude-from=.comfyignore")
    assert any(name.startswith("tests/") for name in left_out)
    with ZipFile(path, "w", ZIP_DEFLATED) as file:
        for name in sorted(listed() - left_out):
            file.write(ROOT / name, name)
    return path


@pytest.mark.floor
def test_the_package_alone_runs_the_quickstart(package, tmp_path):
    folder = tmp_path / "custom_nodes" / "mmdit"
    with ZipFile(package) as file:
        file.extractall(folder)
    assert not (folder / "scripts").exists() and (folder / "models").is_dir()
    with Server(find_installation(), tmp_path, packs=()) as server:
        assert not [path for path in server.import_failures() if path.name == "mmdit"]
        info = server.client.object_info()
        assert info["MMDiTLoader"]["python_module"] == "custom_nodes.mmdit"
        workflow = json.loads((folder / "workflows" / "quickstart.json").read_text(encoding="utf-8"))
        (image,) = server.client.images(server.client.run(to_prompt(workflow, info)))
        assert server.client.get("/mmdit/presets") and server.client.fetch("/extensions/mmdit/js/mmdit.js")
        assert "quickstart" in server.client.get("/workflow_templates")["mmdit"]
    drawn = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(float)
    assert drawn.shape == (128, 128, 3) and drawn.std() > 20
