"""What a run has computed so far, in files, so that a stopped run continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


class Store:
    """A folder of one model's results, each under a key that names all it depends on."""

    def __init__(self, folder: Path, model: Path):
        """Args: model, the file, whose content names the folder."""
        with model.open("rb") as file:
            self.model = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        self.folder = folder / self.model
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: object) -> Path:
        """The file of a key that JSON can hold."""
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.safetensors"

    def has(self, key: object) -> bool:
        """True if the results of a key are stored."""
        return self.path(key).exists()

    def get(self, key: object, make: Callable[[], Tensors]) -> Tensors:
        """The results of a key, made and stored if they are not there yet."""
        path = self.path(key)
        if not path.exists():
            part = path.with_suffix(".part")
            save_file({name: tensor.contiguous() for name, tensor in make().items()}, part)
            part.rename(path)
        return load_file(path)
