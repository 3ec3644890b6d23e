"""Stamp files: what was done last time, so that the second run has nothing to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def key(*parts: object) -> str:
    """Hash of everything that a step's result depends on."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def up_to_date(marker: Path, value: str) -> bool:
    return marker.is_file() and marker.read_text(encoding="utf-8").strip() == value


def write(marker: Path, value: str) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(value + "\n", encoding="utf-8")
