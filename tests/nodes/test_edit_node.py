"""FlowEdit, in process: the published loop on each kind of model, what it leaves alone, and what it refuses."""

from __future__ import annotations

from contextlib import contextmanager

import comfy.controlnet
import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

from mmdit_core.flow.schedules import sigmas
from tests.nodes.families.oracles import Bench as FamilyBench

FAMILIES = ["SD3.5 Medium", "FLUX.1 dev", "Qwen-Image", "Qwen-Image-Edit", "Z-Image", "Krea 2", "Wan 2.1"]
CLOSE = 2e-5  # of the latent's spread: float32 over a few steps
SET = dict(seed=7, steps=4, edit_steps=3, source_cfg=1.5, target_cfg=4.0, shift=0.0)


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


class Denoiser:
    """What ComfyUI's own guider predicts, one call in a run of its own."""

    def __init__(self, model, positive, negative, cfg):
        self.model, self.prompts, self.cfg = model, (positive, negative), cfg

    def __call__(self, x, sigma, image):
        """The velocity at x [B, ...], in the model's scale."""
        found = []

        def once(model, start, levels, extra_args=None, callback=None, disable=None):
            model.latent_image = model.noise = None
            extra_args = {**extra_args, "denoise_mask": None}
            found.append(model(x, x.new_full((len(x),), sigma), **extra_args))
            return start

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(*self.prompts)
        guider.set_cfg(self.cfg)
        levels = torch.tensor([sigma, 0.0])
        guider.sample(torch.zeros_like(image), image, comfy.samplers.KSAMPLER(once), levels, disable_pbar=True, seed=7)
        return (x - found[0]) / sigma


class Editing:
    """FlowEdit on a tiny model, next to the published loop."""

    def __init__(self, bench, name: str = "SD3.5 Medium", batch: int = 1):
        self.bench = bench
        self.made = FamilyBench.make(bench.module, name, batch=batch)
        self.model = self.made.model
        self.source, self.target, self.negative = (self.made.prompt(seed) for seed in (1, 3, 5))
        shape = (batch, *self.made.latent.shape[1:])
        self.image = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        self.node = bench.module("edit").FlowEdit()

    def all(self, latent=None, *, model=None, source=None, target=None, **changed):
        latent = latent or {"samples": self.image}
        given = self.source if source is None else source, self.target if target is None else target, self.negative
        return self.node.edit(model or self.model, *given, latent, **{**SET, **changed})

    def run(self, *given, **changed):
        return self.all(*given, **changed)[0]["samples"]

    def noise(self, seed, steps, average=1):
        """[steps][average] of noise, as the node draws it."""
        source = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**63 - 1, (steps, average), generator=source)
        draw = lambda s: torch.randn(self.image.shape, generator=torch.Generator().manual_seed(int(s)))  # noqa: E731
        return [[draw(each) for each in row] for row in seeds]

    def published(self, *, source_model=None, refine_steps=0, average=1, **changed):
        """The published loop, in our order of sums, with each velocity from a run of ComfyUI's guider."""
        given = {**SET, **changed}
        base = self.model.model
        source = Denoiser(source_model or self.model, self.source, self.negative, given["source_cfg"])
        target = Denoiser(self.model, self.target, self.negative, given["target_cfg"])
        shift = self.bench.module("comfyui.run.sampling").read_model(self.model).shift
        levels = sigmas(given["steps"], "linear", shift).tolist()[given["steps"] - given["edit_steps"] :]
        image = base.process_latent_in(self.image)
        z, noise = image, self.noise(given["seed"], len(levels) - 1, average)
        for step, (sigma, after) in enumerate(zip(levels, levels[1:], strict=False)):
            noisy = [(1 - sigma) * image + sigma * each for each in noise[step]]
            if step < len(levels) - 1 - refine_steps:
                differences = [
                    target(each + (z - image), sigma, self.image) - source(each, sigma, self.image) for each in noisy
                ]
                z = z + (after - sigma) * sum(differences) / average
            else:
                z = noisy[0] + (z - image) if step == len(levels) - 1 - refine_steps else z
                z = z + (after - sigma) * target(z, sigma, self.image)
        return base.process_latent_out(z)


@pytest.fixture(scope="module")
def editing(bench):
    return Editing(bench)


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@contextmanager
def cancelled_in_step_2(monkeypatch):
    """The user cancels when three of the six predictions are made."""
    calls, predict = [], comfy.samplers.sampling_function

    def counted(*args, **kwargs):
        calls.append(1)
        return predict(*args, **kwargs)

    def check():
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException

    with monkeypatch.context() as within:
        within.setattr(comfy.samplers, "sampling_function", counted)
        within.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", check)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            yield


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_published_loop_and_leaves_equal_prompts_alone(bench, name):
    editing = Editing(bench, name)
    ours = editing.run()
    assert error(ours, editing.published()) < CLOSE
    assert error(ours, editing.image) > 1e-3
    same = editing.run(target=editing.source, target_cfg=SET["source_cfg"])
    assert torch.equal(same, editing.image)


@pytest.mark.parametrize("more", [dict(average=2), dict(refine_steps=2), dict(edit_steps=4), dict(refine_steps=3)])
def test_the_other_dials_are_the_published_ones(editing, more):
    assert error(editing.run(**more), editing.published(**more)) < CLOSE


def test_a_batch_is_edited_as_its_images_are(bench):
    both = Editing(bench, batch=2)
    out = both.run()
    second = both.run({"samples": both.image[1:], "batch_index": [1]})
    assert error(out[1:], second) < CLOSE


def test_a_mask_keeps_what_is_outside_bit_for_bit(bench):
    editing = Editing(bench, "FLUX.1 dev")  # whose latents are scaled and shifted on their way into the model
    mask = torch.zeros(1, *editing.image.shape[-2:])
    mask[..., : mask.shape[-1] // 2] = 1
    outside = mask.bool().logical_not().expand_as(editing.image)
    for more in ({}, dict(refine_steps=2)):
        out = editing.run({"samples": editing.image, "noise_mask": mask}, **more)
        assert torch.equal(out[outside], editing.image[outside])
        assert error(out, editing.image) > 1e-3


def test_a_soft_mask_of_another_node_is_followed(editing):
    mask = torch.linspace(0, 1, editing.image.shape[-1]).expand(1, *editing.image.shape[-2:]).clone()
    latent = {"samples": editing.image, "noise_mask": mask}
    node = DifferentialDiffusion()
    soft = (node.execute if hasattr(node, "execute") else node.apply)(editing.model)[0]
    plain, ours = editing.run(latent), editing.run(latent, model=soft)
    assert error(ours, plain) > 1e-4
    assert torch.equal(ours[..., 0], editing.image[..., 0])


class Outline(comfy.controlnet.ControlBase):
    """A ControlNet that adds a residual to every block."""

    def __init__(self, seed: int):
        super().__init__()
        self.residual = torch.randn(1, 20, 128, generator=torch.Generator().manual_seed(seed))

    def get_models(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        return {"output": [self.residual.expand(len(x_noisy), -1, -1)]}


@pytest.mark.parametrize("sides", ["source", "target", "source target"])
@pytest.mark.parametrize("both", [True, False])
def test_a_controlnet_acts_on_its_own_side_alone(bench, sides, both):
    """ComfyUI's older node marks it for the negative prompt, too: that is the one of its side."""
    editing = Editing(bench)
    plain = editing.run()
    for seed, side in enumerate(sides.split()):
        mark = {"control": Outline(seed), "control_apply_to_uncond": both}
        setattr(editing, side, [[text, {**entry, **mark}] for text, entry in getattr(editing, side)])
    out = editing.run()
    assert error(out, editing.published()) < CLOSE and error(out, plain) > 1e-3


def test_controls_act_on_both_sides_or_on_the_one_that_has_them(bench, editing):
    skipping = (
        bench.module("control")
        .BlockSkip()
        .apply(editing.model, blocks="1", branch="both", start_percent=0.0, end_percent=1.0)[0]
    )
    for ours, theirs in ((skipping, skipping), (editing.model, skipping), (skipping, editing.model)):
        given = Editing(bench)
        given.model = ours
        out, summary = given.all(source_model=theirs)
        assert error(out["samples"], given.published(source_model=theirs)) < CLOSE
        assert ("Control: skip, blocks 1" in summary) == (ours is skipping)
        assert ("Control of the source" in summary) == (ours is not theirs)


def test_a_phrase_that_the_source_lacks_is_refused_with_the_way_out(bench):
    editing = Editing(bench)
    editing.source = editing.made.with_map(editing.source, ["red", "circle"])
    editing.target = editing.made.with_map(editing.target, ["blue", "circle"])
    boosted = (
        bench.module("control")
        .TextBoost()
        .apply(
            editing.model,
            blocks="all",
            strength=2.0,
            mode="residual",
            phrase="blue",
            part="all",
            branch="both",
            start_percent=0.0,
            end_percent=1.0,
        )[0]
    )
    with pytest.raises(ValueError, match="FlowEdit: source_model: a control does not fit the source: .*blue"):
        editing.all(model=boosted)
    assert editing.all(model=boosted, source_model=editing.model)


def test_a_cancelled_edit_continues_where_it_stopped(bench, monkeypatch):
    editing = Editing(bench)
    expected = editing.run()
    before = editing.model.model_options["transformer_options"].copy()
    with cancelled_in_step_2(monkeypatch):
        editing.run()
    assert editing.model.model_options["transformer_options"] == before
    out, summary = editing.all()
    assert torch.equal(out["samples"], expected) and "Continued: 1 steps" in summary
    assert "predictions: 2 of the source" in summary
    out, summary = editing.all()
    assert torch.equal(out["samples"], expected) and "Continued" not in summary


@pytest.mark.parametrize("changed", [dict(target_cfg=5.0), dict(seed=8), dict(preset="SD3")])
def test_another_edit_does_not_continue_a_cancelled_one(bench, monkeypatch, changed):
    editing = Editing(bench)
    with cancelled_in_step_2(monkeypatch):
        editing.run()
    out, summary = editing.all(**changed)
    assert "Continued" not in summary and torch.equal(out["samples"], Editing(bench).run(**changed))


def test_presets_are_the_authors_settings(bench):
    summary = Editing(bench, "FLUX.1 dev").all(preset="FLUX.1-dev")[1]
    for line in ("Preset: FLUX.1-dev", "the last 24 of 28", "cfg 1 of the source, 1 of the target",
                 "Guidance embedding of the source: 1.5", "Guidance embedding of the target: 5.5"):  # fmt: skip
        assert line in summary, line
    summary = Editing(bench).all(preset="SD3")[1]
    for line in ("the last 33 of 50", "Schedule: sd3", "cfg 3.5 of the source, 13.5 of the target"):
        assert line in summary, line


def test_a_preset_of_another_model_is_noted(bench):
    note = "Preset: FLUX.1-dev is not for this model, SD3. Set preset to none"
    assert note in Editing(bench).all(preset="FLUX.1-dev")[1]
    for name, preset in (("SD3.5 Medium", "SD3"), ("FLUX.1 dev", "FLUX.1-dev")):
        assert "is not for this model" not in Editing(bench, name).all(preset=preset)[1]
    editing = Editing(bench)
    editing.negative = bench.negative
    summary = editing.all(model=bench.model, source=bench.positive, target=bench.negative, preset="SD3")[1]
    assert "is not for this model" not in summary


def test_guidance_is_that_of_the_conditioning_or_as_set(bench):
    editing = Editing(bench, "FLUX.1 dev")
    guided = lambda prompt, value: [[text, {**entry, "guidance": value}] for text, entry in prompt]  # noqa: E731
    by_hand = editing.run(source=guided(editing.source, 1.5), target=guided(editing.target, 5.5))
    assert torch.equal(editing.run(source_guidance=1.5, target_guidance=5.5), by_hand)
    assert error(by_hand, editing.run()) > 1e-4


def test_modulation_is_computed_ahead_on_both_sides(bench):
    summary = Editing(bench, "FLUX.1 dev").all()[1]
    for side in ("Source", "Target"):
        assert f"{side}: Modulation: 3 of 3 model calls from the table" in summary


def test_nothing_to_do_is_said(editing):
    latent = {"samples": editing.image}
    out, said = editing.all(latent, edit_steps=0)
    assert out is latent and "edit_steps is 0" in said
    assert "Steps: edit_steps is 9, so all 4 edit" in editing.all(edit_steps=9)[1]


def test_what_cannot_be_edited_is_refused(bench, editing):
    plan = bench.module("caching").SpeedPlan().apply(editing.model, "2x")[0]
    with pytest.raises(ValueError, match="FlowEdit: model: it has a Speed Plan"):
        editing.all(model=plan)
    for cache in (EasyCacheNode, LazyCacheNode):
        cached = cache.execute(editing.model, 0.2, 0.15, 0.95, False).args[0]
        with pytest.raises(ValueError, match="FlowEdit: model: it has EasyCache or LazyCache"):
            editing.all(model=cached)
    with pytest.raises(ValueError, match="FlowEdit: latent_image: it is empty"):
        editing.all({"samples": torch.zeros_like(editing.image)})
    with pytest.raises(ValueError, match="FlowEdit: target: it holds no prompt"):
        editing.all(target=[])
    half = bench.all(end_step=3, seed=3)[0]
    with pytest.raises(ValueError, match="FlowEdit: latent_image: it comes from a run that ended early"):
        editing.all(half)
    patched = editing.model.clone()
    patched.add_patches({"diffusion_model.final_layer.linear.weight": ("diff", (torch.zeros(1),))})
    with pytest.raises(ValueError, match="FlowEdit: source_model: it is not the same MODEL"):
        editing.all(source_model=patched)
    with pytest.raises(ValueError, match="FlowEdit: average: 0. Set a number from 1 to 64"):
        editing.all(average=0)


def test_a_value_that_is_not_finite_names_the_step_and_the_side(bench):
    editing = Editing(bench)
    bad = [[text * float("inf"), entry] for text, entry in editing.target]
    with pytest.raises(ValueError, match="FlowEdit: target: the text holds values that are not finite"):
        editing.all(target=bad)
    huge = lambda prompt: [[text * 1e30, entry] for text, entry in prompt]  # noqa: E731
    for side in ("source", "target"):
        with pytest.raises(ValueError, match=f"FlowEdit: step 1 of 3 .*not finite: the {side} prediction: block 0"):
            editing.all(**{side: huge(getattr(editing, side))})
    with pytest.raises(ValueError, match="not finite: the source's negative prediction"):
        editing.all(source_negative=huge(editing.negative))
