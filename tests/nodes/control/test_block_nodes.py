"""BlockSkip, TextBoost and TextDisable on MODELs, in process: ours and ComfyUI's own SD3, compared."""

from __future__ import annotations

import copy
import sys

import comfy.sample
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux

import nodes as comfyui_nodes


@pytest.fixture(scope="module")
def blocks(pack):
    return sys.modules[f"{pack.__name__}.nodes.control"]


@pytest.fixture(scope="module", params=["ours", "theirs"])
def model(request, pack, tiny_file):
    if request.param == "theirs":
        return comfy.sd.load_diffusion_model(str(tiny_file))
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(tiny_file))


def texts():
    torch.manual_seed(1)
    return [[[torch.randn(1, 20, 4096), {"pooled_output": torch.randn(1, 2048)}]] for _ in range(2)]


def sample(model, steps=4, cfg=3.0, conds=None, scheduler="normal"):
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    return comfyui_nodes.KSampler().sample(model, 5, steps, cfg, "euler", scheduler, *(conds or texts()), latent)[0][
        "samples"
    ]


def skip(blocks, model, which="0", branch="both", start=0.0, end=1.0, **preset):
    given = dict(blocks=which, branch=branch, start_percent=start, end_percent=end)
    return blocks.BlockSkip().apply(model, **given, **preset)[0]


def boost(blocks, model, which="0", **changed):
    given = dict(strength=2.0, mode="attention", phrase="", part="all", branch="both")
    given |= dict(start_percent=0.0, end_percent=1.0, fade="constant")
    return blocks.TextBoost().apply(model, blocks=which, **{**given, **changed})[0]


def disable(blocks, model, which, scope, branch="both", end=1.0):
    given = dict(branch=branch, start_percent=0.0, end_percent=end)
    return blocks.TextDisable().apply(model, blocks=which, scope=scope, **given)[0]


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


def rows(model, run) -> list[int]:
    """Rows that block 0's image MLP computes, call by call, during a run."""
    seen = []
    layer = model.model.diffusion_model.joint_blocks[0].x_block.mlp
    handle = layer.register_forward_hook(lambda _, args, out: seen.append(out.shape[0]))
    try:
        run()
    finally:
        handle.remove()
    return seen


def test_each_control_changes_the_image_and_leaves_the_model_as_it_was(blocks, model):
    plain = sample(model)
    controlled = [
        skip(blocks, model),
        boost(blocks, model),
        boost(blocks, model, mode="value"),
        boost(blocks, model, mode="residual"),
        disable(blocks, model, "0", "onward"),
        disable(blocks, model, "0", "block"),
    ]
    for number, changed in enumerate(controlled):
        assert error(sample(changed), plain) > 1e-4, number
        assert torch.equal(sample(model), plain), number


def test_ours_and_comfyuis_model_do_the_same_under_every_control(blocks, pack, tiny_file):
    ours = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(tiny_file))
    theirs = comfy.sd.load_diffusion_model(str(tiny_file))
    for change in (
        lambda m: skip(blocks, m, branch="negative"),
        lambda m: boost(blocks, m, mode="residual", branch="positive"),
        lambda m: boost(blocks, m, mode="attention", strength=0.5),
        lambda m: boost(blocks, m, "0:3, 1:0", mode="value", start_percent=0.3),
        lambda m: disable(blocks, m, "1", "block", "negative", end=0.6),
    ):
        assert error(sample(change(ours)), sample(change(theirs))) <= 1e-5


def test_skipping_the_negative_branch_runs_the_positive_rows_only(blocks, model):
    assert rows(model, lambda: sample(model)) == [2] * 4
    skipping = skip(blocks, model, branch="negative")
    assert rows(model, lambda: sample(skipping)) == [1] * 4
    assert rows(model, lambda: sample(skip(blocks, model))) == []


def test_windows_are_read_when_sampling_starts_and_hold_their_start_but_not_their_end(blocks, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    def active(patched) -> list[int]:
        """1 for each step in which block 0 ran."""
        steps = []
        core = patched.model.diffusion_model
        outer = core.x_embedder.register_forward_hook(lambda *_: steps.append(0))
        inner = core.joint_blocks[0].x_block.mlp.register_forward_hook(lambda *_: steps.__setitem__(-1, 1))
        try:
            sample(patched, steps=8, scheduler="simple")
        finally:
            outer.remove()
            inner.remove()
        return steps

    first_half = skip(blocks, model, end=0.5)
    second_half = skip(blocks, model, start=0.5)
    a, b = active(first_half), active(second_half)
    assert [x + y for x, y in zip(a, b, strict=True)] == [1] * 8 and 0 < sum(a) < 8
    before = ModelSamplingSD3().patch(skip(blocks, model, end=0.5), 1.0)[0]
    after = skip(blocks, ModelSamplingSD3().patch(model, 1.0)[0], end=0.5)
    assert active(before) == active(after) == [0] * 4 + [1] * 4


def test_two_stacked_skips_add_up_and_two_samplers_keep_their_own(blocks, model):
    plain = sample(model)
    first = skip(blocks, model, "0", branch="negative")
    both = skip(blocks, first, "0", branch="positive")
    assert error(sample(both), sample(skip(blocks, model, "0"))) <= 1e-5
    alone = sample(first)
    assert not torch.equal(alone, sample(both)) and torch.equal(sample(first), alone)
    assert torch.equal(sample(model), plain)


def test_skip_layer_guidance_and_a_block_skip_act_together(blocks, model):
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def slg(patched):
        out = SkipLayerGuidanceDiT.execute(
            patched, scale=2.5, start_percent=0.0, end_percent=1.0, double_layers="1", single_layers=""
        )
        return out.result[0]

    guided = sample(slg(model))
    a, b = sample(slg(skip(blocks, model, "0"))), sample(skip(blocks, slg(model), "0"))
    assert torch.equal(a, b) and error(a, guided) > 1e-3 and error(a, sample(skip(blocks, model, "0"))) > 1e-3


def test_areas_take_part(blocks, model):
    positive, negative = texts()
    (left,) = comfyui_nodes.ConditioningSetArea().append(positive, 32, 64, 0, 0, 1.0)
    conds = [[*left, *positive], negative]
    changed = sample(skip(blocks, model, branch="positive"), conds=conds)
    assert torch.isfinite(changed).all() and error(changed, sample(model, conds=conds)) > 1e-3


def test_controlnet_residuals_are_added_as_in_comfyuis_model(blocks, pack, tiny_file):
    """A ControlNet hands its residuals over in `control`; one for a skipped block is added all the same."""
    import comfy.model_management

    out = {}
    models = {
        "ours": sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(tiny_file)),
        "theirs": comfy.sd.load_diffusion_model(str(tiny_file)),
    }
    for name, model in models.items():
        controlled = skip(blocks, boost(blocks, model, "1"), "0", branch="negative")
        comfy.model_management.load_models_gpu([controlled])
        torch.manual_seed(7)
        given = {
            "x": torch.randn(2, 16, 8, 8),
            "t": torch.tensor([0.7, 0.7]),
            "c_crossattn": torch.randn(2, 20, 4096),
            "y": torch.randn(2, 2048),
        }
        residuals = {"output": [torch.randn(2, 16, 128), torch.randn(2, 16, 128)]}
        options = {**controlled.model_options["transformer_options"], "cond_or_uncond": [0, 1]}
        with torch.no_grad():
            with_them, without = (
                controlled.model.apply_model(**given, control=control, transformer_options=dict(options))
                for control in (copy.deepcopy(residuals), None)
            )
        out[name] = with_them
        assert error(with_them, without) > 1e-3
    assert error(out["ours"], out["theirs"]) <= 1e-5


def test_strength_1_and_empty_blocks_are_bit_identical(blocks, model):
    plain = sample(model)
    for changed in (boost(blocks, model, strength=1.0), boost(blocks, model, ""), skip(blocks, model, "")):
        assert torch.equal(sample(changed), plain)


def test_an_error_in_mid_run_leaves_nothing_behind(blocks, model):
    plain = sample(model)
    needs_map = boost(blocks, model, phrase="red")
    with pytest.raises(ValueError, match="TextBoost: phrase: .*TripleTextEncode"):
        sample(needs_map)
    assert torch.equal(sample(model), plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("40", "BlockSkip: blocks: block 40 does not exist. This model has blocks 0 to 1"),
        ("x", "BlockSkip: blocks: 'x' cannot be read"),
    ],
)
def test_wrong_blocks_are_named_with_the_models_range(blocks, model, text, words):
    with pytest.raises(ValueError, match=words):
        skip(blocks, model, text)


def test_a_phrase_on_the_negative_branch_is_refused(blocks, model):
    with pytest.raises(ValueError, match="TextBoost: branch: a phrase is set.*Set branch to positive or both"):
        boost(blocks, model, phrase="red", branch="negative")


def test_a_block_prompt_of_another_models_text_is_refused(blocks, model):
    with pytest.raises(
        ValueError, match="BlockPrompt: conditioning: the text is 768 channels wide, the model takes 4096"
    ):
        block_prompt(blocks, model, [[torch.randn(1, 20, 768), {}]], "0")


def test_a_skipped_block_is_skipped_for_the_block_prompt_too(blocks, model):
    other = texts()[1]
    with_prompt = block_prompt(blocks, model, other, "0, 1")
    skipped = skip(blocks, with_prompt, "0", branch="positive")
    assert rows(skipped, lambda: sample(skipped)) == [1] * 4  # the negative's row alone
    # With block 0 out, the prompt acts in block 1 as if it was set for block 1 alone.
    only_1 = skip(blocks, block_prompt(blocks, model, other, "1"), "0", branch="positive")
    assert torch.equal(sample(skipped), sample(only_1))
    assert error(sample(skipped), sample(skip(blocks, model, "0", branch="positive"))) > 1e-3


def like_flux(model, double=19, single=38):
    """A MODEL that has as many blocks as FLUX.1, for what is decided before sampling."""
    other, core = model.clone(), Flux.__new__(Flux)
    torch.nn.Module.__init__(core)
    core.double_blocks, core.single_blocks = range(double), range(single)
    config = comfy.supported_models.Flux({})
    other.model = type("Flux", (), {"diffusion_model": core, "model_config": config})()
    return other


def test_presets_set_what_was_published_and_keep_the_nodes_window(blocks, model, pack):
    controls_of = sys.modules[f"{pack.__name__}.nodes.comfyui.patching"].controls_of
    flux = like_flux(model)
    given = dict(strength=3.0, mode="value", part="t5", start_percent=0.2, end_percent=0.9)
    boosted = boost(blocks, flux, "", **given, preset="FLUX.1-dev: text alignment")
    (control,) = controls_of(boosted)
    assert (control.blocks, control.strength, control.mode) == ((2, 7, 12, 17, 22), 1.5, "residual")
    assert (control.part, control.window.start, control.window.end) == ("t5", 0.2, 0.9)
    skipping = skip(blocks, flux, "1", "positive", 0.1, preset="FLUX.1-dev: fewer blocks with true CFG")
    both, negative = controls_of(skipping)
    assert (both.branch, both.blocks, both.window.start) == ("both", (30, 40, 50), 0.1)
    assert (negative.branch, len(negative.blocks)) == ("negative", 11)


def test_a_preset_for_another_model_or_of_no_name_is_refused(blocks, model):
    with pytest.raises(ValueError, match="BlockSkip: preset: .*FLUX.1-dev with 19 double and 38 single.*with 2 and 0"):
        skip(blocks, model, "", preset="FLUX.1-dev: fewer blocks with true CFG")
    chroma = like_flux(model)
    chroma.model.diffusion_model.__class__ = Chroma
    chroma.model.model_config = comfy.supported_models.Chroma({})
    with pytest.raises(ValueError, match="BlockSkip: preset: .*this model is Chroma with 19 and 38"):
        skip(blocks, chroma, "", preset="FLUX.1-dev: fewer blocks with true CFG")
    with pytest.raises(ValueError, match="BlockSkip: preset: 'x' is unknown"):
        skip(blocks, model, "", preset="x")


def test_the_two_readings_of_the_papers_lists_are_two_presets(blocks, model, pack):
    controls_of = sys.modules[f"{pack.__name__}.nodes.comfyui.patching"].controls_of
    choices = blocks.BlockSkip.INPUT_TYPES()["optional"]["preset"][0]
    script = "FLUX.1-dev: fewer blocks, as the published script skips"
    assert choices == ["none", "FLUX.1-dev: fewer blocks with true CFG", script], "new ones are appended"
    positive, negative = controls_of(skip(blocks, like_flux(model), "", preset=script))
    assert (positive.branch, positive.blocks) == ("positive", (49,))
    assert (negative.branch, negative.blocks) == ("negative", (5, 10, 15, 24, 29, 34, 39, 44, 49, 54))


FITS = "SD3, SD3.5 2+0: any.safetensors, 2026-11-30, 128 shapes prompts, all +3.1 (0.4 to 5.8)"


@pytest.mark.parametrize("made_for", ["", "  ", FITS, f" {FITS} "])
def test_a_setting_made_for_this_model_acts_as_without_the_text(blocks, model, pack, made_for):
    controls_of = sys.modules[f"{pack.__name__}.nodes.comfyui.patching"].controls_of
    assert controls_of(skip(blocks, model, "1", made_for=made_for)) == controls_of(skip(blocks, model, "1"))
    assert controls_of(boost(blocks, model, "1", made_for=made_for)) == controls_of(boost(blocks, model, "1"))


def test_a_setting_for_sd35_medium_takes_24_blocks_with_dual_attention_alone(blocks, model, pack, monkeypatch):
    """SD3 Medium has 24 blocks, too."""
    made_for = "SD3.5 Medium 24+0: skip-layer guidance 7, 8, 9"
    monkeypatch.setattr(blocks, "counts", lambda *_: (24, 0))
    monkeypatch.setattr(blocks, "find_variant", lambda names: "SD3.5 Medium" if any(names) else None)
    assert skip(blocks, model, "1", made_for=made_for) is not model
    monkeypatch.undo()
    monkeypatch.setattr(blocks, "counts", lambda *_: (24, 0))
    with pytest.raises(
        ValueError, match="BlockSkip: made_for: it names SD3.5 Medium 24[+]0, this model is SD3, SD3.5 24"
    ):
        skip(blocks, model, "1", made_for=made_for)


@pytest.mark.parametrize(
    ("made_for", "found"),
    [
        (
            FITS.replace("2+0", "24+0"),
            "it names SD3, SD3.5 24[+]0, this model is SD3, SD3.5 2[+]0 .*Connect the model .*empty",
        ),
        (FITS.replace("2+0", "2+1"), "it names SD3, SD3.5 2[+]1, this model is"),
        (FITS.replace("SD3, SD3.5", "FLUX.1"), "it names FLUX.1 2[+]0, this model is SD3, SD3.5 2[+]0"),
        ("my notes", "'my notes' names no model. Write the family, .*or empty it"),
        (3, "3 is not a text"),
    ],
)
def test_a_setting_made_for_another_model_is_refused(blocks, model, made_for, found):
    for node, make in (("BlockSkip", skip), ("TextBoost", boost)):
        with pytest.raises(ValueError, match=f"^{node}: made_for: {found}"):
            make(blocks, model, "1", made_for=made_for)


def test_a_model_without_joint_blocks_is_refused(blocks, model):
    other = model.clone()
    config = comfy.supported_models.SD15({})
    other.model = type("Model", (), {"diffusion_model": torch.nn.Linear(1, 1), "model_config": config})()
    with pytest.raises(ValueError, match="BlockSkip: model: SD15 is not supported: a U-Net.*Connect one of SD3"):
        skip(blocks, other)


def block_prompt(blocks, model, other, which="all", start=0.0, end=1.0):
    return blocks.BlockPrompt().apply(model, conditioning=other, blocks=which, start_percent=start, end_percent=end)[0]


def other_prompt(tokens: int = 20):
    torch.manual_seed(9)
    return [[torch.randn(1, tokens, 4096), {"pooled_output": torch.randn(1, 2048)}]]


@pytest.mark.parametrize("tokens", [20, 31])  # of another length than the first prompt, too
def test_a_block_prompt_in_all_blocks_is_that_prompt(blocks, model, tokens):
    positive, negative = texts()
    other = other_prompt(tokens)
    swapped = [[[other[0][0], positive[0][1]]], negative]
    prompted = sample(block_prompt(blocks, model, other))
    assert error(prompted, sample(model, conds=swapped)) <= 1e-5
    assert error(prompted, sample(model)) > 1e-3


def test_a_block_prompt_in_no_block_or_no_step_changes_nothing(blocks, model):
    plain = sample(model)
    assert torch.equal(sample(block_prompt(blocks, model, other_prompt(), "")), plain)
    assert torch.equal(sample(block_prompt(blocks, model, other_prompt(), start=0.5, end=0.5)), plain)
    assert error(sample(block_prompt(blocks, model, texts()[0], "0")), plain) <= 1e-5  # the same prompt


def test_a_block_prompt_acts_with_other_controls_and_in_its_window(blocks, model):
    alone = sample(block_prompt(blocks, model, other_prompt(), "1"))
    skipping = skip(blocks, block_prompt(blocks, model, other_prompt(), "1"), "0", branch="negative")
    assert error(sample(skipping), alone) > 1e-4
    half = sample(block_prompt(blocks, model, other_prompt(), "1", 0.0, 0.5), steps=4)
    assert error(half, alone) > 1e-4 and error(half, sample(model)) > 1e-4


def test_a_block_prompt_made_of_several_prompts_is_refused(blocks, model):
    with pytest.raises(ValueError, match="BlockPrompt: conditioning: it holds 2 prompts"):
        block_prompt(blocks, model, [*other_prompt(), *other_prompt()])


LINKED = [
    ("BlockSkip", "start_percent", float("nan"), "nan. Set a number from 0 to 1"),
    ("BlockSkip", "end_percent", 1.5, "1.5. Set a number from 0 to 1"),
    ("BlockSkip", "branch", "x", "'x' is unknown. Choose one of both, positive, negative"),
    ("BlockSkip", "blocks", 3, "3 is not a text. Connect a text"),
    ("TextBoost", "strength", float("nan"), "nan. Set a number from 0 to 10"),
    ("TextBoost", "strength", "1", "'1' is not a number. Set a number from 0 to 10"),
    ("TextBoost", "mode", "loud", "'loud' is unknown. Choose one of residual, attention, value"),
    ("TextBoost", "fade", None, "None is unknown. Choose one of constant, in, out, cosine"),
    ("TextBoost", "part", "g", "'g' is unknown. Choose one of all, clip, t5"),
    ("TextDisable", "scope", "x", "'x' is unknown. Choose one of onward, block"),
    ("TextDisable", "start_percent", -0.1, "-0.1. Set a number from 0 to 1"),
    ("BlockPrompt", "end_percent", float("inf"), "inf. Set a number from 0 to 1"),
]


@pytest.mark.parametrize(("node", "name", "value", "words"), LINKED)
def test_a_linked_value_that_the_widget_refuses_is_an_error_of_node_and_input(blocks, model, node, name, value, words):
    made = getattr(blocks, node)()
    inputs = made.INPUT_TYPES()["required"]
    given = {key: each[1].get("default") for key, each in inputs.items() if key not in ("model", "conditioning")}
    if node == "BlockPrompt":
        given["conditioning"] = other_prompt()
    with pytest.raises(ValueError) as caught:
        made.apply(model, **{**given, name: value})
    assert str(caught.value) == f"{node}: {name}: {words}"


def test_a_block_prompt_that_does_not_fit_the_call_names_node_and_input(blocks, model):
    prompted = block_prompt(blocks, model, other_prompt(31))
    error = sys.modules[f"{blocks.__package__.rpartition('.')[0]}.mmdit_core.control.model_call"].ControlError
    control = prompted.model_options["transformer_options"]["mmdit"][0]
    words = str(control.word_error(error(control.value, "context", "it has 31 tokens")))
    assert words.startswith("BlockPrompt: conditioning: it has 31 tokens. Encode")
