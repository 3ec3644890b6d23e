"""Runs of a tiny model by ComfyUI's KSampler and by our sampler, with the count of what a modulation table did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from tests.nodes.families.oracles import Bench, randn

STEPS = 4
SIGMAS = (1.0, 0.8, 0.5, 0.2, 0.0)


@dataclass
class Runs:
    """Runs of a bench. Fields: counts, of the table of each run; None for a run without one."""

    made: Bench
    counts: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, monkeypatch, made: Bench) -> Runs:
        """The runs of a bench in one test."""
        runs, patching = cls(made), made.of("comfyui.patching")
        make = patching._modulation

        def noted(run, *args):
            table = make(run, *args)
            runs.counts.append(run.modulation)
            return table

        monkeypatch.setattr(patching, "_modulation", noted)
        return runs

    @property
    def layers(self) -> list[Any]:
        """The modulation layers' linear layers."""
        return [layer.linear for layer in self.made.of("comfyui.modulation").layers_of(self.made.model.model)]

    def with_node(self, model=None, limit: int = 512, node_id: str | None = None):
        """A MODEL from PrecomputeModulation."""
        node = self.made.of("caching").PrecomputeModulation()
        return node.apply(model or self.made.model, limit, node_id)[0]

    def ksampler(self, model=None, positive=None, negative=None, sampler: str = "euler", **more: Any) -> Tensor:
        """The latent of ComfyUI's sampler."""
        latent = torch.zeros(self.made.batch, *self.made.latent.shape[1:])
        given = dict(seed=5, disable_pbar=True, **more)
        texts = positive or self.made.prompt(1), negative or self.made.prompt(3)
        noise = randn(tuple(latent.shape), 5)
        return comfy.sample.sample(
            model or self.made.model, noise, STEPS, self.made.cfg, sampler, "simple", *texts, latent, **given
        )

    def ours(self, model=None, positive=None, negative=None, solver: str = "euler") -> Tensor:
        """The latent of our sampler, which makes a table by itself once our wrappers are on the MODEL."""
        clone, made = (model or self.made.model).clone(), self.made
        made.of("comfyui.patching").install(clone)
        sampling = made.of("comfyui.run.sampling")
        return sampling.sample_flow(
            clone,
            positive or made.prompt(1),
            negative or made.prompt(3),
            sampling.prepare({"samples": torch.zeros(made.batch, *made.latent.shape[1:])}, 5),
            seed=5,
            cfg=made.cfg,
            solver=solver,
            sigmas=torch.tensor(SIGMAS, dtype=torch.float64),
            callback=lambda *_: None,
        )

    def without(self, monkeypatch, run: Callable[[], Tensor]) -> Tensor:
        """What a run gives without any table."""
        with monkeypatch.context() as patched:
            patched.setattr(self.made.of("comfyui.patching"), "_modulation", lambda *args: None)
            return run()


def assert_same(runs: Runs, monkeypatch, run: Callable[[], Tensor], computed: dict[str, int] | None = None) -> Any:
    """A run has the bits of the run without a table; returns its count. Args: computed, calls by reason."""
    plain = runs.without(monkeypatch, run)
    assert torch.equal(run(), plain)
    count = runs.counts[-1]
    assert dict(count.computed) == (computed or {}), str(count)
    assert count.served or computed, str(count)
    assert plain.isfinite().all()
    return count
