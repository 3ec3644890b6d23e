"""Damaged files: 200 of them here, any number by `python -m tests.reliability.files`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.files import Run, open_pack

ROOT = Path(__file__).parents[2]
CI_COUNT = 200


@pytest.fixture(scope="module")
def run():
    with Run(open_pack()) as run:
        yield run


@settings(max_examples=CI_COUNT, derandomize=True, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_by_an_error_that_says_what_is_wrong(run, number):
    assert not run.one(f"ci/{number}")


def test_the_damage_leaves_some_files_whole_and_meets_every_documented_error(run):
    for number in range(60):
        run.one(f"kinds/{number}")
    expected = {"read", "DamagedError", "NotSafetensorsError", "TensorsError", "UnknownModelError", "UnreadableError"}
    assert expected | {"PresetError"} <= set(run.outcomes)


# In a child: its memory after the imports is not counted. The peak of all files is that of the worst.
READ_HEADERS = """
import resource, sys
from mmdit_core.checkpoints.errors import CheckpointError
from mmdit_core.checkpoints.header import read_header
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
for path in sys.argv[1:]:
    try:
        read_header(path)
    except CheckpointError as error:
        assert len(str(error)) < 1500, len(str(error))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before, path)
"""
SIZE = 24_000_000
BOMBS = {
    "lists": (b'{"a":[[]', b",[]", b"]}"),
    "lists in an entry": (b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[[]', b",[]", b"]}}"),
    "objects": (b'{"a":[{}', b",{}", b"]}"),
    "numbers": (b'{"a":[1', b",12345", b"]}"),
    "depth": (b'{"a":', b"[", b""),
    "a long name": (b'{"', b"n", b'":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'),
    "metadata": (b'{"__metadata__":{"a":[[]', b",[]", b"]}}"),
    "a long text in the metadata": (b'{"__metadata__":{"a":"', b"\\u0041", b'"}}'),
}


def test_a_header_needs_at_most_a_few_times_its_size_of_memory(tmp_path):
    for kind, (begin, middle, end) in BOMBS.items():
        header = begin + middle * ((SIZE - len(begin) - len(end)) // len(middle)) + end
        (tmp_path / f"{kind}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    command = [sys.executable, "-c", READ_HEADERS, *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peaks = {path: int(peak) / SIZE for peak, _, path in (line.partition(" ") for line in done.stdout.splitlines())}
    assert len(peaks) == len(BOMBS) and max(peaks.values()) < 4, peaks
