"""The run: images to edit, edits of all methods, the choice of settings."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from attributes.world import arrange, draw_image
from training.render import Renderer

from .edits import CHOOSE, KINDS, Edit, sample_edits
from .measures import KEPT, is_right, measure
from .methods import ANEW, DEFAULTS, METHODS, SOURCE_CFG, STEPS, Method, Sampler, Settings, make_batch, rows_of
from .store import Store

BATCH, CANDIDATES = 20, 16  # edits of all kinds, images of one kind that are sampled together
Row = dict  # what `measure` returns


@dataclass(frozen=True)
class Sources:
    """Images to edit, the kinds in turn. Fields: latents [N, C, H, W]; images [N, H, W, 3], uint8; refused, by kind."""

    edits: list[Edit]
    latents: torch.Tensor
    images: torch.Tensor
    refused: dict[str, int]


@dataclass(frozen=True)
class Job:
    """A method with settings. Fields: label, its name in the tables."""

    method: Method
    settings: Settings
    label: str = ""

    @property
    def key(self) -> list:
        """What the store names it by."""
        return [self.method.name, sorted(self.settings.items())]


class Progress:
    """Prints what is done and the time left. Args: total, rows of the transformer that are to be computed."""

    def __init__(self, sampler: Sampler, total: int):
        self.sampler, self.total = sampler, total
        self.first, self.start, self.cpu = sampler.rows, time.monotonic(), time.process_time()

    def show(self, what: str) -> None:
        """Print a line."""
        done = self.sampler.rows - self.first
        spent = time.monotonic() - self.start
        left = spent / done * max(0, self.total - done) if done else 0.0
        cpu = (time.process_time() - self.cpu) / 60
        print(f"{what}: {done} of about {self.total} rows, {cpu:.1f} CPU min, {left / 60:.1f} min left", flush=True)


class Run:
    """One model's run over a store."""

    def __init__(self, sampler: Sampler, store: Store):
        self.sampler, self.store = sampler, store

    def sources(self, purpose: str, number: int) -> Sources:
        """Sample images to edit, until `number` of each kind are right in everything."""
        progress = Progress(self.sampler, number * len(KINDS) * 2 * STEPS * 6 // 5)
        by_kind, refused = {}, {}
        for kind in KINDS:
            candidates, found, refused[kind] = sample_edits(purpose, kind), [], 0
            while len(found) < number:
                edits = list(itertools.islice(candidates, CANDIDATES))
                made = self.store.get(
                    ["source", SOURCE_CFG, *(e.texts for e in edits)], lambda e=edits: self._sample(e)
                )
                for edit, latent, image in zip(edits, made["latents"], made["images"], strict=True):
                    if len(found) == number:
                        break
                    if is_right(image.numpy(), edit.source):
                        found.append((edit, latent, image))
                    else:
                        refused[kind] += 1
                progress.show(f"images to edit, {purpose}, {kind} {len(found)} of {number}")
            by_kind[kind] = found
        flat = [by_kind[kind][index] for index in range(number) for kind in KINDS]
        edits, latents, images = zip(*flat, strict=True)
        return Sources(list(edits), torch.stack(latents), torch.stack(images), refused)

    def _sample(self, edits: Sequence[Edit]) -> dict[str, torch.Tensor]:
        latents = self.sampler.sample(edits)
        return {"latents": latents, "images": self.sampler.decode(latents)}

    def edit(self, sources: Sources, jobs: Sequence[Job]) -> Iterator[tuple[Job, int, np.ndarray]]:
        """Edit all images by all jobs, those of one method together.

        Yields: job, index of a batch's first image, the edited images [B, H, W, 3], uint8.
        """
        groups = [list(group) for _, group in itertools.groupby(jobs, lambda job: job.method.name)]
        starts = range(0, len(sources.edits), BATCH)
        todo = [
            rows_of(job.method, job.settings) * len(sources.edits[start : start + BATCH])
            for start in starts
            for job in jobs
            if not self.store.has(self._key(sources, start, job))
        ]
        progress = Progress(self.sampler, sum(todo) * 5 // 4)
        for start, group in itertools.product(starts, groups):
            part = slice(start, start + BATCH)
            batch = make_batch(self.sampler, sources.edits[part], sources.latents[part])
            for job in group:
                made = self.store.get(
                    self._key(sources, start, job),
                    lambda job=job, batch=batch: {
                        "images": self.sampler.decode(job.method.run(self.sampler, batch, **job.settings))
                    },
                )
                yield job, start, made["images"].numpy()
            progress.show(f"{group[0].method.name}, images {start + 1} to {start + len(batch.edits)}")

    @staticmethod
    def _key(sources: Sources, start: int, job: Job) -> list:
        return [*job.key, SOURCE_CFG, *(edit.texts for edit in sources.edits[start : start + BATCH])]

    def choose(self, number: int) -> tuple[list[Job], list[dict]]:
        """Choose the settings of each method on edits of their own.

        The best settings have the most edits that are right and keep the rest; then the most that are right.
        Returns: the jobs to measure, FlowEdit with the node's defaults first and, last, new images of the target's
            prompt, which keep nothing on purpose; the figures of all settings.
        """
        sources = self.sources(CHOOSE, number)
        jobs = [Job(method, settings) for method in METHODS for settings in method.choices]
        rows: list[list[Row]] = [[] for _ in jobs]
        for job, start, images in self.edit(sources, jobs):
            rows[jobs.index(job)] += measured(sources, start, images)
        tried, chosen = [], []
        for method in METHODS:
            options = [(job, each) for job, each in zip(jobs, rows, strict=True) if job.method is method]
            best = max(options, key=lambda option: _merit(option[1]))[0]
            chosen.append(Job(method, best.settings, method.name))
            for job, each in options:
                by_kind = [each[index :: len(KINDS)] for index in range(len(KINDS))]
                both = {kind: _both(part) for kind, part in zip(KINDS, by_kind, strict=True)}
                figures = {"both": _both(each), "right": sum(row["right"] for row in each), "edits": len(each)}
                tried.append({"method": method.name, **job.settings, **figures, "both by kind": both})
        first = METHODS[0]
        if chosen[0].settings != DEFAULTS:
            chosen = [Job(first, DEFAULTS, f"{first.name}, defaults"), *chosen]
        return [*chosen, Job(METHODS[-1], ANEW, "new image")], tried


def reference(renderer: Renderer, edits: Sequence[Edit]) -> list[Row]:
    """Measure exact edits: both scenes drawn, encoded and decoded. What they do not keep, the VAE does not."""
    rows = []
    for edit in edits:
        pair = [draw_image(scene, arrange(scene, random.Random(0))) for scene in (edit.source, edit.target)]
        images = (255 * renderer.through_vae(torch.from_numpy(np.stack(pair)))).round().to(torch.uint8)
        rows.append(measure(edit, *images.numpy()))
    return rows


def measured(sources: Sources, start: int, images: np.ndarray) -> list[Row]:
    """Measure a batch of edits. Args: start, index of its first image."""
    edits, before = sources.edits[start:], sources.images[start:].numpy()
    return [measure(edit, old, new) for edit, old, new in zip(edits, before, images, strict=False)]


def _both(rows: Sequence[Row]) -> int:
    return sum(row["right"] and row["kept"] >= KEPT for row in rows)


def _merit(rows: Sequence[Row]) -> tuple[int, int, float]:
    return _both(rows), sum(row["right"] for row in rows), median(row["kept"] for row in rows)
