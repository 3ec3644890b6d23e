"""`python -m benchmarks.speed`: our model, the host's own and diffusers' at equal weights, in turns in one run.

Stacks of a few full-width blocks of SD3.5 Medium (one block with the second attention, one without, one last) and
of SD3.5 Large, and the whole of SD3.5 Medium; 154 text tokens. All share the tensors of one file of random weights.

A forward has one row of the batch, a step with CFG two, a positive and a negative text. Of ours the forward is a call
by itself; the steps belong to a run that knows the 28 noise levels of its schedule, as every sampler's do: its first
step computes the modulation of 16 of them and reads AdaLN for it, the 17th that of the others. A run is those two and
26 like the second, added up. Time is the median over rounds. A ratio is taken within a round, where all take each
figure one right after the other, and the median of those is given; the order changes from round to round. The rounds
are those of several processes: where things happen to lie in memory makes one contender or another a few percent
faster for as long as a process lives. How far that goes is told beside a ratio: the least and the greatest of the
processes' own medians.

Bytes read are those of the parameters of every layer that a step calls, counted by hooks. FLOPs are counted by torch,
of matrix products and convolutions: attention on a CPU it does not know. Both are those of the second step. Memory is
what steps 1, 2 and 17 take beside the weights at their peak, in a process of its own. Load time and what it holds come
from `benchmarks.loading`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import loading, peers  # noqa: E402
from benchmarks.flops import flop_counter  # noqa: E402
from benchmarks.peers import CONTENDERS, TEXT_TOKENS  # noqa: E402
from benchmarks.random_file import medium, random_file  # noqa: E402
from mmdit_core import MMDiTConfig, load_checkpoint  # noqa: E402
from mmdit_core.flow.schedules import sigmas  # noqa: E402
from mmdit_core.models.adaln import TILE_CPU  # noqa: E402
from scripts import in_process  # noqa: E402

OURS, PEERS = CONTENDERS[0], CONTENDERS[1:]
LEVELS = 1000 * sigmas(28, "linear", 3.0)[:-1].float()
# Of the velocities' spread: a race between models that compute different things means nothing.
FARTHEST = {torch.float32: 1e-4, torch.bfloat16: 0.2}
AHEAD = TILE_CPU // 2  # steps of two rows whose modulation is computed at once
PASSES = -(-len(LEVELS) // AHEAD)
LOADS = 6
FORWARD, STEP, FIRST, RUN = "forward, s", "step with CFG, s", "first step, s", f"run of {len(LEVELS)} steps, s"
NEXT = f"{AHEAD + 1}th step, s"


class Case(NamedTuple):
    """One model at one size. processes, and rounds in each: as many as make its ratios steady in some minutes."""

    name: str
    config: MMDiTConfig
    tokens: int
    dtype: torch.dtype
    processes: int
    rounds: int


MEDIUM = MMDiTConfig(1536, 24, 3, qk_norm="rms", dual_attention=(0,), pos_embed_max_size=96)
LARGE = MMDiTConfig(2432, 38, 2, qk_norm="rms", pos_embed_max_size=96)
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
    Case("SD3.5 Medium", medium(24), 1024, torch.bfloat16, 2, 3),
)


class Runner:
    """A contender's model and its inputs."""

    def __init__(self, contender: str, case: Case, state: dict[str, torch.Tensor]):
        self.contender = contender
        self.model = peers.model_of(contender, case.config, case.dtype, state)
        self.given = peers.inputs(case.config, case.tokens, case.dtype, batch=2)

    def call(self, level: float, rows: int, options: Mapping[str, Any]) -> torch.Tensor:
        given = {name: value[:rows] for name, value in self.given.items()}
        given["timesteps"] = torch.full((rows,), float(level))
        return peers.velocity(self.contender, self.model, **given, **options)

    @contextmanager
    def run(self) -> Iterator[Callable[[float], torch.Tensor]]:
        """A sampling run: a function of the noise level that takes a step with CFG."""
        if self.contender != OURS:
            yield lambda level: self.call(level, 2, {})
            return
        with self.model.adaln_cache(LEVELS, self.given["y"]) as options:
            yield lambda level: self.call(level, 2, {"transformer_options": options})


def read_state(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
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


def counted(runner: Runner) -> dict[str, Any]:
    """What a step after the first reads and executes, and the velocities that were made; also the warm-up."""
    made = [runner.call(LEVELS[1], 1, {}).float()]
    with runner.run() as step:
        step(LEVELS[0])
        counter = flop_counter()
        with counter:
            read = weights_read(runner.model, lambda: made.append(step(LEVELS[1]).float()))
    return {"read": read, "flops": counter.get_total_flops(), "made": made}


def compare(made: Mapping[str, Sequence[torch.Tensor]], dtype: torch.dtype) -> None:
    """Raises: SystemExit where the contenders do not compute the same."""
    for name in PEERS:
        for ours, theirs in zip(made[OURS], made[name], strict=True):
            error = ((theirs - ours).abs().max() / ours.std()).item()
            if not error <= FARTHEST[dtype]:
                raise SystemExit(f"ours and {name} differ by {error:.2g} of the velocities' spread")


def timed(runners: Mapping[str, Runner], order: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds of one round: figure by figure, the contenders one right after the other."""
    readings: dict[str, list[float]] = {name: [] for name in order}

    def clock(name: str, work: Callable[..., Any], *given: Any) -> None:
        started = time.perf_counter()
        work(*given)
        readings[name].append(time.perf_counter() - started)

    with ExitStack() as runs:
        steps = {name: runs.enter_context(runners[name].run()) for name in order}
        for level in LEVELS[[0, 1, AHEAD]]:
            for name in order:
                clock(name, steps[name], level)
    for name in order:
        clock(name, runners[name].call, LEVELS[1], 1, {})
    seconds = {}
    for name in order:
        first, step, after, forward = readings[name]
        run = first + (PASSES - 1) * after + (len(LEVELS) - PASSES) * step
        seconds[name] = {FORWARD: forward, STEP: step, FIRST: first, NEXT: after, RUN: run}
    return seconds


@torch.inference_mode()
def _memory_child(contender: str, number: str, path: str) -> None:
    case = CASES[int(number)]
    runner = Runner(contender, case, read_state(Path(path), case.dtype))
    with loading.watched() as memory, runner.run() as step:
        for level in LEVELS[[0, 1, AHEAD]]:
            step(level)
    print(json.dumps(memory["own"]))


def child(what: str, *given: str) -> Any:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.speed", "--child", what, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} of {given} could not be measured:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratio_of(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> str:
    """The median of the rounds' ratios, and from where to where the medians of the processes go; both by process."""
    ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]
    medians = [statistics.median(each) for each in ratios]
    return f"{statistics.median(sum(ratios, [])):.3f} ({min(medians):.3f} to {max(medians):.3f})"


def row(case: Case, figure: str, values: Mapping[str, float], digits: int, ratios: Mapping[str, str]) -> str:
    shown = " | ".join(f"{values[name]:.{digits}f}" if name in values else "" for name in CONTENDERS)
    dtype = str(case.dtype).removeprefix("torch.")
    against = " | ".join(ratios.get(name, "") for name in PEERS)
    return f"| {case.name} | {case.tokens} | {dtype} | {figure} | {shown} | {against} |"


@torch.inference_mode()
def _turns_child(number: str, path: str, process: str, rounds: str) -> None:
    case = CASES[int(number)]
    state = read_state(Path(path), case.dtype)
    runners = {name: Runner(name, case, state) for name in CONTENDERS}
    counts = {name: counted(runner) for name, runner in runners.items()}
    compare({name: count.pop("made") for name, count in counts.items()}, case.dtype)
    orders = tuple(itertools.permutations(CONTENDERS))
    started = int(process) * int(rounds)
    turns = [timed(runners, orders[turn % len(orders)]) for turn in range(started, started + int(rounds))]
    print(json.dumps({"counts": counts, "turns": turns}))


def measure(case: Case, path: Path, rounds: int) -> Iterator[str]:
    """The case's rows; rounds in each process."""
    number = str(CASES.index(case))
    memory = {name: child("memory", name, number, str(path)) / 1e6 for name in CONTENDERS}
    found = [child("turns", number, str(path), str(process), str(rounds)) for process in range(case.processes)]
    counts = found[0]["counts"]
    for figure in (FORWARD, STEP, FIRST, NEXT, RUN):
        seconds = {name: [[turn[name][figure] for turn in each["turns"]] for each in found] for name in CONTENDERS}
        ratios = {name: ratio_of(seconds[OURS], seconds[name]) for name in PEERS}
        yield row(case, figure, {name: statistics.median(sum(seconds[name], [])) for name in CONTENDERS}, 3, ratios)
    for figure, values, digits in (
        ("weights read in a step, GB", {name: counts[name]["read"] / 1e9 for name in CONTENDERS}, 3),
        ("TFLOP in a step", {name: counts[name]["flops"] / 1e12 for name in CONTENDERS}, 3),
        ("memory beside the weights, MB", memory, 0),
    ):
        yield row(case, figure, values, digits, {name: f"{values[OURS] / values[name]:.3f}" for name in PEERS})


def loaded(case: Case, path: Path, rounds: int) -> Iterator[str]:
    """How long the file takes to become a MODEL, and what that holds; each round in processes of its own.

    diffusers has no loader that needs no network.
    """
    turns = loading.turns(path, rounds)
    for figure, (label, unit) in loading.FIGURES.items():
        columns = {name: [turn[figure] / unit for turn in turns[name]] for name in turns}
        middle = {name: statistics.median(values) for name, values in columns.items()}
        ratios = {}
        if all(columns["host"]):
            ratios["host"] = ratio_of(*([[value] for value in columns[name]] for name in (OURS, "host")))
        yield row(case, label, middle, 2 if unit == 1 else 0, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="in each process, in place of each case's own number")
    parser.add_argument("--cases", nargs="+", help="only those whose name, tokens or dtype is one of these")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    in_process.prepare("--cpu")
    if given.child:
        what, *arguments = given.child
        {"memory": _memory_child, "turns": _turns_child}[what](*arguments)
        return
    lines = [
        f"Machine: {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{TEXT_TOKENS} text tokens",
        "",
        "| model | tokens | dtype | figure | ours | host | diffusers | ours / host | ours / diffusers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for case in CASES:
        if given.cases and not {case.name, str(case.tokens), str(case.dtype)[6:]} & set(given.cases):
            continue
        with random_file(case.config) as path:
            found = [measure(case, path, given.rounds or case.rounds)]
            if case.config.depth == 24:
                found.append(loaded(case, path, LOADS))
            for line in itertools.chain(*found):
                lines.append(line)
                print(line, flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
