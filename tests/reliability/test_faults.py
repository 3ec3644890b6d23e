"""What a kill, a full disk, a folder without permission and a file that disappears leave behind."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmdit_core.files import write_whole
from scripts.client import ComfyUIError
from scripts.environment import ROOT
from scripts.server import Server
from scripts.workflow import Prompt, nodes_of, to_prompt
from tests.conftest import find_installation

SIZE = 300_000
# Writes one of two texts again and again, until it is killed.
WRITES = f"""
import sys, pathlib
sys.path.insert(0, "mmdit_core")  # the module alone: the package imports torch
from files import write_whole
path = pathlib.Path(sys.argv[1])
print("started", flush=True)
while True:
    for letter in "ab":
        write_whole(path, letter * {SIZE})
"""
FULL = f"""
import resource, sys, pathlib
sys.path.insert(0, "mmdit_core")
from files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE} // 2, {SIZE} // 2))
try:
    write_whole(pathlib.Path(sys.argv[1]), "b" * {SIZE})
except OSError as error:
    print(error.errno)
"""


def started(program: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_kill_while_a_file_is_written_leaves_the_old_one_or_the_new_one(tmp_path):
    chance = random.Random(0)
    path = tmp_path / "reports" / "mine.json"
    write_whole(path, "a" * SIZE)
    for _ in range(10):
        writer = started(WRITES, str(path))
        assert writer.stdout and writer.stdout.readline() == "started\n"
        time.sleep(chance.uniform(0, 0.05))
        writer.kill()
        writer.communicate()
        text = path.read_text()
        assert text in ("a" * SIZE, "b" * SIZE)
    write_whole(path, "c")
    assert path.read_text() == "c"


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    """The system's limit for the size of a file fails in the middle of a write, as a full disk does."""
    path = tmp_path / "mine.json"
    path.write_text("old")
    assert started(FULL, str(path)).communicate(timeout=60)[0].strip() == str(errno.EFBIG)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"] and path.read_text() == "old"


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError):
        write_whole(Path("/sys/mmdit/mine.json"), "new")  # for root, too
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(OSError):
        write_whole(tmp_path / "reports" / "mine.json", "new")
    assert [each.name for each in tmp_path.iterdir()] == ["reports"]


def shipped(server: Server, name: str, **inputs: object) -> Prompt:
    """A shipped workflow with few steps, with other inputs of its analysis or sweep."""
    path = ROOT / "workflows" / f"{name}.json"
    prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), server.client.object_info())
    (node,) = nodes_of(prompt, "BlockAnalysis") + nodes_of(prompt, "SweepXY")
    prompt[node]["inputs"] |= {"steps": 2, **inputs}
    return prompt


def kill_in(server: Server, prompt: Prompt) -> None:
    """Queue a prompt, end the server the hard way at its first step, and start it again."""
    with server.client.events() as events:
        server.client.queue(prompt, client_id=events.client_id)
        while events.next(timeout=60).kind != "progress":
            pass
        assert server.process
        server.process.kill()
        server.process.wait()
    server.start()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with Server(find_installation(), tmp_path_factory.mktemp("faults")) as running:
        yield running


def test_after_a_kill_in_a_sweep_and_in_an_analysis_the_reports_are_whole_and_the_jobs_run(server):
    reports = server.base / "user" / "default" / "mmdit" / "reports"
    server.client.run(shipped(server, "analysis", operations="skip", save_as="mine"))
    before = (reports / "mine.json").read_bytes()
    kill_in(server, shipped(server, "sweep-xy", seed=7))
    kill_in(server, shipped(server, "analysis", operations="skip", save_as="mine", seed=8))
    assert (reports / "mine.json").read_bytes() == before and json.loads(before)["made_by"] == "BlockAnalysis"
    assert [path.name for path in reports.parent.rglob(".*")] == []
    assert server.client.images(server.client.run(shipped(server, "sweep-xy", seed=7)))
    server.client.run(shipped(server, "analysis", operations="skip", save_as="mine", seed=8))
    assert json.loads((reports / "mine.json").read_bytes())["settings"]["seeds"] == [8]


def test_a_model_file_that_disappears_or_shrinks_before_its_job_is_named(server):
    file = server.base / "models" / "checkpoints" / "gone.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    for change, said in ((file.unlink, "was not found"), (lambda: os.truncate(file, 5000), "truncated")):
        shutil.copy(ROOT / "models" / "mmdit-small.safetensors", file)
        with server.client.events() as events:
            first = server.client.queue(shipped(server, "sweep-xy", seed=os.getpid()), client_id=events.client_id)
            prompt = shipped(server, "analysis")
            prompt[nodes_of(prompt, "MMDiTLoader")[0]]["inputs"]["checkpoint"] = file.name
            second = server.client.queue(prompt, client_id=events.client_id)
            change()
            server.client.post("/interrupt", {"prompt_id": first})
            list(events.until_done(second))
        with pytest.raises(ComfyUIError, match=rf"MMDiTLoader: checkpoint: .*gone\.safetensors.*{said}"):
            server.client.finished(second)
