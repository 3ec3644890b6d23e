"""`python -m evaluation` on the shipped model: studies in one process and on a Ray cluster, killed and continued."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from mmdit_core.control.preset_files import read_presets
from tests.evaluation.endpoint_server import Endpoint
from tests.evaluation.planted import weaken

ROOT = Path(__file__).parents[2]
SMALL = ("--model", "mmdit-small.safetensors", "--width", "64", "--height", "64", "--steps", "2", "--batch", "2")
STUDY = ("study", *SMALL, "--limit", "8", "--blocks", "1-3", "--controls", "2", "--max-loss", "100")
KEY = "sk-0123456789abcdef0123456789"


def start(base, out, *words, **variables):
    """The command as a process that a test may kill."""
    command = [sys.executable, "-m", "evaluation", *words, "--base", str(base), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(process):
    text = process.communicate(timeout=280)[0]
    return process.returncode, text


def run(base, out, *words, **variables):
    code, text = finish(start(base, out, *words, **variables))
    assert code == 0, text
    return text


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="module")
def serial(base, tmp_path_factory):
    """A finished study of this process's kind."""
    out = tmp_path_factory.mktemp("studies") / "serial"
    return out, run(base, out, *STUDY)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def kill_after(process, progress, lines):
    """End a process the hard way once it has stored some units."""
    limit = time.monotonic() + 120
    while len(lines_of(progress)) < lines:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()


def test_a_study_leaves_cells_report_and_presets_and_the_menu(base, serial):
    out, text = serial
    cells = [json.loads(line) for line in lines_of(out / "cells.jsonl")]
    names = {cell["control"] for cell in cells}
    assert {"baseline", "skip both 1", "disable both 2", "boost residual x2 both 3"} <= names
    keys = [(cell["control"] != "baseline", cell["control"], cell["prompt"], cell["seed"]) for cell in cells]
    assert keys == sorted(keys) and len(keys) == len(set(keys))
    assert all(value in (0.0, 1.0) for cell in cells for _, value in cell["answers"])
    presets = read_presets((out / "preset.json").read_text())
    (skip,) = [preset for preset in presets if preset.action == "skip"]
    assert (skip.family, skip.double, skip.single, skip.file) == ("SD3, SD3.5", 8, 0, "mmdit-small.safetensors")
    assert skip.evidence.prompts == 4 and skip.evidence.steps == 2 and skip.evidence.saved == 1 / 8
    (stored,) = (base / "user" / "default" / "mmdit" / "presets").iterdir()
    assert stored.read_text() == (out / "preset.json").read_text() and str(stored) in text
    page = (out / "report.html").read_text()
    assert "Block map" in page and "shapes: 4 to choose on, 4 others to prove on" in page
    shown = [out / part.split('"')[0] for part in page.split('src="')[1:]]
    assert shown and all(size_of(path) == (64, 64) for path in shown)


def test_a_killed_study_continues_to_the_same_cells(base, serial, tmp_path):
    out = tmp_path / "killed"
    process = start(base, out, *STUDY)
    kill_after(process, out / "progress.jsonl", 5)
    assert not (out / "cells.jsonl").exists()
    text = run(base, out, *STUDY)
    assert 0 < text.count("to sample")
    for name in ("cells.jsonl", "report.html"):
        assert (out / name).read_bytes() == (serial[0] / name).read_bytes(), text


def test_other_options_do_not_continue_a_study(base, serial):
    code, text = finish(start(base, serial[0], *STUDY, "--cfg", "2"))
    assert code == 1 and "other graph, sampling" in text and "Traceback" not in text


def test_another_model_file_of_the_same_name_does_not_continue_a_study(base, tmp_path):
    model, out = tmp_path / "weak.safetensors", tmp_path / "out"
    weaken(ROOT / "models" / "mmdit-small.safetensors", model, block=1, factor=0.1)
    words = ("study", *SMALL, "--limit", "4", "--blocks", "1", "--controls", "0", "--no-menu", "--model", str(model))
    run(base, out, *words, "--sweep", "disable")
    weaken(ROOT / "models" / "mmdit-small.safetensors", model, block=1, factor=0.2)
    code, text = finish(start(base, out, *words, "--sweep", "disable"))
    assert code == 1 and "other files" in text and "Traceback" not in text


def test_two_ray_workers_make_the_same_cells_though_one_is_killed(base, serial, tmp_path):
    out = tmp_path / "ray"
    process = start(base, out, *STUDY, "--ray", "--workers", "2")
    limit = time.monotonic() + 200
    while not lines_of(out / "progress.jsonl"):
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[0]
        time.sleep(0.05)
    own = [each for each in psutil.Process(process.pid).children(recursive=True) if is_worker(each)]
    assert len(own) == 2
    own[0].kill()
    code, text = finish(process)
    assert code == 0 and "Ray: 2 workers" in text and "a worker died" in text, text
    assert (out / "cells.jsonl").read_bytes() == (serial[0] / "cells.jsonl").read_bytes()


def is_worker(process):
    try:
        return process.cmdline()[:1] == ["ray::Worker"] or "ray::Worker" in process.name() + " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_an_endpoint_judges_as_the_shapes_judge_and_its_key_stays_out(base, serial, tmp_path):
    out = tmp_path / "endpoint"
    with contextlib.closing(Endpoint()) as endpoint:
        words = ("--judge", "endpoint", "--judge-url", endpoint.url, "--judge-model", "shapes", "--prompts", "shapes")
        text = run(base, out, *STUDY, *words, "--no-menu", MMDIT_JUDGE_KEY=KEY)
        assert {headers["authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    assert (out / "cells.jsonl").read_bytes() == (serial[0] / "cells.jsonl").read_bytes()
    assert KEY not in text
    assert not [path for path in out.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


REFUSED = {
    words: said
    for words, said in [
        (("--model", "gone.safetensors"), "gone.safetensors"),
        (("--blocks", "9-12"), "--blocks"),
        (("--limit", "3"), "--limit"),
        (("--prompts", "objects"), "shapes"),
        (("--judge", "endpoint"), "address of the endpoint"),
        (("--judge", "clip", "--judge-model", "nowhere", "--prompts", "shapes"), "nowhere"),
        (("--seeds", "x"), "--seeds"),
        (("--vae", "gone.safetensors"), "gone.safetensors"),
        (("--cfg", "1", "--branch", "negative"), "--branch negative"),
        (("--ray", "--model", "gone.safetensors"), "gone.safetensors"),
        (("--ray", "--threads", "4096"), "--workers"),
    ]
}
# Runs each command that is a line of the input, in one process: the imports take longer than the commands.
EACH = """
import json, sys
from evaluation.__main__ import main
for line in sys.stdin:
    try:
        main(json.loads(line))
        print("@ 0", flush=True)
    except SystemExit as end:
        print(end, "@ 1", flush=True)
"""


@pytest.fixture(scope="module")
def refusals(base, tmp_path_factory):
    """What each refused study says, with its exit status at the end."""
    out = tmp_path_factory.mktemp("refused")
    options = ("--base", str(base), "--out")
    lines = [json.dumps([*STUDY, *words, *options, str(out / str(i))]) for i, words in enumerate(REFUSED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", EACH], cwd=ROOT, env=environment, input="\n".join(lines), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return dict(zip(REFUSED, re.split(r"(?<=@ [01])\n", ended.stdout), strict=False))


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_studied_is_said_in_a_line(refusals, words):
    text = refusals[words]
    assert text.endswith("@ 1") and REFUSED[words] in text and "Traceback" not in text, text


def test_a_set_is_generated_as_geneval_names_it_and_continued(base, tmp_path):
    out = tmp_path / "images"
    words = ("generate", *SMALL, "--prompts", "objects", "--limit", "3", "--seeds", "0-1")
    run(base, out, *words)
    images = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert images == [f"0000{prompt}/samples/000{seed}.png" for prompt in range(3) for seed in range(2)]
    entry = json.loads((out / "00000" / "metadata.jsonl").read_text())
    assert {"tag", "include", "prompt"} <= set(entry)
    kept = (out / images[0]).read_bytes()
    (out / images[-1]).unlink()
    text = run(base, out, *words)
    assert "1 of 4 batches" in text and (out / images[0]).read_bytes() == kept and (out / images[-1]).is_file()


def test_a_planted_weakness_is_found_and_recovered(base, tmp_path):
    """One block's text values at a tenth: the study names that block, and a boost by ten brings the images back."""
    weak = tmp_path / "weak.safetensors"
    weaken(ROOT / "models" / "mmdit-small.safetensors", weak, block=1, factor=0.1)
    words = ("--width", "128", "--height", "128", "--steps", "6", "--cfg", "1.5", "--batch", "16", "--limit", "32")
    sweep = ("--sweep", "boost", "--modes", "value", "--strength", "10", "--blocks", "0-3", "--controls", "0")
    text = run(base, tmp_path / "study", "study", "--model", str(weak), *words, *sweep, "--no-menu")
    (preset,) = read_presets((tmp_path / "study" / "preset.json").read_text())
    assert (preset.blocks, preset.mode, preset.strength) == ("1", "value", 10.0), text
    assert preset.evidence.low > 0, text
