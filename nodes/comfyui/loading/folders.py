"""Where MMDiT checkpoints are looked for."""

from __future__ import annotations

from pathlib import Path

import folder_paths

# A folder name of its own: the host's CheckpointLoaderSimple would take the small model for a full-size SD3.
OWN_FOLDER = "mmdit"
FOLDERS = (OWN_FOLDER, "checkpoints", "diffusion_models")
SHIPPED = Path(__file__).resolve().parents[3] / "models"


def register() -> None:
    """Make the shipped model and the user's `models/mmdit` folder known to the host."""
    own = Path(folder_paths.models_dir) / OWN_FOLDER
    folder_paths.folder_names_and_paths[OWN_FOLDER] = ([str(SHIPPED), str(own)], {".safetensors"})


def checkpoint_names() -> list[str]:
    """File names of every folder, the shipped model first, each name once."""
    return list(dict.fromkeys(name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)))


def checkpoint_path(name: str) -> str | None:
    """The file of that name in the first folder that has it."""
    for folder in FOLDERS:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return path
    return None


def listed_path(name: str, folder: str = "") -> Path | None:
    """The file of that name that the host lists in one of FOLDERS, or in any of them; no other file can be named."""
    for place in (folder,) if folder else FOLDERS:
        if place in FOLDERS and name in folder_paths.get_filename_list(place):
            path = folder_paths.get_full_path(place, name)
            return Path(path) if path is not None else None
    return None
