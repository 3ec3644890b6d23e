"""Several processes that train one model together, each on its share of every batch.

A step of the small model is a chain of small operations, which threads barely speed up; one process to a core does.
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
class Team:
    """One member's place: `rank` of `size`; the first one keeps the run's files."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Put every member's mean into `tensors`, the same ones in each process."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


SOLO = Team()


def gather(size: int, work: Callable[..., object], *arguments) -> None:
    """Call `work(*arguments, team)` in `size` processes, in this one if that is all.

    Raises: what a member raised, after the others were ended.
    """
    if size == 1:
        work(*arguments, SOLO)
        return
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_join, (size, Path(folder) / "meet", work, arguments), nprocs=size)


def _join(rank: int, size: int, meeting: Path, work: Callable[..., object], arguments: tuple) -> None:
    # A job started in the background ignores interrupts, and its members would outlive a parent that was killed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _connected(rank, size, meeting):
        work(*arguments, Team(rank, size))


@contextmanager
def _connected(rank: int, size: int, meeting: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
