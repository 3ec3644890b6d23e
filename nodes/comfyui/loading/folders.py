"""The folders of MMDiT checkpoints."""

from __future__ import annotations

from pathlib import Path

import folder_paths

# A separate folder: in ComfyUI's own folders, CheckpointLoaderSimple would load the small model as a full-size SD3.
OWN_FOLDER = "mmdit"
FOLDERS = (OWN_FOLDER, "checkpoints", "diffusion_models")
GGUF_FOLDER = "unet_gguf"  # of the pack ComfyUI-GGUF, if it is installed
SHIPPED = Path(__file__).resolve().parents[3] / "models"


def register() -> None:
    """Add the pack's models folder and the user's `models/mmdit` to ComfyUI's folders."""
    own = Path(folder_paths.models_dir) / OWN_FOLDER
    folder_paths.folder_names_and_paths[OWN_FOLDER] = ([str(SHIPPED), str(own)], {".safetensors"})


def checkpoint_names() -> list[str]:
    """List the files of all folders, the small model first, each name once."""
    return list(dict.fromkeys(name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)))


def listed_path(name: str, folder: str = "") -> Path | None:
    """The path of a file that ComfyUI lists in `folder` or, for "" and "*", in the first of FOLDERS; else None."""
    gguf = (GGUF_FOLDER,) if GGUF_FOLDER in folder_paths.folder_names_and_paths else ()
    for each in (*FOLDERS, *gguf):
        if folder in ("", "*", each) and name in folder_paths.get_filename_list(each):
            path = folder_paths.get_full_path(each, name)
            return Path(path) if path is not None else None
    return None
