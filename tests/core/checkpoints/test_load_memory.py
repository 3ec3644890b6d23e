"""Memory: weights stay mapped to the file until they are used, and are never in memory twice."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mmdit_core import MMDiTConfig
from mmdit_core.checkpoints.keymaps import diffusers_shapes, expected_shapes, key_map

MEASURE = """
import json, re, sys, torch
from mmdit_core import MMDiT
from mmdit_core.checkpoints.load import load_checkpoint

def memory(field):  # bytes; of this process alone, and its peak is not inherited from the parent's as ru_maxrss is
    return 1024 * int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

path, dtype = sys.argv[1], getattr(torch, sys.argv[2])
MMDiT(load_checkpoint(sys.argv[3])[0], device="meta")  # a tiny one first: what the libraries take for themselves
before, own_before = memory("VmHWM"), memory("RssAnon")
config, state = load_checkpoint(path, dtype=dtype)
model = MMDiT(config, device="meta", dtype=dtype)
model.load_state_dict(state, assign=True)
del state
loaded = memory("VmHWM") - before
seen = sum(int(tensor.flatten().view(torch.int16)[::1024].count_nonzero()) for tensor in model.state_dict().values())
print(json.dumps({"loaded": loaded, "used": memory("VmHWM") - before, "own": memory("RssAnon") - own_before}))
assert seen > 0
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[MMDiTConfig, dict[str, Path]]:
    """Random files of more than 400 MB, one in each layout."""
    config = MMDiTConfig(hidden_size=1280, num_heads=20, depth=4, qk_norm="rms", pos_embed_max_size=32)
    tiny = MMDiTConfig(hidden_size=64, num_heads=1, depth=1, context_dim=8, pooled_dim=8, pos_embed_max_size=4)
    folder = tmp_path_factory.mktemp("large")
    paths = {name: folder / f"{name}.safetensors" for name in ("single file", "diffusers", "tiny")}
    write_noise(paths["single file"], expected_shapes(config))
    write_noise(paths["diffusers"], diffusers_shapes(config))
    write_noise(paths["tiny"], expected_shapes(tiny))
    return config, paths


def write_noise(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    noise = os.urandom(1 << 24)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, position, len(noise)):
            stream.write(noise[: position - start])


def measure(path: Path, tiny: Path, dtype: str) -> dict[str, float]:
    """Peak memory after loading and after use, and the private part of it, in units of the file's size."""
    command = [sys.executable, "-c", MEASURE, str(path), dtype, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: value / path.stat().st_size for name, value in json.loads(done.stdout).items()}


def test_loading_takes_no_more_memory_than_the_file_has_bytes(large):
    config, paths = large
    assert paths["single file"].stat().st_size > 400e6
    whole = measure(paths["single file"], paths["tiny"], "bfloat16")
    assert whole["loaded"] < 0.5  # tensors are not read before they are used, only a page (up to 2 MB) of each
    assert whole["used"] < 1.03
    assert whole["own"] < 0.03  # the weights are the file's own pages, which the system can drop and read again

    rules, shapes = key_map(config), expected_shapes(config)
    sizes = {name: math.prod(shape) / sum(map(math.prod, shapes.values())) for name, shape in shapes.items()}
    largest = max(sizes.values())  # of the whole; what is being converted stands in memory beside its result
    joined = measure(paths["diffusers"], paths["tiny"], "bfloat16")
    share = sum(sizes[name] for name, rule in rules.items() if len(rule.diffusers) > 1 or rule.swap)
    assert joined["own"] < share + largest + 0.03
    # Large pages (up to 2 MB) that hold the end of a copied tensor and the beginning of a mapped one count in full.
    assert joined["used"] < 1.1

    converted = measure(paths["single file"], paths["tiny"], "float16")
    assert converted["used"] < 1.03 + 3 * largest
