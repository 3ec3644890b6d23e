"""A whole SD3.5 Medium in bf16: ours with prepared modulation, ours plain, the host's and diffusers', in turns.

    python -m benchmarks.whole [--rounds 3] [--tokens 1024] [--blocks 24] [--markdown FILE]

All share the tensors of one file of random weights, mapped. A forward has one row, a step with CFG two, a positive and
a negative text of 154 tokens. A prepared run knows the 28 noise levels of its schedule; its first step computes the
modulation of all of them, and is timed by itself. Time is the median over rounds, a ratio is taken within a round.

Bytes read are those of the parameters of every layer that a step calls, counted by hooks. FLOPs are counted by torch,
of matrix products and convolutions: attention on a CPU it does not know. Memory is what the first two steps take beside
the weights at their peak (those are the file's own pages), in a process of its own, watched every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import speed  # noqa: E402
from benchmarks.loading import watched  # noqa: E402
from benchmarks.random_file import bytes_of, medium, random_file  # noqa: E402
from mmdit_core import load_checkpoint  # noqa: E402
from mmdit_core.schedule import sigmas  # noqa: E402
from scripts import inprocess  # noqa: E402

PREPARED = "ours, prepared"
CONTENDERS = {PREPARED: "ours", "ours, plain": "ours", "host": "host", "diffusers": "diffusers"}
LEVELS = 1000 * sigmas(28, "linear", 3.0)[:-1].float()
FIGURES = ("forward", "step", "first step")
FARTHEST = 0.2  # of the velocities' spread, in bf16: a race between models that compute different things means nothing


class Runner:
    """A contender's model, its inputs, and the options of a run, if it has one."""

    def __init__(self, name: str, path: Path, tokens: int, models: dict[str, torch.nn.Module]):
        kind = CONTENDERS[name]
        if kind not in models:
            config, state = load_checkpoint(path)
            models[kind] = speed.model_of(kind, config, torch.bfloat16, state)
        self.name, self.kind, self.model = name, kind, models[kind]
        self.given = speed.inputs(load_config(path), tokens, torch.bfloat16, batch=2)

    @contextmanager
    def run(self) -> Iterator[Callable[..., torch.Tensor]]:
        """A sampling run: a function (level, rows) -> velocity."""

        def call(level: float, rows: int, options: Mapping[str, Any]) -> torch.Tensor:
            given = {name: value[:rows] for name, value in self.given.items()}
            given["timesteps"] = torch.full((rows,), float(level))
            return speed.velocity(self.kind, self.model, **given, **options)

        if self.name != PREPARED:
            yield lambda level, rows=2: call(level, rows, {})
            return
        with self.model.prepared(LEVELS) as prepared:
            yield lambda level, rows=2: call(level, rows, {"transformer_options": prepared})


def load_config(path: Path):
    return load_checkpoint(path)[0]


def weights_read(model: torch.nn.Module, step: Callable[[], Any]) -> int:
    """Bytes of the parameters of every layer that a step calls, once for each call."""
    read: Counter[str] = Counter()

    def count(layer: torch.nn.Module, *_: Any) -> None:
        read["bytes"] += sum(parameter.nbytes for parameter in layer.parameters(recurse=False))

    handles = [layer.register_forward_hook(count) for layer in model.modules() if list(layer.parameters(recurse=False))]
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return read["bytes"]


def counted(runner: Runner) -> dict[str, float]:
    """What a step after the first reads and executes, and its velocity; also the warm-up."""
    with runner.run() as call:
        call(LEVELS[0])
        counter, made = FlopCounterMode(display=False), []
        with counter:
            read = weights_read(runner.model, lambda: made.append(call(LEVELS[1])))
    return {"read": read, "flops": counter.get_total_flops(), "made": made[0].float()}


def timed(runner: Runner) -> dict[str, float]:
    """Seconds of one turn."""
    seconds = {}
    with runner.run() as call:
        for figure, level, rows in (("first step", 0, 2), ("step", 1, 2), ("forward", 1, 1)):
            started = time.perf_counter()
            call(LEVELS[level], rows)
            seconds[figure] = time.perf_counter() - started
    return seconds


@torch.inference_mode()
def _memory_child(name: str, path: str, tokens: str) -> None:
    runner = Runner(name, Path(path), int(tokens), {})
    with watched() as memory, runner.run() as call:
        call(LEVELS[0])
        call(LEVELS[1])
    print(json.dumps(memory["own"]))


def peak_memory(name: str, path: Path, tokens: int) -> int:
    command = [sys.executable, "-m", "benchmarks.whole", "--memory-of", name, str(path), str(tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} could not be measured:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(counts: Mapping[str, Mapping[str, Any]]) -> None:
    for name in CONTENDERS:
        made, ours = counts[name]["made"], counts["ours, plain"]["made"]
        error = ((made - ours).abs().max() / ours.std()).item()
        if not error <= FARTHEST:
            raise SystemExit(f"ours and {name} differ by {error:.2g} of the velocities' spread")


@torch.inference_mode()
def measure(path: Path, tokens: int, rounds: int) -> list[str]:
    """The table's rows."""
    names, models = list(CONTENDERS), {}
    memory = {name: peak_memory(name, path, tokens) for name in names}
    runners = {name: Runner(name, path, tokens, models) for name in names}
    counts = {name: counted(runner) for name, runner in runners.items()}
    compare(counts)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            turns[name].append(timed(runners[name]))
    rows = [
        "| | forward, s | step, s | first step, s | step / host's step | spread | weights read in a step, GB | TFLOP "
        "| memory beside the weights, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        middle = [f"{statistics.median(turn[figure] for turn in turns[name]):.2f}" for figure in FIGURES]
        ratios = sorted(a["step"] / b["step"] for a, b in zip(turns[name], turns["host"], strict=True))
        rows.append(
            f"| {name} | {' | '.join(middle)} | {statistics.median(ratios):.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f} "
            f"| {counts[name]['read'] / 1e9:.3f} | {counts[name]['flops'] / 1e12:.3f} | {memory[name] / 1e6:.0f} |"
        )
    plain, prepared = (counts[name]["read"] for name in ("ours, plain", PREPARED))
    rows += ["", f"Prepared, a step reads {1 - prepared / plain:.1%} less of the weights than plain."]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=24, help="fewer make a model that is smaller in all")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    inprocess.prepare("--cpu")
    if given.memory_of:
        _memory_child(*given.memory_of)
        return
    config = medium(given.blocks)
    lines = [
        f"Machine: {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {given.blocks} "
        f"blocks, {bytes_of(config) / 1e9:.2f} GB in bf16, {given.tokens} image and {speed.TEXT_TOKENS} text tokens; "
        f"{given.rounds} rounds",
        "",
    ]
    with random_file(config) as path:
        lines += measure(path, given.tokens, given.rounds)
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
