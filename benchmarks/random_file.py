"""A checkpoint of random weights in a temporary folder, as large as a real one, for benchmarks that need a file."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmdit_core import KNOWN_MODELS, MMDiTConfig
from mmdit_core.checkpoints.keymaps import expected_shapes
from mmdit_core.config import ModelConfig

PREFIX = "model.diffusion_model."
SPARE = 1 << 30  # bytes of disk that stay free


def medium(blocks: int) -> MMDiTConfig:
    """SD3.5 Medium with 24 blocks; with fewer a narrower model too, because ComfyUI's SD3 has width 64 * depth."""
    whole = KNOWN_MODELS["SD3.5 Medium"]
    dual = tuple(index for index in whole.dual_attention if index <= blocks // 2)
    return dataclasses.replace(whole, hidden_size=64 * blocks, num_heads=blocks, depth=blocks, dual_attention=dual)


def bytes_of(config: ModelConfig) -> int:
    """Bytes of the weights in bf16."""
    return 2 * sum(map(math.prod, expected_shapes(config).values()))


@contextmanager
def random_file(config: ModelConfig) -> Iterator[Path]:
    """A single file in bf16, deleted with its folder at the end, also after an error or SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        with tempfile.TemporaryDirectory(prefix="mmdit-benchmark-") as folder:
            need_room(folder, bytes_of(config))
            path = Path(folder) / "random.safetensors"
            write(path, config)
            yield path
    finally:
        signal.signal(signal.SIGTERM, before)


def need_room(folder: str, size: int) -> None:
    """Raises: SystemExit if a file of so many bytes would fill the disk."""
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise SystemExit(
            f"The file of random weights takes {size / 1e9:.1f} GB and 1 GB should stay free, but {folder} has "
            f"{free / 1e9:.1f} GB. Make room, or set TMPDIR to a folder on a larger disk."
        )


def write(path: Path, config: ModelConfig) -> None:
    """Write a file of random weights."""
    header, position = {}, 0
    for name, shape in expected_shapes(config).items():
        end = position + 2 * math.prod(shape)
        header[PREFIX + name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)  # tensors are then aligned as in memory
    torch.manual_seed(0)
    noise = (torch.randn(1 << 24) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, position, len(noise)):
            stream.write(noise[: position - start])
