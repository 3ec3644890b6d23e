"""Training checkpoints: one safetensors file, written atomically; a resumed run is bit-equal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically: after a crash the old file or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, draft, metadata)
    with open(draft, "rb") as handle:
        os.fsync(handle.fileno())
    draft.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(draft, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})


def save_run(path: Path, model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer, **record) -> None:
    """Save weights, their moving average, the optimizer's state and a JSON record (step, losses, settings).

    Random generators need no state: each step is seeded with the run's seed and the step's number.
    """
    names = [name for name, _ in model.named_parameters()]
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[index]}.{key}": torch.as_tensor(value) for key, value in values.items()}
    write_tensors(path, tensors, {"record": json.dumps(record)})


def load_run(path: Path, model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict:
    """Inverse of `save_run`, in place. Returns: the record."""
    tensors, metadata = read_tensors(path)
    model.load_state_dict(_under("model.", tensors))
    for name, tensor in _under("ema.", tensors).items():
        ema[name].copy_(tensor)
    names = [name for name, _ in model.named_parameters()]
    held = _under("optimizer.", tensors)
    state = optimizer.state_dict()
    state["state"] = {
        index: {key: held[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for index, name in enumerate(names)
        if f"{name}.step" in held
    }
    optimizer.load_state_dict(state)
    return json.loads(metadata["record"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
