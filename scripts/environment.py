"""Makes `.venv`: a virtual environment that runs ComfyUI and, for the tests, the development tools.

Two forms. Without an installed ComfyUI the environment holds everything, torch included. Beside an installed ComfyUI
it is a thin layer for the tests: made with that ComfyUI's Python, seeing its packages, adding only the development
tools, so that nothing is ever installed into an environment that the user made.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import markers
from scripts.console import Step, UserError, run

ROOT = Path(__file__).absolute().parents[1]
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
OLDEST = (3, 10)

# torchvision and torchaudio are built against one torch each, so the three move together.
TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
TORCH_FAMILY = {"torch", "torchvision", "torchaudio"}

# A phrase in pip's output, and what it means for the person who reads it.
PIP_HINTS = (
    ("No space left on device", "The disk is full; the environment needs about 4 GB (8 GB with CUDA)."),
    ("Temporary failure in name resolution", "The package index can't be reached: is there a network connection?"),
    ("Failed to establish a new connection", "The package index can't be reached: is there a network connection?"),
    ("getaddrinfo failed", "The package index can't be reached: is there a network connection?"),
    ("CERTIFICATE_VERIFY_FAILED", "The package index's certificate is refused; a proxy may need its own (PIP_CERT)."),
    ("No matching distribution found for torch", "There is no torch 2.13 for this Python or system; try Python 3.12."),
    ("THESE PACKAGES DO NOT MATCH THE HASHES", "A download is not the file this project pins; nothing was installed."),
)


def venv_python(folder: Path = VENV) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make(*, beside: Path | None = None) -> Path:
    """Make the virtual environment if it is not there or no longer works.

    Args: beside, an installed ComfyUI's Python: makes it, and shows it its packages (default: this Python makes it).
    Returns: its Python.
    Raises: UserError if a virtual environment can't be made.
    """
    # Not sys.executable: it may be the very environment that is made anew here.
    python, maker = venv_python(), beside or Path(getattr(sys, "_base_executable", sys.executable))
    marker, value = VENV / ".made", markers.key("v1", beside or "")
    adopted = not marker.exists() and beside is None
    if works(python) and (markers.up_to_date(marker, value) or adopted):
        markers.write(marker, value)
        return python
    if VENV.exists():
        shutil.rmtree(VENV)
    if subprocess.run([maker, "-c", "import ensurepip, venv"], capture_output=True).returncode:
        raise UserError(
            f"{maker} can't make virtual environments (its venv or ensurepip module is missing).\n"
            "On Debian and Ubuntu: apt-get install python3-venv. Elsewhere: use a Python from python.org."
        )
    run([maker, "-m", "venv", VENV], title="Making a virtual environment in .venv", log=ROOT / ".host" / "venv.log")
    if beside:
        lines = [f"import site; site.addsitedir({folder!r})" for folder in package_folders(beside)]
        site_packages(python).joinpath("host.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    markers.write(marker, value)
    return python


def works(python: Path) -> bool:
    """Whether this Python starts, is new enough and has pip."""
    if not python.exists():
        return False
    probe = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    return subprocess.run([python, "-c", probe], capture_output=True).returncode == 0


def package_folders(python: Path) -> list[str]:
    code = "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def pip(python: Path, *arguments: str | Path, title: str) -> None:
    run([python, "-m", "pip", *arguments], title=title, log=LOG, hints=PIP_HINTS)


def install_comfyui_requirements(python: Path, requirements: Path) -> None:
    """Install torch and what ComfyUI requires; nothing to do if the marker says so."""
    text = requirements.read_text(encoding="utf-8")
    marker, value = VENV / ".host-requirements", markers.key("v1", TORCH, TORCH_COMPANIONS, text)
    if markers.up_to_date(marker, value):
        return
    # torch goes first and alone: otherwise another package's looser requirement would choose its version.
    pip(python, "install", TORCH, title=f"Installing {TORCH} (the largest download)")
    pip(python, "install", "--no-deps", *TORCH_COMPANIONS, title="Installing torchvision and torchaudio")
    wanted = VENV / "host-requirements.txt"
    wanted.write_text("\n".join(line for line in text.splitlines() if distribution(line) not in TORCH_FAMILY) + "\n")
    title = "Installing what ComfyUI requires"
    pip(python, "install", "-r", wanted, "-c", constraints(), title=title)
    mend_cpu_torch(python)
    markers.write(marker, value)


def install_dev(python: Path, *, owned: bool) -> None:
    """Install the development tools: the group `dev` of pyproject.toml."""
    wanted = dev_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    marker, value = VENV / ".dev-requirements", markers.key("v1", *wanted)
    if markers.up_to_date(marker, value):
        return
    pins = ("-c", constraints()) if owned else ()
    pip(python, "install", *wanted, *pins, title="Installing the development tools")
    markers.write(marker, value)


def constraints() -> Path:
    """A pip constraints file that keeps the chosen torch, whatever else is installed."""
    path = VENV / "constraints.txt"
    path.write_text("\n".join((TORCH, *TORCH_COMPANIONS)) + "\n")
    return path


def distribution(line: str) -> str:
    """The normalised name at the start of a requirement line; empty for comments."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def dev_requirements(pyproject: str) -> list[str]:
    """The strings of the `dev` list; tomllib would need Python 3.11."""
    match = re.search(r"^dev = \[(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    if not match:
        raise UserError("pyproject.toml has no list `dev`.")
    return re.findall(r'"([^"]+)"', match[1])


# The package index has torchvision and torchaudio for Linux as CUDA builds only. Beside a CPU build of torch their
# compiled parts can't load; their Python parts, all that ComfyUI uses here, work once torchvision's two operators are
# declared and torchaudio finds no library to load.
TORCHVISION_SHIM = '''"""Declares two operators that torchvision expects of its compiled part, before its import."""

import sys


class _Declare:
    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.library is None:
            import torch

            cls.library = torch.library.Library("torchvision", "DEF")
            cls.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            cls.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Declare)
'''


def mend_cpu_torch(python: Path) -> None:
    """Make torchvision and torchaudio importable beside a CPU torch; touches only our own environment."""
    has_cuda = "import torch, sys; sys.exit(torch.version.cuda is None and torch.version.hip is None)"
    if subprocess.run([python, "-c", has_cuda], capture_output=True).returncode == 0:
        return
    with Step("Checking torchvision and torchaudio beside the CPU build of torch"):
        declare_operators_and_drop_libraries(python, site_packages(python))


def declare_operators_and_drop_libraries(python: Path, folder: Path) -> None:
    if not imports(python, "torchvision"):
        (folder / "_cpu_torchvision.py").write_text(TORCHVISION_SHIM, encoding="utf-8")
        (folder / "_cpu_torchvision.pth").write_text("import _cpu_torchvision\n", encoding="utf-8")
    if not imports(python, "torchaudio"):
        for library in (folder / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    for name in ("torchvision", "torchaudio"):
        if not imports(python, name):
            raise UserError(f"{name} can't be imported beside this torch; see: {python} -c 'import {name}'")


def imports(python: Path, name: str) -> bool:
    return subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 0
