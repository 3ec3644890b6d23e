"""Units sampled by a Ray cluster: one worker for each device, each with ComfyUI and the model in its process."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.console import say

from .engine.graph import WorkflowError
from .engine.host import Host, HostError
from .engine.renderer import About, Renderer, Source
from .prompts import Prompt
from .runners import Images, sample
from .study.cells import Unit

LOCAL = "local"
MOST_FAILURES = 3  # of one unit on workers that died
IN_FLIGHT = 2  # units of one worker: the next one waits there while the last one's images travel
MENDED = (HostError, WorkflowError)  # what a user can mend
START_LIMIT = "RAY_agent_register_timeout_ms"  # Ray's own agents start slowly on a busy machine


class ClusterError(Exception):
    """A cluster that cannot be used, or on which a unit failed again and again."""


class Worker:
    """What a worker holds. Ray makes its process; everything is imported there."""

    def __init__(self, source: Source, prompts: Sequence[Prompt], base: Path | None, threads: int):
        self.renderer, self.prompts = Renderer(source, Host(base, threads)), prompts

    def sample(self, unit: Unit) -> Images:
        """The images of a unit."""
        return sample(self.renderer, self.prompts, unit)

    def about(self) -> About:
        """What it samples."""
        return self.renderer.about()


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
                address=None if self._address == LOCAL else self._address,
                runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": str(self._threads)}},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ClusterError(f"--ray {self._address}: no cluster answers there: {error}") from error
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        count = self._wanted or gpus or max(1, cores // self._threads)
        need = {"num_gpus": 1} if gpus else {"num_cpus": self._threads}
        self._make = ray.remote(Worker).options(max_restarts=0, **need)
        self.workers = [self._start() for _ in range(count)]
        say(f"Ray: {count} workers, each on {'a GPU' if gpus else f'{self._threads} core(s)'}")
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            self._ray.kill(worker)
        self._ray.shutdown()

    def about(self) -> About:
        """What the workers sample. Raises: HostError, WorkflowError; ClusterError if no worker starts."""
        return self._get(self.workers[0].about.remote())

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Images]]:
        """Each unit with its images, as they come. A unit whose worker died goes to another one.

        Raises: HostError as in one process; ClusterError for a unit whose workers died MOST_FAILURES times.
        """
        ray = self._ray
        waiting = deque(sorted(units, key=lambda unit: (unit.prompts, unit.seed)))
        failures: dict[Unit, int] = {}
        running: dict[Any, tuple[Unit, Any]] = {}
        while waiting or running:
            for worker in self.workers:
                while waiting and sum(each is worker for _, each in running.values()) < IN_FLIGHT:
                    unit = waiting.popleft()
                    running[worker.sample.remote(unit)] = (unit, worker)
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            unit, worker = running.pop(done)
            try:
                images = self._get(done)
            except ray.exceptions.RayActorError:
                failures[unit] = failures.get(unit, 0) + 1
                if failures[unit] >= MOST_FAILURES:
                    raise ClusterError(f"{MOST_FAILURES} workers died on the same unit: {unit.name}") from None
                waiting.appendleft(unit)
                if worker in self.workers:
                    say("Ray: a worker died; another one takes its place")
                    self.workers[self.workers.index(worker)] = self._start()
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

    def _start(self) -> Any:
        return self._make.remote(*self._arguments)
