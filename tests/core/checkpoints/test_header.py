"""Headers: what is read without a tensor, and the errors for files of other formats."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mmdit_core.checkpoints.errors import CheckpointError
from mmdit_core.checkpoints.header import read_header

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "b": torch.tensor(3.5),
    "c": torch.zeros(0, 4, dtype=torch.int64),
    "d": torch.ones(5, dtype=torch.float8_e4m3fn),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "good.safetensors", metadata={"format": "pt", "who": "me"})
    return tmp_path / "good.safetensors"


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def f32(start: int, end: int, shape: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path.name) in str(caught.value)
    assert len(str(caught.value)) < 1500 and str(caught.value).encode()  # which fails for half a surrogate pair
    return str(caught.value)


def test_the_header_is_that_of_the_safetensors_library(good):
    header = read_header(good)
    assert header.source == good and {info.file for info in header.tensors.values()} == {good}
    assert header.metadata == {"format": "pt", "who": "me"}
    content = good.read_bytes()
    with safe_open(good, "pt") as file:
        assert set(header.tensors) == set(file.keys())
    for name, tensor in TENSORS.items():
        info = header.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert content[info.start : info.end] == bytes(tensor.reshape(-1).view(torch.uint8).tolist())
    assert {name: info.dtype for name, info in header.tensors.items()} == {
        "a.weight": "BF16",
        "b": "F32",
        "c": "I64",
        "d": "F8_E4M3",
    }


def test_only_the_header_is_read(good):
    """A sparse file with a terabyte of tensors."""
    size = 2**40
    with good.open("wb") as stream:
        stream.write(raw({"huge": f32(0, size, [size // 4])}))
        stream.truncate(stream.tell() + size)
    assert read_header(good).tensors["huge"].shape == (size // 4,)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": f32(0, 4, [1])}).encode().ljust(0x0280)
    path.write_bytes(raw(text, bytes(4)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert set(read_header(path).tensors) == {"a"}


def torch_pickle(legacy: bool) -> bytes:
    out = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return out.getvalue()


NOT_SAFETENSORS = {
    "empty": (b"", "model.safetensors", "is empty.*Download it again"),
    "a few bytes": (b"\x05\x00\x00", "model.safetensors", "not a safetensors file.*05 00 00"),
    "torch.save": (torch_pickle(legacy=False), "model.safetensors", "pickle in a zip archive.*Only safetensors"),
    "torch.save, legacy": (torch_pickle(legacy=True), "model.safetensors", "this is a pickle.*can run any program"),
    "pickle protocol 0 named .pt": (pickle.dumps({"a": 1}, 0), "model.pt", r"\.pt file is a pickle.*Only safetensors"),
    "pickle protocol 5": (pickle.dumps({"a": list(range(99))}, 5), "model.bin", "this is a pickle"),
    "zip": (zipped(), "model.ckpt", "pickle in a zip archive"),
    "unknown bytes named .ckpt": (b"\xff" * 99, "model.ckpt", r"\.ckpt file is a pickle.*Only safetensors"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(100), "model.safetensors", "this is a GGUF file"),
    "lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n",
        "model.safetensors",
        "git-lfs pointer.*git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html><html><body>log in</body></html>", "model.safetensors", r"web page \(HTML\).*login"),
    "html with a byte order mark": (b"\xef\xbb\xbf<HTML lang=en>" + b" " * 50, "model.safetensors", "web page"),
    "text": (b"Access to model x is restricted.", "model.safetensors", "text file that begins 'Access to model"),
    "zeros": (bytes(4096), "model.safetensors", "begins with zeros.*never finished"),
    "noise": (bytes(range(128, 256)), "model.safetensors", "not a safetensors file.*80 81 82"),
}


@pytest.mark.parametrize("case", NOT_SAFETENSORS)
def test_a_file_of_another_format_is_an_error_with_its_format(case, tmp_path):
    content, name, words = NOT_SAFETENSORS[case]
    (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path / name)
    assert re.search(words, message), message


DAMAGED = {
    "longer than the limit": raw({"a": f32(0, 4, [1])}, bytes(4), length=200_000_000),
    "not JSON": raw(b"{not json}"),
    "not UTF-8": raw(b'{"\xff\xfe": 1}'),
    "nested beyond reason": raw(b'{"a":' * 100_000),
    "twice the same name": raw(b'{"a":%b,"a":%b}' % ((json.dumps(f32(0, 4, [1])).encode(),) * 2), bytes(4)),
    "half a surrogate pair": raw(b'{"\\ud800":%b}' % json.dumps(f32(0, 4, [1])).encode(), bytes(4)),
    "half a surrogate pair in the metadata": raw(b'{"__metadata__":{"a":"\\ud800"}}'),
    "an entry that holds an object": raw({"a": {"dtype": "F32", "shape": [{}], "data_offsets": [0, 4]}}, bytes(4)),
    "half a surrogate pair in a field": raw(b'{"a":{"\\ud800":1,"shape":[],"data_offsets":[0,4]}}', bytes(4)),
    "an entry without end": raw({"a": {**f32(0, 4, [1]), "x": "x" * 20_000}}, bytes(4)),
    "something after the header": raw(json.dumps({"a": f32(0, 4, [1])}).encode() + b"[]", bytes(4)),
    "an entry that is a list": raw({"a": [1]}),
    "an entry without offsets": raw({"a": {"dtype": "F32", "shape": [1]}}),
    "unknown dtype": raw({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "dtype that is a list": raw({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "negative size": raw({"a": f32(0, 4, [-1])}, bytes(4)),
    "size that is true": raw({"a": f32(0, 4, [True])}, bytes(4)),
    "size that is a fraction": raw({"a": f32(0, 4, [1.0])}, bytes(4)),
    "shape that is text": raw({"a": f32(0, 4, "1")}, bytes(4)),
    "shape without end": raw({"a": f32(0, 4, [1] * 1000)}, bytes(4)),
    "three offsets": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)),
    "bytes that do not fit the shape": raw({"a": f32(0, 8, [1])}, bytes(8)),
    "a gap": raw({"a": f32(0, 4, [1]), "b": f32(8, 12, [1])}, bytes(12)),
    "an overlap": raw({"a": f32(0, 8, [2]), "b": f32(4, 12, [2])}, bytes(12)),
    "metadata that is a number": raw({"__metadata__": {"a": 1}, "a": f32(0, 4, [1])}, bytes(4)),
    "a number of 5000 digits": raw(
        b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,4]}}' % (b"9" * 5000), bytes(4)
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header_is_an_error_with_the_damage(case, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[case])
    message = error_of(path)
    assert "header is damaged" in message or "its header claims to be 200000000 bytes" in message
    assert "Download it again" in message


def test_a_truncated_file_is_an_error_with_its_size(good):
    content = good.read_bytes()
    good.write_bytes(content[:-3])
    message = error_of(good)
    assert f"truncated: {len(content) - 3} of {len(content)} bytes" in message and "Download it again" in message
    good.write_bytes(content[:40])
    assert "truncated: 40 bytes, and its header alone" in error_of(good)


def test_bytes_after_the_last_tensor_are_an_error(good):
    good.write_bytes(good.read_bytes() + b"12345")
    assert "5 bytes follow the last tensor" in error_of(good)


def test_a_missing_file_and_a_folder_without_models_are_errors(tmp_path):
    assert "there is no such file" in error_of(tmp_path / "nothing.safetensors")
    (tmp_path / "folder").mkdir()
    assert "holds no safetensors file" in error_of(tmp_path / "folder")
    (tmp_path / "folder" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert "pickled weights" in error_of(tmp_path / "folder")


def test_a_folder_with_two_models_is_an_error_with_their_names(tmp_path):
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    assert "one.safetensors, two.safetensors" in error_of(tmp_path)


def shard(folder: Path) -> Path:
    """TENSORS in two shards with their index; the index."""
    for number, names in enumerate((("a.weight", "b"), ("c", "d")), 1):
        save_file({name: TENSORS[name] for name in names}, folder / f"m-0000{number}-of-00002.safetensors")
    index = folder / "m.safetensors.index.json"
    weight_map = {name: f"m-0000{1 if name in ('a.weight', 'b') else 2}-of-00002.safetensors" for name in TENSORS}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_found_from_the_index_the_folder_and_any_shard(tmp_path):
    index = shard(tmp_path)
    for path in (index, tmp_path, *tmp_path.glob("*.safetensors")):
        header = read_header(path)
        assert set(header.tensors) == set(TENSORS)
        assert len({info.file for info in header.tensors.values()}) == 2


def change(index: Path, weight_map: object) -> None:
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_shard_or_index_is_an_error_with_its_name(tmp_path):
    index = shard(tmp_path)
    good_map = json.loads(index.read_text())["weight_map"]
    change(index, {**good_map, "more": "m-00001-of-00002.safetensors"})
    assert "1 tensor is missing that m.safetensors.index.json names: more" in error_of(index)
    change(index, {**good_map, "more": "m-00003-of-00003.safetensors"})
    assert "the shard m-00003-of-00003.safetensors is missing" in error_of(index)
    save_file(TENSORS, tmp_path / "again.safetensors")
    change(index, {**good_map, "more": "again.safetensors"})
    with pytest.raises(CheckpointError, match="another shard holds these tensors too"):
        read_header(index)
    index.unlink()
    message = error_of(tmp_path / "m-00002-of-00002.safetensors")
    assert "one of 2 shards" in message and "m.safetensors.index.json is not in its folder" in message


@pytest.mark.parametrize("name", ["../good.safetensors", "/etc/passwd", "sub\\x.safetensors", "..", ""])
def test_an_index_cannot_name_a_file_outside_its_folder(name, tmp_path):
    index = shard(tmp_path)
    change(index, {"a": name})
    assert "not an index" in error_of(index)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000,
        '{"weight_map": {"\\ud800": "m-00001-of-00002.safetensors"}}', '{"weight_map": {"a": "\\ud800.safetensors"}}',
        " " * 10_000_001,
    ],
)  # fmt: skip
def test_a_damaged_index_is_an_error(text, tmp_path):
    index = shard(tmp_path)
    index.write_text(text)
    assert "not an index" in error_of(index)


def test_an_index_of_pickled_shards_is_an_error_about_pickles(tmp_path):
    (tmp_path / "m-00001-of-00001.bin").write_bytes(torch_pickle(legacy=False))
    index = tmp_path / "m.bin.index.json"
    change(index, {"a": "m-00001-of-00001.bin"})
    with pytest.raises(CheckpointError, match="pickle in a zip archive"):
        read_header(index)


def test_a_pipeline_folder_is_read_as_its_transformer(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        save_file({part: TENSORS["b"]}, tmp_path / part / "diffusion_pytorch_model.safetensors")
    assert set(read_header(tmp_path).tensors) == {"transformer"}


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=3))
@example(cut=400, flips=[(7, 0x80)])
def test_any_damage_is_a_checkpoint_error(tmp_path_factory, cut, flips):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    for position, bits in flips:
        content[position % len(content)] ^= bits
    path.write_bytes(content[:cut])
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert cut >= len(content) and len(header.tensors) in (len(TENSORS), len(TENSORS) + 1)
