"""Data-parallel training: several processes, each with its part of every batch.

A step of the small model is a sequence of small operations that threads do not speed up; processes do.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing


@dataclass(frozen=True)
class Worker:
    """Process `rank` of `size`; the main one writes the run's files."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the first process."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


SINGLE = Worker()


def run_workers(size: int, work: Callable[..., object], *arguments) -> None:
    """Call `work(*arguments, worker)` in `size` processes; in this one if size is 1.

    Raises: the error of a process, after all others are terminated.
    """
    if size == 1:
        work(*arguments, SINGLE)
        return
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_start, (size, Path(folder) / "meet", work, arguments), nprocs=size)


def _start(rank: int, size: int, meeting: Path, work: Callable[..., object], arguments: tuple) -> None:
    # A background job ignores interrupts, and its processes would continue after their parent is killed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _connected(rank, size, meeting):
        work(*arguments, Worker(rank, size))


@contextmanager
def _connected(rank: int, size: int, meeting: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
