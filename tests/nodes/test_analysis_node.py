"""BlockAnalysis: in process on a tiny random model, its figures, and on the shipped model in a live ComfyUI."""

from __future__ import annotations

import io
import json
import sys
import time

import comfy.model_management
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.client import ComfyUIError, Interrupted
from tests.nodes.model_calls import Calls

CALLS = 3  # model calls of one image: 3 steps, both branches in one batch


@pytest.fixture(scope="module")
def node_class(pack):
    return pack.NODE_CLASS_MAPPINGS["BlockAnalysis"]


@pytest.fixture(scope="module")
def blocks(pack):
    return sys.modules[f"{pack.__name__}.nodes.control"]


@pytest.fixture
def model(pack, tiny_file):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(tiny_file))


def test_the_bar_counts_the_steps_of_samplings_and_of_those_reused(pack):
    progress = sys.modules[f"{pack.__name__}.nodes.comfyui.frontend.progress"].Progress(9, "4")
    for step in (1, 2, 3):
        progress.step()
        assert progress._bar.current == step
    for done in (3, 6):  # the sampling that was counted step by step, and one that is reused
        progress.finish(3, lambda: Image.new("RGB", (8, 8)))
        assert progress._bar.current == done


def test_the_first_preview_is_shown_even_on_a_machine_that_has_just_started(pack, monkeypatch):
    module, drawn = sys.modules[f"{pack.__name__}.nodes.comfyui.frontend.progress"], []
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.05)  # seconds since the start
    module.Progress(3, "4").finish(3, lambda: drawn.append(1) or Image.new("RGB", (8, 8)))
    assert drawn


class Vae:
    """A VAE that decodes to the first three channels of the latent, enlarged."""

    def decode(self, latent):
        return (latent[:, :3] / 6 + 0.5).clamp(0, 1).movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)


def texts(seed=1):
    torch.manual_seed(seed)
    return [[[torch.randn(1, 20, 4096), {"pooled_output": torch.randn(1, 2048)}]] for _ in range(2)]


def skip(blocks, model, which):
    given = dict(branch="negative", start_percent=0.0, end_percent=1.0)
    return blocks.BlockSkip().apply(model, blocks=which, **given)[0]


def empty(batch=1):
    return {"samples": torch.zeros(batch, 16, 8, 8)}


def analyse(node, model, *, conds=None, latent=None, **changed):
    given = dict(operations="all", blocks="all", strength=2.0, seed=7, seeds=1, steps=3, cfg=3.0)
    given |= dict(speedup=1.3, early_late=False)
    sheet, plot, report, *_ = node.analyse(model, *(conds or texts()), latent or empty(), Vae(), **{**given, **changed})
    return sheet, plot, json.loads(report)


def test_the_baseline_is_sampled_once_for_each_seed_and_every_cell_once(node_class, model):
    with Calls(model) as calls:
        _, _, report = analyse(node_class(), model, seeds=2)
    assert calls.count == 2 * (1 + 3 * 2) * CALLS
    cells = [(cell["operation"], cell["block"]) for cell in report["cells"]]
    assert cells == [(operation, block) for operation in ("skip", "disable", "boost") for block in (0, 1)]
    assert report["settings"]["seeds"] == [7, 8] and report["blocks"] == {"double": 2, "single": 0, "total": 2}
    for cell in report["cells"]:
        assert len(cell["latent_by_seed"]) == 2
        assert cell["latent"] == pytest.approx(np.mean(cell["latent_by_seed"]), rel=1e-4)


def test_distances_equal_those_of_images_made_with_the_control_nodes(node_class, blocks, pack, model):
    sampler = pack.NODE_CLASS_MAPPINGS["FlowMatchingSampler"]()

    def sample(patched):
        return sampler.sample(patched, *texts(), empty(), seed=7, steps=3, cfg=3.0)[0]["samples"]

    baseline = sample(model)
    given = dict(blocks="0", branch="both")
    boost = dict(strength=3.0, mode="residual", phrase="", part="all", fade="constant")
    made = {
        ("skip", "whole"): blocks.BlockSkip().apply(model, **given, start_percent=0.0, end_percent=1.0),
        ("disable", "late"): blocks.TextDisable().apply(
            model, **given, scope="onward", start_percent=0.5, end_percent=1.0
        ),
        ("boost", "early"): blocks.TextBoost().apply(model, **given, **boost, start_percent=0.0, end_percent=0.5),
    }
    _, _, report = analyse(node_class(), model, blocks="0", strength=3.0, early_late=True)
    found = {(cell["operation"], cell["window"]): cell["latent"] for cell in report["cells"]}
    assert len(found) == 9
    for key, (patched,) in made.items():
        expected = ((sample(patched) - baseline).norm() / baseline.norm()).item()
        assert found[key] == pytest.approx(expected, rel=1e-3) and expected > 1e-5, key


def test_a_run_after_a_cancel_samples_only_the_missing_cells(node_class, model):
    node = node_class()
    with (
        Calls(model, cancel_at=3 * CALLS + 2) as calls,
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        analyse(node, model)
    assert calls.count == 3 * CALLS + 2  # the baseline and two cells are done, the third was in its second step
    with Calls(model) as calls:
        resumed = analyse(node, model)
    assert calls.count == (7 - 3) * CALLS
    fresh = analyse(node_class(), model)
    assert resumed[2] == fresh[2] and torch.equal(resumed[0], fresh[0]) and torch.equal(resumed[1], fresh[1])


# Function of the pack that is running when the cancel comes -> the most calls of it, among them the rest of a row of 4.
WHEN_CANCELLED = {
    "analysis.sweep.decode_image": 1,
    "plots.contact_sheet._draw_tile": 4,
    "plots.line_plot.draw_panel": 1,
}


@pytest.mark.parametrize("running", WHEN_CANCELLED)
def test_a_cancel_while_it_decodes_or_draws_ends_the_run_there(node_class, pack, model, monkeypatch, running):
    """Drawing hundreds of images takes longer than a second."""
    module, _, name = running.rpartition(".")
    owner, calls = sys.modules[f"{pack.__name__}.nodes.{module}"], []
    function = getattr(owner, name)

    def cancelling(*given):
        calls.append(running)
        comfy.model_management.interrupt_current_processing(True)
        return function(*given)

    monkeypatch.setattr(owner, name, cancelling)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            analyse(node_class(), model)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert 1 <= len(calls) <= WHEN_CANCELLED[running]


def test_a_second_run_reuses_all_latents_and_a_wider_one_samples_only_new_cells(node_class, model):
    node = node_class()
    analyse(node, model, operations="skip")
    with Calls(model) as calls:
        analyse(node, model, operations="skip", speedup=2.0)
    assert calls.count == 0
    with Calls(model) as calls:
        analyse(node, model, operations="all")
    assert calls.count == 4 * CALLS
    with Calls(model) as calls:
        analyse(node, model, operations="boost", strength=1.5)
    assert calls.count == 2 * CALLS


def test_every_change_that_changes_the_images_discards_the_finished_latents(node_class, blocks, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    skipping = skip(blocks, model, "0")
    shifted = ModelSamplingSD3().patch(model, 2.0)[0]
    weighted = model.clone()
    weighted.add_patches({"diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (torch.ones(512, 128),)})
    torch.manual_seed(0)
    mask = {"samples": torch.randn(1, 16, 8, 8), "noise_mask": torch.ones(1, 8, 8)}
    for changed in (
        dict(model=skipping),
        dict(model=shifted),
        dict(model=weighted),
        dict(conds=texts(2)),
        dict(latent=mask),
        dict(steps=2),
        dict(cfg=4.0),
        dict(seed=8),
    ):
        node = node_class()
        analyse(node, model, operations="skip", blocks="0")
        patched = changed.pop("model", model)
        with Calls(model) as calls:
            analyse(node, patched, operations="skip", blocks="0", **changed)
        assert calls.count == 2 * changed.get("steps", CALLS), changed


def test_a_clone_of_the_model_and_equal_prompts_reuse_the_latents(node_class, model):
    node = node_class()
    analyse(node, model, operations="skip", blocks="0")
    with Calls(model) as calls:
        analyse(node, model.clone(), conds=texts(), operations="skip", blocks="0")
    assert calls.count == 0


def test_two_nodes_share_no_latents_and_the_model_is_unchanged(node_class, blocks, model):
    patched = skip(blocks, model, "1")
    before = repr(patched.model_options), repr(patched.patches), patched.patches_uuid
    _, _, report = analyse(node_class(), patched, operations="skip", blocks="0")
    assert (repr(patched.model_options), repr(patched.patches), patched.patches_uuid) == before
    assert report["settings"]["controls_on_the_model"] == [{"action": "skip", "blocks": [1], "branch": "negative"}]
    with Calls(model) as calls:
        analyse(node_class(), patched, operations="skip", blocks="0")
    assert calls.count == 2 * CALLS


def test_sheet_and_plot_are_images_of_the_right_size(node_class, model):
    sheet, plot, _ = analyse(node_class(), model, early_late=True)
    for image in (sheet, plot):
        assert image.ndim == 4 and image.shape[0] == 1 and image.shape[3] == 3 and image.dtype == torch.float32
        assert 0 <= image.min() and image.max() == 1 and image.std() > 0.05
    assert 400 < sheet.shape[2] < 2000 and 9 * 160 < sheet.shape[1] < 9 * 260
    assert plot.shape[2] == 1440 and 400 < plot.shape[1] < 800


def test_only_the_first_image_of_a_batch_is_used_and_the_report_says_so(node_class, model):
    with Calls(model) as calls:
        _, _, report = analyse(node_class(), model, latent=empty(3), operations="skip")
    assert calls.count == 3 * CALLS and any("3 images" in note for note in report["notes"])
    assert report["cells"] == analyse(node_class(), model, operations="skip")[2]["cells"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(blocks="0, 9"), "BlockAnalysis: blocks: block 9 does not exist.*blocks 0 to 1"),
        (dict(blocks=""), "BlockAnalysis: blocks: no block is named.*all"),
        (dict(speedup=0.9), "BlockAnalysis: speedup: 0.9. Set a number from 1 to 10"),
        (dict(seeds=0), "BlockAnalysis: seeds: 0. Set a number from 1 to 64"),
        (dict(steps=1, early_late=True), "BlockAnalysis: early_late: 1 step has no halves"),
        (dict(operations="melt"), "BlockAnalysis: operations: 'melt' is unknown.*skip"),
        (dict(latent={"samples": torch.ones(1, 4, 8, 8)}), "BlockAnalysis: latent_image: .*4 channels.*16"),
    ],
)
def test_wrong_inputs_are_refused_before_sampling(node_class, model, changed, words):
    with Calls(model) as calls, pytest.raises(ValueError, match=words):
        analyse(node_class(), model, **changed)
    assert calls.count == 0


def test_a_model_without_flow_matching_is_refused(node_class, model):
    other = model.clone()
    other.add_object_patch("model_sampling", torch.nn.Identity())
    with pytest.raises(ValueError, match="BlockAnalysis: model: .* is not a flow-matching model"):
        analyse(node_class(), other)


SMALL = "mmdit-small.safetensors"


def graph(**changed):
    text = {name: "" for name in ("negative", "clip_l", "clip_g", "t5xxl")}
    strengths = {f"{name}_strength": 1.0 for name in ("clip_l", "clip_g", "t5")}
    inputs = {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["3", 0], "vae": ["1", 2],
        "operations": "skip", "blocks": "2, 5", "strength": 2.0, "seed": 3, "seeds": 1, "steps": 3, "cfg": 3.0,
        "speedup": 1.1, "early_late": False, **changed,
    }  # fmt: skip
    prompt = "a red circle on a white background"
    return {
        "1": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": SMALL, "weight_dtype": "default"}},
        "2": {
            "class_type": "TripleTextEncode",
            "inputs": {"clip": ["1", 1], "prompt": prompt, **text, **strengths, "t5_length": "auto", "empty": "encode"},
        },
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {"class_type": "BlockAnalysis", "inputs": inputs},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 1]}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}},
    }


def image_of(comfyui, record, node: str):
    (image,) = comfyui.images({"outputs": {node: record["outputs"][node]}})
    return Image.open(io.BytesIO(image))


def prompted(pack, text):
    """Conditionings with a token map of the prompt, as TripleTextEncode makes them."""
    core = sys.modules[f"{pack.__name__}.mmdit_core.text.tokens"]
    contexts = sys.modules[f"{pack.__name__}.nodes.comfyui.text.contexts"]
    words = tuple(core.Word(word, (position,)) for position, word in enumerate(text.split()))
    positive, negative = texts()
    contexts.note_map(positive[0][0], core.TokenMap((core.EncoderTokens("CLIP-L", True, 0, 20, words),)))
    return positive, negative


def test_attributes_are_judged_for_each_cell_and_the_baseline(node_class, pack, model):
    conds = prompted(pack, "two red circles above a blue star on a white background")
    _, plot, found = analyse(node_class(), model, conds=conds, blocks="0", seeds=2, attributes=True)
    columns = {"background", "colour", "shape", "count", "spatial", "all"}
    assert set(found["untouched"]["attributes"]) == columns
    for cell in found["cells"]:
        # A random model gives noise; the test is that every image was judged.
        assert set(cell["attributes"]) == columns and set(cell["attributes"].values()) <= {0.0, 50.0, 100.0}
    plain = analyse(node_class(), model, conds=conds, blocks="0", seeds=2)
    assert "untouched" not in plain[2] and "attributes" not in plain[2]["cells"][0]
    assert plot.shape != plain[1].shape


def test_attributes_of_a_correct_image_are_right_and_of_another_wrong(pack):
    import random

    from attributes.world import Group, Scene, arrange, draw_image

    attributes = sys.modules[f"{pack.__name__}.nodes.analysis.attributes"]
    scores = attributes.scores_for("BlockAnalysis", prompted(pack, "two red circles above a blue star")[0])
    scene = Scene((Group(2, "red", "circle"), Group(1, "blue", "star")), "above")
    other = Scene((Group(2, "red", "circle"), Group(1, "blue", "star")), "below")
    for shown in (scene, other):
        scores.note(None, scores.judge(torch.from_numpy(draw_image(shown, arrange(shown, random.Random(0))))))
    right = dict.fromkeys(("background", "colour", "shape", "count"), 100)
    assert scores.report(None)["attributes"] == {**right, "spatial": 50, "all": 50}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [(None, "words are not known"), ("a castle", "names 0 shapes"), ("red circles", "how many")],
)
def test_a_prompt_that_cannot_be_judged_is_refused_with_the_reason(node_class, pack, model, prompt, words):
    conds = texts(seed=77) if prompt is None else prompted(pack, prompt)  # text of no encoder
    with pytest.raises(ValueError, match=f"BlockAnalysis: attributes.*{words}"):
        analyse(node_class(), model, conds=conds, attributes=True)


def test_live_two_blocks_of_the_shipped_model(comfyui):
    bars, previews = [], []

    def on_event(event):
        if event.kind == "progress" and event.data.get("node") == "4":
            bars.append((event.data["value"], event.data["max"]))
        if event.kind == "preview":
            previews.append(Image.open(io.BytesIO(event.image)).size)

    record = comfyui.run(graph(), on_event=on_event)
    sheet, plot = (image_of(comfyui, record, node) for node in ("5", "6"))
    assert bars == sorted(bars) and bars[-1] == (9, 9)
    assert previews and set(previews) == {sheet.size}
    assert 400 < sheet.width < 1280 and plot.width == 1440
    report = json.loads(record["outputs"]["7"]["text"][0])
    assert report["model"].startswith(SMALL) and [cell["block"] for cell in report["cells"]] == [2, 5]
    assert all(cell["latent"] > 0.01 and cell["image"] > 0.01 for cell in report["cells"])
    free = [cell["block"] for cell in report["cells"] if cell["latent"] <= 0.25]
    assert sorted(report["skip_list"]["blocks_least_effect_first"]) == free, "nearly free blocks alone are listed"


def test_live_a_cancel_keeps_the_finished_images(comfyui):
    first = graph(seed=11, steps=8, blocks="all")  # long enough to be cancelled
    with comfyui.events() as events:
        prompt_id, cancelled = comfyui.queue(first, client_id=events.client_id), False
        for event in events.until_done(prompt_id, timeout=120):
            if event.kind == "progress" and event.data.get("node") == "4" and event.data["value"] > 8 and not cancelled:
                comfyui.interrupt()
                cancelled = True
                since = time.monotonic()
    took = time.monotonic() - since
    print(f"\ncancelled after {took:.2f} s")
    assert took < 2  # 1 on an idle machine
    with pytest.raises(Interrupted):
        comfyui.finished(prompt_id)
    values = []

    def on_event(event):
        if event.kind == "progress" and event.data.get("node") == "4":
            values.append(event.data["value"])

    comfyui.run(graph(seed=11, steps=8, blocks="0"), on_event=on_event)
    assert values[0] >= 8 and values[-1] == 16  # the bar starts after the finished images of the first run


def test_live_a_wrong_block_is_named_with_the_models_range(comfyui):
    with pytest.raises(
        ComfyUIError, match=r"BlockAnalysis: blocks: block 40 does not exist. This model has blocks 0 to 7"
    ):
        comfyui.run(graph(blocks="40"))
