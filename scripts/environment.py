"""Makes `.venv`: a virtual environment that runs ComfyUI and, for the tests, the development tools.

It has two forms. Without an installed ComfyUI the environment contains everything, torch included. With an installed
ComfyUI it is a thin layer for the tests: it is made with that ComfyUI's Python, imports its packages and adds only the
development tools, so that nothing is ever installed into an environment that the user made.
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

# (a phrase in pip's output, its meaning for the user)
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
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make(*, beside: Path | None = None) -> Path:
    """Make the virtual environment, unless a working one is there.

    Args: beside, an installed ComfyUI's Python, which makes the environment and shares its packages with it (default:
        this Python makes it).
    Returns: its Python.
    Raises: UserError if a virtual environment can't be made.
    """
    # Not sys.executable: this Python may belong to the environment that is replaced here.
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
        site_packages(python).joinpath("comfyui.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    markers.write(marker, value)
    return python


def works(python: Path) -> bool:
    """Whether a Python starts, is new enough and has pip."""
    if not python.exists():
        return False
    probe = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    return subprocess.run([python, "-c", probe], capture_output=True).returncode == 0


def package_folders(python: Path) -> list[str]:
    """The folders of a Python's installed packages."""
    code = "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def site_packages(python: Path) -> Path:
    """The folder that pip installs into."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def pip(python: Path, *arguments: str | Path, title: str) -> None:
    """Run pip as one step.

    Raises: UserError with pip's output if it fails.
    """
    run([python, "-m", "pip", *arguments], title=title, log=LOG, hints=PIP_HINTS)


def install_comfyui_requirements(python: Path, requirements: Path) -> None:
    """Install torch and ComfyUI's requirements, unless they are up to date."""
    text = requirements.read_text(encoding="utf-8")
    marker, value = VENV / ".comfyui-requirements", markers.key("v1", TORCH, TORCH_COMPANIONS, text)
    if markers.up_to_date(marker, value):
        return
    # First torch alone: otherwise another package's looser requirement would choose its version.
    pip(python, "install", TORCH, title=f"Installing {TORCH} (the largest download)")
    pip(python, "install", "--no-deps", *TORCH_COMPANIONS, title="Installing torchvision and torchaudio")
    wanted = VENV / "comfyui-requirements.txt"
    wanted.write_text("\n".join(line for line in text.splitlines() if distribution(line) not in TORCH_FAMILY) + "\n")
    pip(python, "install", "-r", wanted, "-c", constraints(), title="Installing ComfyUI's requirements")
    mend_cpu_torch(python)
    markers.write(marker, value)


def install_dev(python: Path, *, owned: bool) -> None:
    """Install the development tools, the list `dev` of pyproject.toml, unless they are up to date."""
    wanted = dev_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    marker, value = VENV / ".dev-requirements", markers.key("v1", *wanted)
    if markers.up_to_date(marker, value):
        return
    pins = ("-c", constraints()) if owned else ()
    pip(python, "install", *wanted, *pins, title="Installing the development tools")
    markers.write(marker, value)


def constraints() -> Path:
    """A pip constraints file that pins torch while other packages are installed."""
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


# On Linux the package index has torchvision and torchaudio as CUDA builds only. Their compiled libraries fail to load
# with a CPU build of torch. ComfyUI needs their Python code alone, which works once torchvision's two operators are
# declared and torchaudio's libraries are removed.
TORCHVISION_SHIM = '''"""Declares the two operators of torchvision's compiled library before torchvision is imported."""

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
    """Make torchvision and torchaudio importable with a CPU build of torch; changes `.venv` only."""
    has_cuda = "import torch, sys; sys.exit(torch.version.cuda is None and torch.version.hip is None)"
    if subprocess.run([python, "-c", has_cuda], capture_output=True).returncode == 0:
        return
    with Step("Checking torchvision and torchaudio with the CPU build of torch"):
        declare_operators_and_drop_libraries(python, site_packages(python))


def declare_operators_and_drop_libraries(python: Path, folder: Path) -> None:
    """Apply the two changes where an import fails.

    Raises: UserError if one of them still can't be imported.
    """
    if not imports(python, "torchvision"):
        (folder / "_cpu_torchvision.py").write_text(TORCHVISION_SHIM, encoding="utf-8")
        (folder / "_cpu_torchvision.pth").write_text("import _cpu_torchvision\n", encoding="utf-8")
    if not imports(python, "torchaudio"):
        for library in (folder / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    for name in ("torchvision", "torchaudio"):
        if not imports(python, name):
            raise UserError(f"{name} can't be imported with this torch; see: {python} -c 'import {name}'")


def imports(python: Path, name: str) -> bool:
    """Whether a Python can import a package."""
    return subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 0
