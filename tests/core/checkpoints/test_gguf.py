"""The header of GGUF files: tensor names in order, and a typed error for everything else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.checkpoints.blocks import find_blocks
from mmdit_core.checkpoints.errors import CheckpointError, DamagedError, NotSafetensorsError, UnreadableError
from mmdit_core.checkpoints.gguf import tensor_names

DOUBLE = [f"double_blocks.{index}.img_attn.qkv.weight" for index in range(19)]
FLUX = [*DOUBLE, *(f"single_blocks.{index}.linear1.weight" for index in range(38))]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(names: list[str], *, version: int = 3) -> bytes:
    """A file as ComfyUI-GGUF's tools write it: settings of each kind, then the tensors, without their data."""
    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("flux"),
        text("general.quantization_version") + struct.pack("<II", 4, 2),
        text("a.float") + struct.pack("<Id", 12, 0.5),
        text("numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, 2, 3),
        text("words") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("zwei"),
    ]
    tensors = [text(name) + struct.pack("<I2QIQ", 2, 8, 8, 12, 0) for name in names]
    return b"GGUF" + struct.pack("<IQQ", version, len(names), len(values)) + b"".join(values + tensors)


def test_the_names_are_read_and_the_blocks_counted(tmp_path):
    path = tmp_path / "flux1-dev-Q4_K_S.gguf"
    path.write_bytes(gguf(FLUX) + bytes(64))
    assert tensor_names(path) == FLUX
    assert find_blocks(tensor_names(path)).sections == (("double", 19), ("single", 38))


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"GGML" + bytes(40), NotSafetensorsError, "no GGUF file"),
        (gguf(FLUX, version=1), NotSafetensorsError, "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), DamagedError, "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**40), DamagedError, "bytes of a text"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 77), DamagedError, "unknown type 77"),
        (b"", DamagedError, "ends early"),
    ],
)
def test_what_is_no_whole_header_is_refused(tmp_path, content, error, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        tensor_names(path)
    with pytest.raises(UnreadableError):
        tensor_names(tmp_path / "nowhere.gguf")


def test_a_header_without_end_is_refused_before_all_of_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mmdit_core.checkpoints.gguf.MOST_BYTES", 1000)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(FLUX))
    with pytest.raises(DamagedError, match="more than 1000 bytes"):
        tensor_names(path)


@settings(max_examples=60, derandomize=True)
@given(st.data())
def test_a_damaged_header_gives_a_typed_error_or_names(tmp_path_factory, data):
    content = bytearray(gguf(FLUX[:3]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert all(isinstance(name, str) for name in tensor_names(path))
    except CheckpointError as error:
        assert str(path) in str(error)
