"""ComfyUI's TorchCompileModel on our MODEL: one graph, the same image, controls that come and go within a run.

The backend runs the captured graph as it is, so that no test waits for a compiler.
"""

from __future__ import annotations

import comfy.patcher_extension
import comfy_extras.nodes_slg
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from mmdit_core.flow.window import Window
from tests.core.models.tiny import TOLERANCE, error


@pytest.fixture(autouse=True)
def as_nodes_run():
    torch._dynamo.reset()
    counters.clear()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(bench, tiny_file):
    """Of its own, because torch keeps compiled code with the layers."""
    return bench.module("comfyui.loading.model").load_model(str(tiny_file))


def controls(*given):
    """Attach block controls. Args: given, their fields, with the window's as a tuple."""

    def attached(bench, model):
        patching = bench.module("comfyui.patching")
        made = [patching.BlockControl(**{**fields, "window": Window(*fields.get("window", ()))}) for fields in given]
        return patching.attach(model, made)

    return attached


def block_prompt(bench, model):
    prompt = [[bench.negative[0][0][:, :11], {}]]
    given = dict(conditioning=prompt, blocks="0, 1", start_percent=0.3, end_percent=0.8)
    return bench.module("control").BlockPrompt().apply(model, **given)[0]


def skip_layer_guidance(bench, model):
    return comfy_extras.nodes_slg.SkipLayerGuidanceDiT.execute(
        model, double_layers="1", single_layers="", scale=2.5, start_percent=0.2, end_percent=0.6, rescaling_scale=0.0
    ).result[0]


CASES = {
    "nothing": lambda bench, model: model,
    "skip": controls(dict(action="skip", blocks=(1,))),
    "skip, from the middle on": controls(dict(action="skip", blocks=(0, 1), branch="negative", window=(0.5, 1.0))),
    "boost that fades": controls(
        dict(action="boost", blocks=(0,), strength=4.0, mode="value", window=(0.0, 1.0, "out"))
    ),
    "boost, attention, at first": controls(
        dict(action="boost", blocks=(0, 1), strength=4.0, mode="attention", window=(0.0, 0.4))
    ),
    "two, one after the other": controls(
        dict(action="disable", blocks=(0, 1), window=(0.0, 0.3)), dict(action="skip", blocks=(1,), window=(0.6, 1.0))
    ),
    "a block prompt": block_prompt,
    "skip-layer guidance": skip_layer_guidance,
}


@pytest.mark.parametrize("name", CASES)
def test_the_node_changes_no_image_and_breaks_no_graph(bench, model, name):
    changed, backend = CASES[name](bench, model), CompileCounter()
    compiled = TorchCompileModel.execute(changed, backend).result[0]
    made = bench.run(model=compiled)
    assert backend.frame_count > 0 and not counters["graph_break"]
    assert error(made, bench.run(model=changed)) <= TOLERANCE
    assert name == "nothing" or error(made, bench.run(model=model)) > 100 * TOLERANCE
    captured = backend.frame_count
    assert torch.equal(bench.run(model=compiled), made)
    assert backend.frame_count == captured, "a second run captured everything again"


def test_a_count_of_skipped_blocks_is_the_same_compiled(bench, model):
    """The block_calls is a side effect within the graph."""
    patching, counts = bench.module("comfyui.patching"), []
    changed = CASES["skip, from the middle on"](bench, model)

    def note(executor, *args, **kwargs):
        run = executor.class_obj.model_options["transformer_options"]
        out = executor(*args, **kwargs)
        counts.append(run[patching.RUN].block_calls)
        return out

    for given in (changed, TorchCompileModel.execute(changed, CompileCounter()).result[0]):
        clone = given.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "test", note)
        bench.run(model=clone)
    assert counts[0].skipped > 0 and counts[0] == counts[1]
