"""The model families that files are loaded as: one row each, with its class, its config and its key map.

A new family is its model in `models/`, its config in `config.py`, and a module here whose row is in FAMILIES.
"""

from __future__ import annotations

from ...config import ModelConfig
from .family import DIFFUSERS, SINGLE_FILE, BlockList, Family, Layout, Rule
from .flux import FLUX
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3

FAMILIES: tuple[Family, ...] = (SD3, FLUX, QWEN_IMAGE)  # a file is of the first one whose names it has

# fmt: off
__all__ = [
    "DIFFUSERS", "FAMILIES", "FLUX", "QWEN_IMAGE", "SD3", "SINGLE_FILE", "BlockList", "Family", "Layout", "Rule",
    "family_of",
]
# fmt: on


def family_of(config: ModelConfig) -> Family:
    """The family of a config."""
    return next(family for family in FAMILIES if family.config is type(config))
