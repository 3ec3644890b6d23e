"""Finds a Chromium-like browser for pages of ComfyUI; installs one on Debian and Ubuntu if it runs as root.

SETTINGS, of ComfyUI, keep panels and questions away; READY, a condition in JavaScript, is true once a page can be used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.console import UserError, run, say
from scripts.environment import ROOT

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
READY = "window.app?.extensionManager && app.isGraphReady && !document.querySelector('#splash-loader')"

LOG = ROOT / ".test-output" / "apt.log"

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
MAC_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
WINDOWS_ROOTS = ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
WINDOWS_PLACES = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")


def find() -> Path | None:
    """The first installed Chromium, Chrome or Edge; None if there is none."""
    named = (shutil.which(name) for name in NAMES)
    windows = (
        Path(os.environ[root], place) for root in WINDOWS_ROOTS if root in os.environ for place in WINDOWS_PLACES
    )
    places = [*(Path(path) for path in named if path), *(Path(path) for path in MAC_PLACES), *windows]
    return next((path for path in places if path.is_file() and starts(path)), None)


def starts(browser: Path) -> bool:
    """Whether it is a browser and not Ubuntu's stub, which only points to a snap."""
    if sys.platform != "linux":  # no stubs there, and Windows would open a window
        return True
    return subprocess.run([browser, "--version"], capture_output=True).returncode == 0


def ensure() -> Path | None:
    """As `find`, after an attempt to install Debian's package; never downloads a browser build."""
    browser = find()
    root = sys.platform == "linux" and os.geteuid() == 0
    if browser or not (root and shutil.which("apt-get")):
        return browser
    apt = ("apt-get", "-y", "-q", "-o", "Dpkg::Options::=--force-confold", "-o", "DPkg::Lock::Timeout=120")
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    try:
        run((*apt, "update"), title="Refreshing Debian's package lists", log=LOG)
        packages = ("chromium", "fonts-liberation")  # without a font the page has no text
        run((*apt, "install", "--no-install-recommends", *packages), title="Installing Debian's Chromium", log=LOG)
    except UserError as error:
        say(str(error))
    return find()
