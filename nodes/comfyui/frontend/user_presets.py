"""The pack's files in a user's folder of ComfyUI: `<user directory>/<user>/mmdit/presets/*.json`, and reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import folder_paths
from aiohttp import web
from comfy.cli_args import args

from ....mmdit_core.control.preset_files import MAX_FILE, MeasuredPreset, PresetError, read_presets
from .messages import current_server

FOLDER = "mmdit/presets"
MAX_FILES = 100
MOST_READ = 64_000_000  # bytes of a report
MAX_BYTES = 4 * MAX_FILE  # a character has at most four bytes

Found = tuple[str, MeasuredPreset]  # a file's name and one preset in it


def folder_of(request: web.Request) -> Path | None:
    """The folder of the user who sent a request; None if there is no such user."""
    server = current_server()
    try:
        path = server and server.user_manager.get_request_user_filepath(request, f"{FOLDER}/x", create_dir=False)
    except KeyError:
        return None
    return None if path is None else Path(path).parent


def read_all(folder: Path) -> tuple[tuple[Found, ...], dict[str, str]]:
    """The presets of all files in a folder, and file -> reason for those that cannot be read."""
    found: list[Found] = []
    unreadable: dict[str, str] = {}
    for number, path in enumerate(sorted(folder.glob("*.json"))):
        if number == MAX_FILES:
            unreadable["..."] = f"only the first {MAX_FILES} files are read"
            break
        try:
            found += [(path.name, preset) for preset in read_presets(_text(path))]
        except PresetError as error:
            unreadable[path.name] = str(error)
        except (OSError, UnicodeDecodeError) as error:
            unreadable[path.name] = f"the file cannot be read: {error!s:.100}"
    return tuple(found), unreadable


def folder_of_runs() -> Path | None:
    """The folder `mmdit` of the user whose runs these are; None with --multi-user: a run has no user then."""
    if args.multi_user:
        return None
    return Path(folder_paths.get_user_directory()) / "default" / "mmdit"


def made_by(path: Path) -> str | None:
    """The program that a file names as its maker; "" if it names none or cannot be read, None if there is no file."""
    if not os.path.lexists(path):
        return None
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MOST_READ))
        found = content.get("made_by") if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def _text(path: Path) -> str:
    """Raises: PresetError for a file that is too large or no file."""
    if not path.is_file():
        raise PresetError("file", "not a file", "Put files into this folder")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PresetError("file", f"more than {MAX_BYTES} bytes", f"A file has at most {MAX_FILE} characters")
    return content.decode("utf-8-sig")
