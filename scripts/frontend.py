"""Fetches the newest tested version of ComfyUI's frontend; the browser tests run on it with `--frontend newest`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from scripts import environment, markers
from scripts.console import UserError
from scripts.installations import COMFYUI_HOME

NEWEST = "1.58.1"
PIN = (
    f"comfyui-frontend-package=={NEWEST} --hash=sha256:37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"
)
FOLDER = COMFYUI_HOME / f"frontend-{NEWEST}"


def newest(python: Path) -> Path:
    """The folder for ComfyUI's `--front-end-root`; fetched into `.host/` unless it is there.

    Raises: UserError if the download fails.
    """
    root = FOLDER / "comfyui_frontend_package" / "static"
    marker, value = FOLDER / ".fetched", markers.key("v1", PIN)
    if markers.up_to_date(marker, value):
        return root
    COMFYUI_HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMFYUI_HOME) as temporary:
        pin, new_copy = Path(temporary) / "pin.txt", Path(temporary) / "frontend"
        pin.write_text(PIN + "\n")
        options = ("--no-deps", "--require-hashes", "--target", new_copy)
        title = f"Fetching ComfyUI's frontend {NEWEST} (pinned)"
        environment.pip(python, "install", *options, "-r", pin, title=title)
        if not (new_copy / root.relative_to(FOLDER) / "index.html").is_file():
            raise UserError(f"{PIN.split()[0]} does not contain ComfyUI's frontend.")
        if FOLDER.exists():
            shutil.rmtree(FOLDER)
        new_copy.rename(FOLDER)
    markers.write(marker, value)
    return root
