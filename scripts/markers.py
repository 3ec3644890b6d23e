"""Up-to-date markers: files with a hash of the inputs of a finished step, so that a second run skips the step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def key(*parts: object) -> str:
    """Hash of all inputs of a step."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def up_to_date(marker: Path, value: str) -> bool:
    """Whether the step was finished with these inputs."""
    return marker.is_file() and marker.read_text(encoding="utf-8").strip() == value


def write(marker: Path, value: str) -> None:
    """Record that the step is finished."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(value + "\n", encoding="utf-8")
