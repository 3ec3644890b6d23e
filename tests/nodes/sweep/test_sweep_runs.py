"""A run of SweepXY: cancelled, continued, reused, reported and drawn."""

from __future__ import annotations

import importlib
import sys

import comfy.model_management
import pytest
import torch

from tests.nodes.model_calls import Calls
from tests.nodes.sweep.helpers import BASE, Vae, boosted, empty, latents, skipped, sweep, texts


def test_the_model_that_comes_in_is_not_changed(node, nodes, model):
    patched = boosted(nodes, skipped(nodes, model))
    before = repr(patched.model_options), repr(patched.object_patches), patched.patches_uuid, repr(patched.wrappers)
    sweep(node, patched, x="strength", x_values="0, 3", y="shift", y_values="1, 2")
    after = repr(patched.model_options), repr(patched.object_patches), patched.patches_uuid, repr(patched.wrappers)
    assert after == before


def test_a_run_after_a_cancel_samples_only_the_missing_cells(nodes, model):
    node, fresh = nodes["SweepXY"](), nodes["SweepXY"]()
    axes = dict(x="cfg", x_values="2, 3", y="steps", y_values="2, 3")
    with Calls(model, cancel_at=6) as calls, pytest.raises(comfy.model_management.InterruptProcessingException):
        sweep(node, model, **axes)
    assert calls.count == 6 and len(latents(node)) == 2  # 2 + 2 calls, and the third cell in its second step
    with Calls(model) as calls:
        resumed = sweep(node, model, **axes)
    assert calls.count == 3 + 3
    expected = sweep(fresh, model, **axes)
    assert torch.equal(resumed[0], expected[0]) and torch.equal(resumed[1], expected[1])
    for cell in (*resumed[2]["cells"], *expected[2]["cells"]):
        del cell["ran"]["seconds"]
    assert resumed[2] == expected[2]


def test_a_cancel_while_finished_cells_are_decoded_stops_there(node, model):
    sweep(node, model, x_values="1, 2, 3")
    vae = Vae(cancel_at=2)
    with Calls(model) as calls, pytest.raises(comfy.model_management.InterruptProcessingException):
        sweep(node, model, x_values="1, 2, 3, 4", vae=vae)
    assert vae.calls == 2 and calls.count == 0 and len(latents(node)) == 3


def test_a_cancel_ends_the_decoding_of_an_image_at_the_next_layer_and_leaves_no_hook(node, model):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.ran = torch.nn.ModuleList(torch.nn.Identity() for _ in range(5)), 0

        def forward(self, x):
            for layer in self.layers:
                x, self.ran = layer(x), self.ran + 1
                if self.ran == 2:
                    comfy.model_management.interrupt_current_processing(True)
            return x

    class Slow(Vae):
        def __init__(self):
            super().__init__()
            self.first_stage_model = Network()

        def decode(self, latent):
            return super().decode(self.first_stage_model(latent))

    vae = Slow()
    with Calls(model), pytest.raises(comfy.model_management.InterruptProcessingException):
        sweep(node, model, vae=vae)
    assert vae.first_stage_model.ran == 2 and len(latents(node)) == 1
    assert not any(layer._forward_pre_hooks for layer in vae.first_stage_model.modules())


def test_other_values_of_the_axes_reuse_the_cells_that_are_made(node, nodes, model):
    boost = boosted(nodes, model)

    def calls_of(on=boost, **axes):
        with Calls(model) as calls:
            sweep(node, on, **axes)
        return calls.count // BASE["steps"]

    assert calls_of(x="strength", x_values="1, 2, 3") == 3
    assert calls_of(x="strength", x_values="2-4 (3)") == 1
    assert calls_of(x="cfg", x_values="3, 5", y="strength", y_values="2, 4") == 2  # at cfg 3 they are made
    assert calls_of(x="blocks", x_values="0 | 1") == 1
    assert calls_of(on=boosted(nodes, model, strength=4.0), x="cfg", x_values="3, 5") == 0
    assert calls_of(on=model, x="cfg", x_values="3") == 0  # a boost of 1 is no boost
    assert calls_of(on=model.clone(), x="seed", x_values="7, 8") == 1
    assert calls_of(x="strength", x_values="1, 2, 3, 4") == 0


def test_every_change_that_changes_the_images_starts_again(nodes, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    weighted = model.clone()
    weighted.add_patches({"diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (torch.ones(512, 128),)})
    torch.manual_seed(0)
    other = {"samples": torch.randn(1, 16, 8, 8)}
    for changed in (
        dict(model=skipped(nodes, model)),
        dict(model=ModelSamplingSD3().patch(model, 2.0)[0]),
        dict(model=nodes["SpeedPlan"]().apply(model, "2x")[0]),
        dict(model=weighted),
        dict(conds=texts(2)),
        dict(latent=other),
        dict(latent={**empty(), "noise_mask": torch.ones(1, 8, 8)}),
        dict(steps=2),
        dict(seed=8),
        dict(schedule="beta"),
        dict(solver="heun"),
        dict(shift=2.0),
        dict(denoise=0.5),
    ):
        node = nodes["SweepXY"]()
        sweep(node, model)
        on = changed.pop("model", model)
        with Calls(model) as calls:
            sweep(node, on, **changed)
        assert calls.count > 0, changed


def test_at_most_400_cells_stay_in_memory(pack, node, model):
    run = importlib.import_module(f"{pack.__name__}.nodes.sweep.run")
    one = run.Finished(torch.zeros(1), {})
    kept = {index: one for index in range(300)}
    made = run.Sweep(None, None, None, {}, None, 3.0, (), 1, False, kept, None)
    made._forget({*range(250, 300), *range(1000, 1200)})  # 50 of them are kept already, 200 are new
    assert list(kept) == list(range(100, 300))
    made._forget(set(range(2000, 2400)))
    assert not kept


def test_another_vae_samples_nothing_again(node, model):
    sweep(node, model)
    with Calls(model) as calls:
        sweep(node, model, vae=Vae())
    assert calls.count == 0


def test_the_report_lists_what_ran_in_each_cell(node, nodes, model):
    patched = skipped(nodes, model, branch="negative")
    _, _, report = sweep(node, patched, x="cfg", x_values="1, 3", y="solver", y_values="euler, heun", shift=2.0)
    ran = [cell["ran"] for cell in report["cells"]]
    assert [each["predictions"] for each in ran] == [3, 3, 5, 5]
    assert [each["negative_rows"] for each in ran] == [0, 3, 0, 5]
    assert [each["shift"] for each in ran] == [2.0] * 4
    assert ran[1]["block_calls"]["skipped"] == 3 and ran[0]["block_calls"]["skipped"] == 0
    assert ran[0]["controls"] == [{"action": "skip", "blocks": [0], "branch": "negative"}]
    assert report["cells"][3]["settings"] == {
        "steps": 3, "cfg": 3.0, "solver": "heun", "schedule": "linear", "shift": 2.0, "denoise": 1.0,
    }  # fmt: skip
    assert report["cells"][0]["distance"] == {"latent": 0.0, "image": 0.0}
    assert report["settings"]["width"] == report["settings"]["height"] == 64


def test_images_that_are_not_finite_are_shown_and_said(node, model):
    class Broken(Vae):
        def decode(self, latent):
            return super().decode(latent) * (float("nan") if self.calls else 1)

    _, images, report = sweep(node, model, vae=Broken())
    assert images.isfinite().all() and report["cells"][1]["distance"]["image"] is None
    assert any("not finite" in note for note in report["notes"])


def test_the_bar_never_falls_and_ends_full_with_adaptive_solvers_too(pack, node, nodes, model, monkeypatch):
    progress, seen = sys.modules[f"{pack.__name__}.nodes.comfyui.frontend.progress"], []

    class Bar:
        def __init__(self, total, node_id=None):
            self.total, self.current = total, 0

        def update_absolute(self, value, total=None, preview=None):
            self.current = value
            seen.append((value, self.total, preview))

    monkeypatch.setattr(progress.comfy.utils, "ProgressBar", Bar)
    sweep(node, model, x="solver", x_values="bosh3, euler", y="steps", y_values="1, 2")
    values = [value for value, _, _ in seen]
    assert values == sorted(values) and values[-1] == seen[-1][1] == 6
    assert seen[0][1] == 6 and any(preview for _, _, preview in seen)


def test_the_sheet_keeps_its_size_while_it_fills_and_long_labels_are_cut(pack, node, nodes, model, monkeypatch):
    figures, drawn = importlib.import_module(f"{pack.__name__}.nodes.sweep.node"), []
    draw = figures.draw_sheet
    monkeypatch.setattr(figures, "draw_sheet", lambda sweep: drawn.append(draw(sweep)) or drawn[-1])
    monkeypatch.setattr(figures.messages, "show_text", lambda *_: None)
    long = ", ".join(["0-1"] * 40)
    axes = dict(x="blocks", x_values=f"0 | {long}", y="window", y_values="0-0.5 | 0-1")
    sheet, *_ = sweep(node, boosted(nodes, model), **axes, seed_step=1)
    assert len({image.size for image in drawn}) == 1 and sheet.shape[1:3] == drawn[0].size[::-1]
    assert drawn[0].width < 800  # the uncut label alone is wider
