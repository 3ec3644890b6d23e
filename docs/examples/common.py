"""What the examples share: the options of the command line, and a tiny model with random weights as the default."""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file


def options(text: str | None, tiny: torch.nn.Module) -> argparse.Namespace:
    """The options of an example: checkpoint, device and steps. Args: text, what it does; tiny, its default model."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--checkpoint", type=Path, help="a safetensors file or a diffusers folder; default: a tiny one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    torch.manual_seed(0)
    if given.checkpoint is None:
        given.checkpoint = saved(tiny)
    return given


def saved(model: torch.nn.Module) -> Path:
    """A file with the weights of a model, which is deleted when the example ends."""
    folder = Path(tempfile.mkdtemp(prefix="mmdit-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = {"mmdit.config": json.dumps(asdict(model.config))}  # what the shapes do not say
    save_file(model.state_dict(), folder / "tiny.safetensors", config)
    return folder / "tiny.safetensors"


def report(latent: torch.Tensor) -> None:
    """Print the latent's shape and whether its values are finite."""
    print(f"latent {list(latent.shape)}, {latent.dtype}, finite: {bool(latent.isfinite().all())}")
