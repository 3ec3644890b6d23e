"""`python -m benchmarks.speed`: our model, ComfyUI's and diffusers', interleaved.

Stacks of a few full-width blocks of SD3.5 Medium (one block with the second attention, one without, one last), of
SD3.5 Large, of FLUX.1 dev (one double, two single) and of Qwen-Image (two double), and the whole of SD3.5 Medium; 154
text tokens. All models share the tensors of one file of random weights.

A forward has one row of the batch; a step with CFG has two, cond and uncond, of a run of 28 steps with an AdaLN cache.
The first step of a run also computes the first tile of the cache, which holds 4 steps on a CPU.

Time is the median over rounds. A ratio is computed within a round, where all models run each figure one after the
other, in an order that changes; the table has the median of the rounds of all processes and, in brackets, the lowest
and the highest median of a process: where tensors are in memory makes a model a few percent faster or slower for the
life of a process.

Weights read are the parameters of every layer that a step calls. FLOPs are counted by torch: matmuls and convolutions,
no attention. Memory is the peak of what torch allocates in the first step of a run; the weights do not count.
With --loading, also the time and memory to load the whole model, see `benchmarks.loading`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import loading, peers
from benchmarks.flops import flop_counter
from benchmarks.peers import COMFYUI, CONTENDERS, OURS, TEXT_TOKENS
from benchmarks.random_file import medium, random_file
from mmdit_core import FluxConfig, MMDiTConfig, QwenImageConfig, load_checkpoint
from mmdit_core.config import ModelConfig
from mmdit_core.flow.schedules import sigmas
from scripts import in_process

ROOT = Path(__file__).parents[1]
PEERS = CONTENDERS[1:]
TIMESTEPS = 1000 * sigmas(28, "linear", 3.0)[:-1].float()
# The largest difference of velocities, relative to their spread: models that compute different things are not compared.
LARGEST = {torch.float32: 1e-4, torch.bfloat16: 0.2}
LOADS = 6
FORWARD, STEP, FIRST = FIGURES = ("forward, s", "step with CFG, s", "first step, s")


class Case(NamedTuple):
    """One model at one size. processes, and rounds in each: as many as make its ratios steady in some minutes."""

    name: str
    config: ModelConfig
    tokens: int
    dtype: torch.dtype
    processes: int
    rounds: int
    figures: tuple[str, ...] = FIGURES


MEDIUM = MMDiTConfig(1536, 24, 3, qk_norm="rms", dual_attention=(0,), pos_embed_max_size=96)
WHOLE = Case("SD3.5 Medium", medium(24), 1024, torch.bfloat16, 1, 3, (STEP,))
LARGE = MMDiTConfig(2432, 38, 2, qk_norm="rms", pos_embed_max_size=96)
FLUX = FluxConfig(depth=1, depth_single_blocks=2, guidance_embed=True)
QWEN_IMAGE = QwenImageConfig(depth=2)
CASES = (
    *(
        Case(name, config, tokens, dtype, processes, rounds)
        for tokens, dtype, processes, rounds in (
            (1024, torch.bfloat16, 3, 3),
            (1024, torch.float32, 3, 3),
            (4096, torch.bfloat16, 2, 3),
        )
        for name, config in (("3 blocks of SD3.5 Medium", MEDIUM), ("2 blocks of SD3.5 Large", LARGE))
    ),
    WHOLE,
    Case("SD3.5 Medium", medium(24), 1024, torch.float32, 1, 3, (STEP,)),
    *(
        Case(name, config, tokens, dtype, 1, 2, (FORWARD, STEP))
        for name, config in (("3 blocks of FLUX.1 dev", FLUX), ("2 blocks of Qwen-Image", QWEN_IMAGE))
        for tokens in (1024, 256)
        for dtype in (torch.bfloat16, torch.float32)
    ),
    # Where the processor has no bfloat16 arithmetic, 1024 tokens take minutes a step.
    Case("SD3.5 Medium", medium(24), 256, torch.bfloat16, 1, 3, (STEP,)),
)


class Runner:
    """A contender's model, its inputs and its present run."""

    def __init__(self, contender: str, case: Case, state: dict[str, torch.Tensor]):
        self.contender, self.config = contender, case.config
        self.model = peers.model_of(contender, case.config, case.dtype, state)
        self.given = peers.inputs(case.config, case.tokens, case.dtype, batch=2)
        self.options: dict[str, Any] = {}

    def start(self) -> None:
        """Begin a run: our model gets a new AdaLN cache."""
        if self.contender == OURS:
            cache = self.model.adaln_cache(TIMESTEPS, self.given.get("y"), self.given.get("guidance"))
            self.options = {"transformer_options": cache.__enter__()}

    def step(self, index: int) -> torch.Tensor:
        """A step of the run with CFG: two rows."""
        return self._call(index, 2, self.options)

    def forward(self, index: int) -> torch.Tensor:
        """A model call by itself, of one row."""
        return self._call(index, 1, {})

    def _call(self, index: int, rows: int, options: Mapping[str, Any]) -> torch.Tensor:
        given = {name: value[:rows] for name, value in self.given.items()}
        given["timesteps"] = TIMESTEPS[index].expand(rows)
        return peers.velocity(self.contender, self.model, self.config, **given, **options)


def read_state(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file in a dtype."""
    return {name: tensor.to(dtype) for name, tensor in load_checkpoint(path)[1].items()}


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


@contextmanager
def allocations() -> Iterator[dict[str, int]]:
    """A dictionary that is filled at the end: "peak", the most bytes that torch allocated at once in between."""
    found: dict[str, int] = {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        yield found
    events = watched.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    found["peak"] = max(itertools.accumulate(size for _, size in changes))


def counted(runner: Runner) -> dict[str, Any]:
    """The first step's memory, what the second step reads and executes, and their velocities. Also the warm-up."""
    with allocations() as memory:
        runner.start()
        made = [runner.step(0).float()]
    with flop_counter() as counter:
        read = weights_read(runner.model, lambda: made.append(runner.step(1).float()))
    return {"read": read, "flops": counter.get_total_flops(), "memory": memory["peak"], "made": made}


def compare(made: Mapping[str, Sequence[torch.Tensor]], dtype: torch.dtype) -> None:
    """Raises: SystemExit if the contenders do not compute the same."""
    for name in PEERS:
        for ours, theirs in zip(made[OURS], made[name], strict=True):
            error = ((theirs - ours).abs().max() / ours.std()).item()
            if not error <= LARGEST[dtype]:
                raise SystemExit(f"ours and {name} differ by {error:.2g} of the velocities' spread")


def timed(
    runners: Mapping[str, Runner], order: Sequence[str], figures: Sequence[str], *, cpu_time: bool = False
) -> dict[str, dict[str, float]]:
    """Seconds of one round: figure by figure, one contender after the other. Args: cpu_time, those of the processor."""
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, dict[str, float]] = {name: {} for name in order}
    for figure in figures:
        for name in order:
            runner = runners[name]
            if figure == FIRST:
                runner.start()
            work, index = {FORWARD: (runner.forward, 1), STEP: (runner.step, 1), FIRST: (runner.step, 0)}[figure]
            began = clock()
            work(index)
            seconds[name][figure] = clock() - began
    return seconds


@torch.inference_mode()
def _rounds_child(number: str, path: str, process: str, rounds: str, cpu_time: str) -> None:
    case = CASES[int(number)]
    state = read_state(Path(path), case.dtype)
    runners = {name: Runner(name, case, state) for name in CONTENDERS}
    counts = {name: counted(runner) for name, runner in runners.items()}
    compare({name: count.pop("made") for name, count in counts.items()}, case.dtype)
    orders = tuple(itertools.permutations(CONTENDERS))
    first = int(process) * int(rounds)
    turns = [orders[turn % len(orders)] for turn in range(first, first + int(rounds))]
    found = [timed(runners, order, case.figures, cpu_time=cpu_time == "True") for order in turns]
    print(json.dumps({"counts": counts, "rounds": found}))


def child(*given: str) -> Any:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.speed", "--child", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the rounds of {given} could not be measured:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratio_of(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> str:
    """The median of the rounds' ratios, and the range of the processes' medians. Args: seconds by process."""
    ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]
    medians = [statistics.median(each) for each in ratios]
    return f"{statistics.median(sum(ratios, [])):.3f} ({min(medians):.3f} to {max(medians):.3f})"


def row(case: Case, figure: str, values: Mapping[str, float], digits: int, ratios: Mapping[str, str]) -> str:
    """A row of the table."""
    shown = " | ".join(f"{values[name]:.{digits}f}" if name in values else "" for name in CONTENDERS)
    dtype = str(case.dtype).removeprefix("torch.")
    against = " | ".join(ratios.get(name, "") for name in PEERS)
    return f"| {case.name} | {case.tokens} | {dtype} | {figure} | {shown} | {against} |"


def measure(case: Case, path: Path, rounds: int, cpu_time: bool) -> Iterator[str]:
    """The rows of a case. Args: rounds in each process; cpu_time, as of `timed`."""
    number, more = str(CASES.index(case)), (str(rounds), str(cpu_time))
    found = [child(number, str(path), str(process), *more) for process in range(case.processes)]
    counts = found[0]["counts"]
    for figure in case.figures:
        seconds = {name: [[each[name][figure] for each in one["rounds"]] for one in found] for name in CONTENDERS}
        ratios = {name: ratio_of(seconds[OURS], seconds[name]) for name in PEERS}
        yield row(case, figure, {name: statistics.median(sum(seconds[name], [])) for name in CONTENDERS}, 3, ratios)
    for figure, values, digits in (
        ("weights read in a step, GB", {name: counts[name]["read"] / 1e9 for name in CONTENDERS}, 3),
        ("TFLOP in a step", {name: counts[name]["flops"] / 1e12 for name in CONTENDERS}, 3),
        ("memory besides the weights, MB", {name: counts[name]["memory"] / 1e6 for name in CONTENDERS}, 0),
    ):
        yield row(case, figure, values, digits, {name: f"{values[OURS] / values[name]:.3f}" for name in PEERS})


def loaded(case: Case, path: Path, rounds: int) -> Iterator[str]:
    """Time and memory to load the file as a MODEL, each round in processes of its own.

    diffusers has no loader that works without a network.
    """
    turns = loading.turns(path, rounds)
    for figure, (label, unit) in loading.FIGURES.items():
        columns = {name: [turn[figure] / unit for turn in turns[name]] for name in turns}
        middle = {name: statistics.median(values) for name, values in columns.items()}
        ratios = {}
        if all(columns[COMFYUI]):
            ratios[COMFYUI] = ratio_of(*([[value] for value in columns[name]] for name in (OURS, COMFYUI)))
        yield row(case, label, middle, 2 if unit == 1 else 0, ratios)


def processor() -> str:
    """The name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        return platform.processor()


def main() -> None:
    """Measure the cases and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="in each process, in place of each case's own number")
    parser.add_argument("--cases", nargs="+", default=[], help="only those with all of these as name, tokens or dtype")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    parser.add_argument("--loading", action="store_true", help="also load the whole model")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    in_process.prepare("--cpu")
    if given.child:
        _rounds_child(*given.child)
        return
    names = " | ".join((*CONTENDERS, *(f"ours / {name}" for name in PEERS)))
    lines = [
        f"Machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {TEXT_TOKENS} text tokens",
        "",
        f"| model | tokens | dtype | figure | {names} |",
        "| --- " * (4 + 2 * len(CONTENDERS) - 1) + "|",
    ]
    print("\n".join(lines), flush=True)
    for case in CASES:
        if not {*given.cases} <= {case.name, str(case.tokens), str(case.dtype)[6:]}:
            continue
        with random_file(case.config) as path:
            found = [measure(case, path, given.rounds or case.rounds, given.cpu_time)]
            if given.loading and case == WHOLE:
                found.append(loaded(case, path, LOADS))
            for line in itertools.chain(*found):
                lines.append(line)
                print(line, flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
