"""The driver of a Ray cluster on a stand-in for Ray: workers that die, that never start, and that differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.cluster import Cluster, ClusterError
from evaluation.engine.host import HostError, ModelFacts
from evaluation.engine.renderer import About, Source
from evaluation.study.cells import units

exceptions = pytest.importorskip("ray.exceptions")
ABOUT = About("m", ModelFacts("SD3, SD3.5", "SD3", 8, 0), {}, {}, {"m": "1"}, {"torch": "2"}, Path("user"))
WANTED = units(None, 0, 6, 1, (0,))


@dataclass
class Worker:
    """An actor: `starts` an About, an error or None for one that waits for a place; `dies` on its n-th unit."""

    starts: Any = ABOUT
    dies: int = 99
    error: Exception = field(default_factory=exceptions.ActorDiedError)
    done: int = 0

    def __post_init__(self):
        self.about = SimpleNamespace(remote=lambda: Reference(lambda: self.starts))
        self.sample = SimpleNamespace(remote=lambda unit: Reference(lambda: self._sample(unit)))

    def _sample(self, unit):
        self.done += 1
        return self.error if self.done >= self.dies else [unit]


class Reference:
    def __init__(self, make):
        self.make = make


class Ray:
    """Runs what is waited for."""

    exceptions = exceptions

    def __init__(self):
        self.killed = []

    def wait(self, references, num_returns, timeout):
        for each in reversed(references):  # workers that start come last
            if not hasattr(each, "value"):
                each.value = each.make()
            if each.value is not None:
                return [each], []
        raise AssertionError("it would wait forever")

    def get(self, reference):
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, worker):
        self.killed.append(worker)


def cluster_of(*workers):
    """A cluster whose workers, and those that take their places, are these."""
    cluster, left = Cluster(Source(), ()), list(workers)
    cluster._ray = Ray()
    cluster._make = SimpleNamespace(remote=lambda *_: left.pop(0))
    return cluster


def start(cluster, number):
    for _ in range(number):
        cluster._start()
    return cluster.about()


@pytest.mark.parametrize("error", [exceptions.ActorDiedError(), exceptions.OutOfMemoryError("memory")])
def test_the_units_of_a_worker_that_died_are_made_by_others(error, capsys):
    cluster = cluster_of(Worker(dies=2, error=error), Worker(), Worker())
    start(cluster, 2)
    assert sorted(unit.prompts for unit, _ in cluster.run(WANTED)) == [unit.prompts for unit in WANTED]
    assert "a worker died" in capsys.readouterr().out and len(cluster._ray.killed) == 1


def test_no_unit_waits_for_a_worker_that_has_no_place():
    """A machine left the cluster: the worker that takes the dead one's place never starts."""
    cluster = cluster_of(Worker(dies=1), Worker(), Worker(starts=None))
    start(cluster, 2)
    assert len(list(cluster.run(WANTED))) == len(WANTED)


def test_a_unit_that_kills_each_worker_ends_the_study_with_the_reason():
    cluster = cluster_of(*(Worker(dies=1, error=exceptions.OutOfMemoryError("no memory left")) for _ in range(9)))
    start(cluster, 1)
    with pytest.raises(ClusterError, match=r"3 workers died on the same unit: baseline. no memory left"):
        list(cluster.run(WANTED))


def test_workers_that_cannot_start_end_the_study():
    cluster = cluster_of(*(Worker(starts=exceptions.ActorDiedError()) for _ in range(9)))
    with pytest.raises(ClusterError, match="3 workers did not start"):
        start(cluster, 2)


def test_an_error_that_the_user_can_mend_is_the_same_as_in_one_process():
    error = exceptions.RayTaskError("about", "traceback", HostError("no such file"))
    with pytest.raises(HostError, match="no such file"):
        start(cluster_of(Worker(starts=error)), 1)


def test_machines_with_other_files_are_refused():
    other = About("m", ABOUT.facts, {}, {}, {"m": "2"}, {"torch": "2"}, Path("user"))
    cluster = cluster_of(Worker(), Worker(starts=other))
    start(cluster, 2)
    with pytest.raises(ClusterError, match="differ"):
        list(cluster.run(WANTED * 9))


@pytest.mark.parametrize(
    ("resources", "workers", "words"),
    [
        ({"CPU": 4.0}, 3, "has 4 cores.*at most 2"),
        ({"CPU": 1.0}, 0, "has 1 cores.*fewer threads"),
        ({"CPU": 9.0, "GPU": 1.0}, 2, "has 1 GPUs.*at most 1"),
    ],
)
def test_more_workers_than_the_cluster_has_room_for_are_refused(monkeypatch, resources, workers, words):
    import ray

    given = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "shutdown", lambda: given.update(address="ended"))
    with pytest.raises(ClusterError, match=words), Cluster(Source(), (), threads=2, workers=workers):
        pass
    assert given["address"] == "ended"
