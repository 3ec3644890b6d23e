"""The preset files in a user's folder of ComfyUI: `<user directory>/<user>/mmdit/presets/*.json`."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web

from ....mmdit_core.control.preset_files import MAX_FILE, MeasuredPreset, PresetError, read_presets, write_presets
from .messages import current_server

FOLDER = "mmdit/presets"
MAX_FILES = 100
MAX_BYTES = 4 * MAX_FILE  # a character has at most four bytes
SAVED = "saved-"  # before the name of a file that is saved here: no such name is reserved by Windows

Found = tuple[str, MeasuredPreset]  # a file's name and one preset in it


def folder_of(request: web.Request, *, create: bool = False) -> Path | None:
    """The folder of the user who sent a request; None if there is no such user."""
    server = current_server()
    try:
        path = server and server.user_manager.get_request_user_filepath(request, f"{FOLDER}/x", create_dir=create)
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


def save(folder: Path, preset: MeasuredPreset) -> str:
    """Write a preset to a new file. Returns: its name.

    Raises: FileExistsError if there is a file for this name; PresetError for values out of range.
    """
    text = write_presets([preset])
    if len(list(folder.glob("*.json"))) >= MAX_FILES:
        raise PresetError("name", f"the folder has {MAX_FILES} files", "Delete some of them")
    words = re.sub(r"[^\w-]+", "-", preset.name.lower()).strip("-")[:60]
    path = folder / f"{SAVED}{words}.json"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise FileExistsError(f"there is a file {path.name}: choose another name") from None
    return path.name


def _text(path: Path) -> str:
    """Raises: PresetError for a file that is too large or no file."""
    if not path.is_file():
        raise PresetError("file", "not a file", "Put files into this folder")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PresetError("file", f"more than {MAX_BYTES} bytes", f"A file has at most {MAX_FILE} characters")
    return content.decode("utf-8-sig")
