"""Time and memory to load a checkpoint as a MODEL: our loader and ComfyUI's, in turns.

Each turn is a process of its own, which has imported everything and loaded a tiny file before. Loaded: the MODEL
exists. Used: ComfyUI has made it ready to sample, and every page of every weight has been read once. Both load in bf16:
by default ComfyUI chooses float32 on a CPU. The file is in the system's cache from the start, so the speed of the disk
has no influence. Memory is the peak above what the process held before: its own, and pages mapped from the file, which
the system can drop and read again; sampled every 2 ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.random_file import medium, write
from scripts import in_process

ROOT = Path(__file__).parents[1]
CONTENDERS = ("ours", "ComfyUI")
FIGURES = {  # of a turn -> the table's name and unit
    "loaded": ("loading, s", 1.0),
    "used": ("loading, all weights read, s", 1.0),
    "own": ("loaded, own memory, MB", 1e6),
    "mapped": ("loaded, mapped, MB", 1e6),
    "both": ("loaded, both at once, MB", 1e6),
}


def memory_now() -> dict[str, int]:
    """Bytes resident: the process's own, mapped from files (where the system separates them), both."""
    import psutil

    info = psutil.Process().memory_info()
    mapped = getattr(info, "shared", 0)
    return {"own": info.rss - mapped, "mapped": mapped, "both": info.rss}


@contextmanager
def watched():
    """A dictionary that is filled at the end: the peak above what is held now, as `memory_now` has it."""
    before, peaks, done = memory_now(), memory_now(), threading.Event()

    def look() -> None:
        for name, value in memory_now().items():
            peaks[name] = max(peaks[name], value)

    def watch() -> None:
        while not done.wait(0.002):
            look()

    watcher, found = threading.Thread(target=watch), {}
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        look()
        found.update({name: peaks[name] - before[name] for name in peaks})


def _child(contender: str, path: str, tiny: str) -> None:
    in_process.prepare("--cpu")
    pack = in_process.load_pack()
    import comfy.model_management as management
    import comfy.sd

    load = {
        "ours": lambda name: sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(name, "bf16"),
        "ComfyUI": lambda name: comfy.sd.load_diffusion_model(name, model_options={"dtype": torch.bfloat16}),
    }[contender]

    def use(model) -> None:
        management.load_models_gpu([model])
        for tensor in model.model.diffusion_model.state_dict().values():
            tensor.flatten().view(torch.uint8)[::1024].count_nonzero()

    with torch.inference_mode():
        use(load(tiny))
        with watched() as memory:
            started = time.perf_counter()
            model = load(path)
            loaded = time.perf_counter() - started
            use(model)
            used = time.perf_counter() - started
    print(json.dumps({"loaded": loaded, "used": used, **memory}))


def turn(contender: str, path: Path, tiny: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loading", contender, str(path), str(tiny)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} could not load the file:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def turns(path: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The figures of each contender's turns."""
    tiny = path.with_name("tiny.safetensors")
    write(tiny, medium(2))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        for name in CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]:
            found[name].append(turn(name, path, tiny))
    return found


if __name__ == "__main__":
    _child(*sys.argv[1:])
