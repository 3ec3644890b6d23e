"""The solver run: the sigmas that it announces, and the history that it starts from."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import pytest
import torch

from mmdit_core.solvers import SOLVERS

STEPWISE = [name for name, method in SOLVERS.items() if not method.adaptive]


@pytest.fixture
def sigmas_of(bench, monkeypatch):
    """The sigmas that a run of the sampler announces, and those that ComfyUI's guider then gets."""
    solver = bench.module("comfyui.run.solver")

    def run(latent=None, **changed):
        runs, got = [], []
        original = comfy.samplers.CFGGuider.predict_noise

        def predict_noise(self, x, timestep, *args, **kwargs):
            got.append(float(timestep.max()))
            return original(self, x, timestep, *args, **kwargs)

        class Noted(solver.SolverRun):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                runs.append(self)

        with monkeypatch.context() as patch:
            patch.setattr(comfy.samplers.CFGGuider, "predict_noise", predict_noise)
            patch.setattr(bench.module("sampler.node"), "SolverRun", Noted)
            bench.all(latent, **changed)
        announced = runs[0].evaluated
        return None if announced is None else list(announced), got

    return run


@pytest.mark.parametrize("solver", STEPWISE)
def test_the_announced_sigmas_are_those_of_the_model_calls(sigmas_of, solver):
    for changed in ({}, {"guidance": "cfg_zero_star", "zero_steps": 2}, {"start_step": 2}, {"schedule": "karras"}):
        announced, got = sigmas_of(solver=solver, **changed)
        assert announced == got and len(got) >= 4


def test_a_reversible_solver_that_continues_makes_no_first_call(bench, sigmas_of):
    half = bench.all(solver="leapfrog", end_step=3)[0]
    announced, got = sigmas_of(half, solver="leapfrog", start_step=3)
    assert announced == got and len(got) == 3


def test_an_adaptive_solver_announces_nothing(sigmas_of):
    announced, got = sigmas_of(solver="bosh3", tolerance=0.1)
    assert announced is None and got


def test_guidance_goes_by_the_sigma_of_each_call(bench):
    """A midpoint is evaluated between two steps: on the other side of the window's end than the step's start."""
    with bench.rows() as rows:
        bench.run(steps=2, solver="midpoint", cfg_end=0.4)
    assert rows == [2, 2, 1, 1]
    with bench.rows() as rows:
        bench.run(steps=2, solver="midpoint", cfg_end=0.2)
    assert rows == [2, 1, 1, 1]


@pytest.mark.parametrize(("first", "second"), [("ab4", "dpmpp_2m"), ("dpmpp_2m", "ab2"), ("ab2", "leapfrog")])
def test_a_solver_never_continues_from_another_solvers_history(bench, first, second):
    resume = bench.module("comfyui.run.resume")
    half = bench.all(solver=first, end_step=3)[0]
    assert half[resume.KEY].history
    anew = {**half, resume.KEY: replace(half[resume.KEY], history=())}
    assert torch.equal(bench.run(half, solver=second, start_step=3), bench.run(anew, solver=second, start_step=3))
    if first != "ab2":  # with its own history a solver does continue: the check is not one that drops all
        assert not torch.equal(bench.run(half, solver=first, start_step=3), bench.run(anew, solver=first, start_step=3))


def test_sigmas_that_differ_by_rounding_are_the_same_flow(bench):
    resume = bench.module("comfyui.run.resume")
    sigmas = torch.linspace(1, 0, 7, dtype=torch.float64)
    flow = resume.flow_of(bench.model, bench.positive, sigmas)
    assert flow == resume.flow_of(bench.model, bench.positive, sigmas.float().flip(0))
    assert flow != resume.flow_of(bench.model, bench.positive, sigmas * 0.999)
    assert flow != resume.flow_of(bench.model, bench.positive, sigmas[1:])
    assert flow != resume.flow_of(bench.model, bench.negative, sigmas)
