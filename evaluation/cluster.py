"""Units sampled by a Ray cluster: one worker for each device, each with ComfyUI and the model in its process."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.console import UserError, say

from .engine.graph import WorkflowError
from .engine.host import Host, HostError
from .engine.renderer import About, Renderer, Source
from .prompts import Prompt
from .runners import Images, sample
from .study.cells import Unit

LOCAL = "local"  # as Ray calls it
MOST_FAILURES = 3  # of one unit on workers that died, and of workers to start
SAY_EVERY = 60.0  # seconds between two lines while no worker has started
IN_FLIGHT = 2  # units of one worker: the next one waits there while the last one's images travel
MENDED = (HostError, UserError, WorkflowError)  # what a user can mend
START_LIMIT = "RAY_agent_register_timeout_ms"  # Ray's own agents start slowly on a busy machine


class ClusterError(Exception):
    """A cluster that cannot be used, or on which a unit failed again and again."""


class Worker:
    """What a worker holds. Ray makes its process; everything is imported there."""

    def __init__(self, source: Source, prompts: Sequence[Prompt], base: Path | None, threads: int):
        self.source, self.prompts, self.base, self.threads = source, prompts, base, threads

    def about(self) -> About:
        """Start, and say what it samples. Not in __init__, whose errors reach the caller as text alone."""
        self.renderer = Renderer(self.source, Host(self.base, self.threads))
        return self.renderer.about()

    def sample(self, unit: Unit) -> Images:
        """The images of a unit."""
        return sample(self.renderer, self.prompts, unit)


class Cluster:
    """Samples units on all devices of a cluster. Use it as a context manager.

    Args: address, of a running cluster such as "auto" or "10.0.0.1:6379", or LOCAL to start one on this machine;
        workers, 0 for one on each GPU of the cluster or, without GPUs, one for each `threads` cores; threads, of torch
        in a worker without a GPU.
    Raises: ClusterError if ray is not installed or the address is wrong.
    """

    def __init__(
        self,
        source: Source,
        prompts: Sequence[Prompt],
        *,
        address: str = LOCAL,
        base: Path | None = None,
        threads: int = 1,
        workers: int = 0,
    ):
        self._arguments = (source, prompts, base, threads)
        self._address, self._threads, self._wanted = address, max(1, threads), workers
        self._workers: list[Any] = []
        self._starting: dict[Any, Any] = {}  # reference to a worker's first answer -> the worker
        self._about: About | None = None
        self._failed = 0  # workers in a row that did not start

    def __enter__(self) -> Cluster:
        os.environ.setdefault(START_LIMIT, "120000")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise ClusterError("--ray needs the package ray: pip install 'ray>=2.40'") from error
        self._ray = ray
        root = str(Path(__file__).resolve().parents[1])
        options: dict[str, Any] = {"include_dashboard": False} if self._address == LOCAL else {}
        try:
            ray.init(
                address=self._address,  # "local" starts one, also next to a running one
                runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": str(self._threads)}},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterError(f"--ray {self._address}: no cluster answers there: {error}") from error
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        room = gpus or cores // self._threads
        count = self._wanted or room
        if not 0 < count <= room:
            ray.shutdown()
            found = f"{gpus} GPUs" if gpus else f"{cores} cores, and a worker takes {self._threads} (--threads)"
            raise ClusterError(
                f"--workers {count or 1}: the cluster has {found}. Give at most {room}, or fewer threads"
            )
        need = {"num_gpus": 1} if gpus else {"num_cpus": self._threads}
        self._make = ray.remote(Worker).options(max_restarts=0, **need)
        for _ in range(count):
            self._start()
        say(f"Ray: {count} workers, each on {'a GPU' if gpus else f'{self._threads} core(s)'}")
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (*self._workers, *self._starting.values()):
            self._ray.kill(worker)
        self._ray.shutdown()

    def about(self) -> About:
        """What the workers sample. Raises: those of MENDED; ClusterError if no worker starts."""
        while self._about is None:
            self._join(self._first(self._starting))
        return self._about

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Images]]:
        """Each unit with its images, as they come. A unit whose worker died goes to another one.

        A worker that has not started gets none: in a cluster that lost a machine it may wait for a place.
        Raises: those of MENDED; ClusterError for a unit whose workers died MOST_FAILURES times.
        """
        errors = self._ray.exceptions
        # Images of a machine that left the cluster before they came here are lost, too.
        died = (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError, errors.NodeDiedError)
        waiting = deque(sorted(units, key=lambda unit: (unit.prompts, unit.seed)))
        failures: dict[Unit, int] = {}
        running: dict[Any, tuple[Unit, Any]] = {}
        while waiting or running:
            for worker in self._workers:
                while waiting and sum(each is worker for _, each in running.values()) < IN_FLIGHT:
                    unit = waiting.popleft()
                    running[worker.sample.remote(unit)] = (unit, worker)
            done = self._first([*running, *self._starting], bool(running))
            if done in self._starting:
                self._join(done)
                continue
            unit, worker = running.pop(done)
            try:
                images = self._get(done)
            except died as error:
                failures[unit] = failures.get(unit, 0) + 1
                if failures[unit] >= MOST_FAILURES:
                    words = f"{MOST_FAILURES} workers died on the same unit: {unit.name}. {_reason(error)}"
                    raise ClusterError(words) from None
                waiting.appendleft(unit)
                if worker in self._workers:
                    say("Ray: a worker died; another one takes its place")
                    self._workers.remove(worker)
                    self._ray.kill(worker)  # it may live on without its images
                    self._start()
            else:
                yield unit, images

    def _get(self, reference: Any) -> Any:
        """A result. Raises: the worker's own error if it is one of MENDED; else what Ray raises."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MENDED):
                raise type(error.cause)(str(error.cause)) from None
            raise

    def _first(self, references: Iterable[Any], working: bool = False) -> Any:
        """The first reference that is done. Args: working, another one than of a worker that starts."""
        while True:
            done, _ = self._ray.wait(list(references), num_returns=1, timeout=SAY_EVERY)
            if done:
                return done[0]
            if not working:
                say("Ray: no worker has started yet: each needs a free device, and loads ComfyUI and the model")

    def _start(self) -> None:
        worker: Any = self._make.remote(*self._arguments)
        self._starting[worker.about.remote()] = worker

    def _join(self, started: Any) -> None:
        """Take a worker that has started into the work. Raises: as `about`."""
        worker = self._starting.pop(started)
        try:
            about = self._get(started)
        except self._ray.exceptions.RayError as error:
            self._failed += 1
            if self._failed >= MOST_FAILURES:
                raise ClusterError(f"--ray: {MOST_FAILURES} workers did not start. {_reason(error)}") from None
            say(f"Ray: a worker died when it started; another one takes its place. {_reason(error)}")
            self._start()
            return
        first = self._about = self._about or about
        if (about.files, about.software) != (first.files, first.software):
            found = f"{first.files} and {about.files}, {first.software} and {about.software}"
            raise ClusterError(f"--ray: two machines differ in their model files or versions: {found}")
        self._failed = 0
        self._workers.append(worker)


def _reason(error: Exception) -> str:
    """The last line of Ray's message: where a worker failed in Python, the error itself."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
