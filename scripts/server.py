"""Starts a ComfyUI server with folders of its own and this pack in it, and stops it again."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.client import Client
from scripts.console import UserError
from scripts.environment import ROOT, site_packages
from scripts.installations import COMFYUI_HOME, Installation, find

START_LIMIT = 300  # seconds; a first start on a slow disk compiles every module
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")

# (a phrase in the server's log, its meaning for the user)
LOG_HINTS = (
    ("No module named", "ComfyUI's Python lacks a package; install its requirements.txt, or set COMFYUI_PYTHON."),
    ("Address already in use", "Another program took the port; try again."),
    ("CUDA out of memory", "The graphics card has no memory left for the server."),
)
# A traceback up to the line that names the module; none of ComfyUI's other messages is between them.
IMPORT_FAILURE = re.compile(
    r"Traceback \(most recent(?:(?!\[INFO\]|Cannot import ).)*"
    r"Cannot import (?P<path>.*?) module for custom nodes: .*?$",
    re.MULTILINE | re.DOTALL,
)


class Server:
    """A running ComfyUI: `with Server(installation, base) as server: server.client.run(prompt)`.

    Args: base, the folder that holds its models, input, output, user and custom_nodes folders; packs, the folders to
        load as custom nodes (default: this pack); arguments, further command line arguments for ComfyUI.
    """

    def __init__(
        self,
        installation: Installation,
        base: Path,
        *,
        packs: tuple[Path, ...] = (ROOT,),
        arguments: tuple[str, ...] = (),
    ):
        self.installation, self.base = installation, base.absolute()
        self.packs, self.arguments = packs, arguments
        self.log = self.base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        return self if self.process else self.start()

    def start(self) -> Server:
        """Start the server, unless `with` did, and wait until it answers."""
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for pack in self.packs:
            link_folder(pack, self.base / "custom_nodes" / pack.name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.installation.folder,
                env=environment(),
            )
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        """The command line, with the flags of this version of ComfyUI."""
        database = (self.base / "user" / "comfyui.db").as_posix()
        optional = {  # left out if this version of ComfyUI does not have them
            "--disable-api-nodes": (),
            "--disable-auto-launch": (),
            "--database-url": (f"sqlite:///{database}",),
        }
        if not self.installation.owned and (self.installation.folder / "models").is_dir():
            optional["--models-directory"] = (str(self.installation.folder / "models"),)
        if not has_accelerator(self.installation):
            optional |= {"--cpu": (), "--use-pytorch-cross-attention": ()}
        words = [str(self.installation.python), "main.py", "--port", str(self.port), "--base-directory", str(self.base)]
        for flag, values in optional.items():
            words += [flag, *values] if self.installation.knows(flag) else []
        return [*words, *self.arguments]

    def wait(self) -> None:
        """Wait until the server answers.

        Raises: UserError with the end of the server's log if it ends or does not answer in time.
        """
        assert self.process is not None
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise UserError(f"ComfyUI ended while starting (exit status {self.process.returncode}).\n{self.tail()}")
            if self.client.alive():
                return
            time.sleep(0.1)
        raise UserError(f"ComfyUI did not answer within {START_LIMIT} s.\n{self.tail()}")

    def tail(self, lines: int = 25) -> str:
        """The end of the server's log, after its meaning if that is known."""
        text = self.read_log()
        meaning = next((f"{hint}\n" for phrase, hint in LOG_HINTS if phrase in text), "")
        last = "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
        return f"{meaning}Its last lines were:\n{last}\nThe whole log is in {self.log}."

    def pack_failure(self) -> str | None:
        """Why a pack of this server could not be imported, from its log; None if all were."""
        ours = {("custom_nodes", pack.name) for pack in self.packs}
        return next((log for path, log in self.import_failures().items() if path.parts[-2:] in ours), None)

    def import_failures(self) -> dict[Path, str]:
        """Every module that ComfyUI could not import as custom nodes, its own included -> the lines of the log."""
        return {Path(found["path"]): found[0] for found in IMPORT_FAILURE.finditer(self.read_log())}

    def read_log(self) -> str:
        """The server's log so far, without colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def join(self) -> None:
        """Wait until the server ends.

        Raises: UserError if it ends by itself.
        """
        assert self.process is not None
        code = self.process.wait()
        raise UserError(f"ComfyUI has ended (exit status {code}).\n{self.tail()}")

    def stop(self) -> None:
        """Stop the server; kill it if it does not end within 10 seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def temporary_server(name: str) -> Iterator[Server]:
    """A server for one job, in folders that are deleted with it."""
    COMFYUI_HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMFYUI_HOME, prefix=f"{name}-", ignore_cleanup_errors=True) as base:
        with Server(find(), Path(base)) as server:
            yield server


def environment() -> dict[str, str]:
    """The server's environment variables: unbuffered, and none that adds packages from elsewhere to its Python."""
    unwanted = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def free_port() -> int:
    """A TCP port that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_folder(pack: Path, link: Path) -> None:
    """Make a folder appear under custom_nodes: a symbolic link, or a junction where Windows forbids links.

    Raises: UserError if the system allows neither.
    """
    if link.exists() and link.resolve() == pack.resolve():
        return
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError as error:
        if sys.platform != "win32":
            raise UserError(f"Can't link {pack} to {link}: {error}") from error
        made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(pack)], capture_output=True, text=True)
        if made.returncode:
            raise UserError(f"Can't link {pack} to {link}: {made.stderr.strip()}") from error


def has_accelerator(installation: Installation) -> bool:
    """Whether ComfyUI's torch has a device besides the CPU."""
    if sys.platform != "darwin" and installation.owned and is_cpu_build(installation.python):
        return False
    code = (
        "import json, torch; xpu = getattr(torch, 'xpu', None);"
        "print(json.dumps([torch.cuda.is_available(), torch.backends.mps.is_available(),"
        " bool(xpu and xpu.is_available())]))"
    )
    answer = subprocess.run([installation.python, "-c", code], capture_output=True, text=True, env=environment())
    if answer.returncode:
        last = "\n".join(answer.stderr.splitlines()[-5:])
        raise UserError(f"torch can't be imported by {installation.python}:\n{last}")
    return any(json.loads(answer.stdout.splitlines()[-1]))


def is_cpu_build(python: Path) -> bool:
    """Whether the installed torch is a CPU build; read from its files, because the import is slow."""
    text = (site_packages(python) / "torch" / "version.py").read_text(encoding="utf-8")
    return all(re.search(rf"^{kind}\b.*= None$", text, re.MULTILINE) for kind in ("cuda", "hip", "xpu"))
