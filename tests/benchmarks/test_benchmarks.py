"""The benchmarks: their file, their counts, and the figures that the README quotes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import peers, speed, weights
from benchmarks.peers import COMFYUI, CONTENDERS, DIFFUSERS, OURS
from benchmarks.random_file import SPARE, bytes_of, medium, need_room, random_file
from benchmarks.speed import CASES, Case, Runner, compare, ratio_of, weights_read
from benchmarks.weights import CACHED_WEIGHTS, FP8, SD3_MODELS, held
from mmdit_core import KNOWN_MODELS, FluxConfig, MMDiT, QwenImageConfig, load_checkpoint
from mmdit_core.checkpoints.keymaps import expected_shapes
from scripts import in_process
from tests.core.models.tiny import CONFIGS, LEVELS, call, inputs, random_model

ROOT = Path(__file__).parents[2]
NARROW = {
    "SD3.5 Medium": medium(2),
    "FLUX.1 dev": FluxConfig(
        64, 2, depth=1, depth_single_blocks=2, context_dim=24, pooled_dim=20, axes_dim=(4, 14, 14), guidance_embed=True
    ),
    "Qwen-Image": QwenImageConfig(64, 2, depth=2, context_dim=24, axes_dim=(8, 12, 12)),
}


def test_the_random_file_is_a_model_and_is_gone_after_an_error():
    config = medium(2)
    with pytest.raises(RuntimeError, match="in the middle"), random_file(config) as path:
        found, state = load_checkpoint(path)
        assert found == config and sum(tensor.nbytes for tensor in state.values()) == bytes_of(config)
        assert all(torch.isfinite(tensor).all() and tensor.any() for tensor in state.values())
        raise RuntimeError("in the middle")
    assert not path.parent.exists()


def test_24_blocks_are_sd35_medium():
    assert medium(24) == KNOWN_MODELS["SD3.5 Medium"]
    assert 4.5e9 < bytes_of(medium(24)) < 5e9


def test_a_disk_without_room_is_reported_before_it_is_full(tmp_path):
    need_room(str(tmp_path), -SPARE)
    with pytest.raises(SystemExit, match=r"takes 1000000000\.0 GB .* Make room, or set TMPDIR"):
        need_room(str(tmp_path), 10**18)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if not config.guidance_embed])
@torch.inference_mode()
def test_a_plain_step_reads_every_weight_and_a_step_with_a_cache_all_but_the_cached_ones(name):
    model, given = random_model(CONFIGS[name]), inputs()
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    once = sum(size for name, size in sizes.items() if any(part in name for part in CACHED_WEIGHTS))
    assert weights_read(model, lambda: call(model, LEVELS[1], given)) == sum(sizes.values())
    with model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, options)
        later = weights_read(model, lambda: call(model, LEVELS[1], given, options))
    assert later == sum(sizes.values()) - once


@pytest.mark.parametrize("name", SD3_MODELS)
def test_the_steps_of_every_known_model_need_at_least_30_percent_less(name):
    size = held(KNOWN_MODELS[name])
    model = MMDiT(KNOWN_MODELS[name], device="meta")
    assert size.whole == sum(2 * math.prod(tensor.shape) for tensor in model.state_dict().values())
    assert size.steps <= 0.7 * size.whole and size.table < 200e6


def test_the_page_on_performance_states_for_each_card_what_is_computed():
    lines = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    card = {line.split("GB")[0]: line for line in lines if line.startswith(("- **8 GB", "- **12 GB", "- **24 GB"))}
    large, small = held(KNOWN_MODELS["SD3.5 Large"]), held(KNOWN_MODELS["SD3.5 Large"], FP8)
    assert f"{small.whole / 1e9:.1f}" in card["- **8 "] and f"{small.steps / 1e9:.1f}" in card["- **8 "]
    assert f"{large.whole / 1e9:.1f}" in card["- **12 "] and f"{large.steps / 1e9:.1f}" in card["- **12 "]
    assert f"{(large.whole - large.steps) / 1e9:.1f}" in card["- **24 "]


def test_the_page_on_performance_holds_the_table_of_files_as_it_is_printed(capsys):
    weights.print_files()
    assert capsys.readouterr().out in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_a_ratio_is_the_median_of_all_rounds_between_the_medians_of_the_processes():
    ours = [[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]]
    assert ratio_of(ours, [[2 * value for value in process] for process in ours]) == "0.500 (0.500 to 0.500)"
    assert ratio_of(ours, [[1.0] * 3] * 2) == "4.500 (2.000 to 5.000)"
    assert ratio_of([[3.0], [2.0], [4.0]], [[1.0]] * 3) == "3.000 (2.000 to 4.000)"


def test_in_a_round_all_contenders_run_each_figure_one_after_the_other(monkeypatch):
    """With a clock that each call advances."""
    log, now = [], [0.0]
    order = ("ComfyUI", "diffusers", "ours")
    taken = {"ComfyUI": (6, 8, 7), "diffusers": (1, 2, 4), "ours": (5, 3, 9)}

    class Runner:
        def __init__(self, name):
            self.name = name

        def start(self):
            log.append((self.name, "start"))
            now[0] += 100  # outside of what is timed

        def step(self, index):
            self.take("first" if index == 0 else "step", taken[self.name][index])

        def forward(self, index):
            self.take("forward", taken[self.name][2])

        def take(self, what, seconds):
            log.append((self.name, what))
            now[0] += seconds

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    seconds = speed.timed({name: Runner(name) for name in order}, order, speed.FIGURES)
    assert [entry for entry in log if entry[1] != "start"] == [
        (name, what) for what in ("forward", "step", "first") for name in order
    ]
    for name, (first, step, forward) in taken.items():
        assert seconds[name] == {speed.FORWARD: forward, speed.STEP: step, speed.FIRST: first}
    assert list(speed.timed({name: Runner(name) for name in order}, order, (speed.STEP,))["ours"]) == [speed.STEP]


@pytest.fixture
def in_this_process():
    """ComfyUI's modules can be imported."""
    in_process.prepare("--cpu")


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.usefixtures("in_this_process")
@torch.inference_mode()
def test_in_a_run_all_contenders_compute_the_same_and_ours_reads_the_fewest_weights(name):
    case = Case(name, NARROW[name], 16, torch.float32, 1, 1)
    torch.manual_seed(0)
    state = {key: 0.1 * torch.randn(shape) for key, shape in expected_shapes(case.config).items()}
    for key, tensor in state.items():
        if tensor.ndim == 1 and not key.endswith(".bias"):
            tensor += 1  # a norm's weights: around 0 they would hide the rotations of q and k
    made, read = {}, {}
    for contender in CONTENDERS:
        runner = Runner(contender, case, state)
        runner.start()
        steps = made[contender] = [runner.step(0)]
        read[contender] = weights_read(runner.model, lambda run=runner, steps=steps: steps.append(run.step(1)))
        steps.append(runner.forward(1))
    compare(made, case.dtype)
    assert read[OURS] < read[COMFYUI] == read[DIFFUSERS]
    for contender in (COMFYUI, DIFFUSERS):
        with pytest.raises(SystemExit, match=f"ours and {contender} differ"):
            compare({**made, contender: [1.01 * each for each in made[contender]]}, case.dtype)


def test_the_narrow_models_and_the_table_are_of_every_family():
    families = set(peers.FAMILIES)
    assert {type(config) for config in NARROW.values()} == {type(case.config) for case in CASES} == families


def test_the_table_covers_stacks_and_the_whole_at_all_sizes():
    assert {case.tokens for case in CASES} == {256, 1024, 4096}
    assert {case.dtype for case in CASES} == {torch.bfloat16, torch.float32}
    whole = {case.dtype for case in CASES if case.config == KNOWN_MODELS["SD3.5 Medium"]}
    assert whole == {torch.bfloat16, torch.float32}
    for case in CASES:
        assert case.config.hidden_size in {1536, 2432, 3072}, "full width"
