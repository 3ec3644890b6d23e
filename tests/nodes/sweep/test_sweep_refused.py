"""What SweepXY refuses before it samples."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.families.node_cells import NodeBench
from tests.nodes.families.node_cells import Vae as FrameVae
from tests.nodes.model_calls import Calls
from tests.nodes.sweep.helpers import BASE, boosted, empty, skipped, sweep, texts


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(x="none"), "y: both axes are none. Choose another axis"),
        (dict(y="cfg", y_values="1"), "y: both axes are cfg"),
        (dict(x="melt"), "x: 'melt' is unknown"),
        (dict(x_values=3), "x_values: 3 is not a text"),
        (dict(x_values=""), "x_values: cfg: it holds no value. Write numbers"),
        (dict(x_values="1, two"), "x_values: cfg: 'two' is not a number"),
        (dict(x_values="1-3"), r"x_values: cfg: '1-3' does not say how many values. .*1-3 \(5\)"),
        (dict(x_values="101"), "x_values: cfg: 101 is out of range. Write numbers from 0 to 100"),
        (dict(y="steps", y_values="4, 2.5"), "y_values: steps: 2.5 is not whole"),
        (dict(y="steps", y_values="0"), "y_values: steps: 0 is out of range. Write numbers from 1 to 10000"),
        (dict(y="seed", y_values="-1"), "y_values: seed: -1 is out of range"),
        (dict(y="shift", y_values="200"), "y_values: shift: 200 is out of range"),
        (dict(y="shift", y_values="0, 1e-9"), "y_values: shift: 1e-09 is out of range. Write 0, or numbers from 0.01"),
        (dict(y="solver", y_values="euler, ddim"), "y_values: solver: 'ddim' is unknown. Write names of euler, heun"),
        (
            dict(x="strength"),
            "x: strength acts on the last block control of the model, and the model has none. Put Text",
        ),
        (dict(x="blocks", x_values="0"), "x: blocks acts on the last block control .* has none"),
        (dict(y="window", y_values="0-1"), "y: window acts on the last block control .* has none"),
        (dict(x_values="1-9 (21)", y="steps", y_values="1-20 (20)"), "x_values: 21 columns and 20 rows are 420 cells"),
        (dict(x_values="1-9 (401)"), "x_values: cfg: .*has 401 values. Write at most 400"),
        (dict(denoise=0.0), "denoise: 0: nothing would be sampled"),
        (dict(steps=0), "steps: 0. Set a number from 1"),
        (dict(seed_step=-1), "seed_step: -1. Set a number from 0"),
        (dict(latent={"samples": torch.ones(1, 4, 8, 8)}), "latent_image: .*4 channels.*16"),
        (dict(latent={"samples": torch.full((1, 16, 8, 8), torch.nan)}), "latent_image: it holds values that are not"),
    ],
)
def test_wrong_inputs_are_refused_before_sampling(node, model, changed, words):
    with Calls(model) as calls, pytest.raises(ValueError, match=f"SweepXY: {words}"):
        sweep(node, model, **changed)
    assert calls.count == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(x="strength", x_values="1, 11"), "x_values: strength: 11 is out of range. Write numbers from 0 to 10"),
        (dict(x="blocks", x_values="0 | 9"), "x_values: blocks: block 9 does not exist.*blocks 0 to 1"),
        (dict(x="blocks", x_values="0 |"), "x_values: blocks: part 2 of 2 is empty"),
        (dict(x="blocks", x_values="0:11"), "x_values: blocks: block 0 has strength 11. Write one from 0 to 10"),
        (dict(x="window", x_values="0-2"), "x_values: window: the end of '0-2' is not from 0 to 1"),
        (dict(x="window", x_values="0.5"), "x_values: window: '0.5' is not a window. Write start-end"),
        (dict(x="window", x_values="0.6-0.5"), "x_values: window: '0.6-0.5' runs backwards"),
    ],
)
def test_wrong_values_of_a_control_are_refused_before_sampling(node, nodes, model, changed, words):
    with Calls(model) as calls, pytest.raises(ValueError, match=f"SweepXY: {words}"):
        sweep(node, boosted(nodes, model), **changed)
    assert calls.count == 0


def test_a_strength_is_refused_where_the_last_control_is_no_boost(node, nodes, model):
    words = "SweepXY: x: the last block control of the model is a skip, which has no strength. Make Text Boost"
    with pytest.raises(ValueError, match=words):
        sweep(node, skipped(nodes, boosted(nodes, model)), x="strength", x_values="1")
    with pytest.raises(ValueError, match="SweepXY: x_values: blocks: '0:2' has a strength"):
        sweep(node, skipped(nodes, model), x="blocks", x_values="0:2")


def test_a_latent_that_still_holds_noise_is_refused(node, nodes, model):
    half = nodes["FlowMatchingSampler"]().sample(model, *texts(), empty(), **BASE, end_step=1)[0]
    with pytest.raises(ValueError, match="SweepXY: latent_image: it comes from a run that ended early"):
        sweep(node, model, latent=half)


def test_a_model_without_flow_matching_is_refused(node, model):
    other = model.clone()
    other.add_object_patch("model_sampling", torch.nn.Identity())
    with pytest.raises(ValueError, match="SweepXY: model: .* is not a flow-matching model"):
        sweep(node, other)


@pytest.mark.parametrize("name", ["Wan 2.1"])
def test_a_boost_that_cancels_in_cross_attention_is_refused_as_by_its_node(pack, name):
    bench = NodeBench.of_pack(pack, name)
    on = boosted(bench.nodes, bench.model, mode="attention", strength=1.0)
    axes = dict(x="strength", x_values="0, 1, 2", y="none", y_values="")
    with pytest.raises(ValueError, match="SweepXY: x: .*cross-attention.*cancels. Set the mode of Text Boost"):
        bench.nodes["SweepXY"]().sweep(on, bench.prompt(1), bench.prompt(3), bench.empty, FrameVae(), **BASE, **axes)
