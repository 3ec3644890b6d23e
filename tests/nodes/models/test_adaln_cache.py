"""The AdaLN cache under ComfyUI's samplers and ours: the image of the plain path, fewer weights read.

The plain path is the same MODEL without a cache in its runs.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections import Counter
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management as management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import comfy_extras.nodes_slg
import pytest
import torch

import nodes as comfyui_nodes
from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.window import Window
from mmdit_core.models.adaln import CACHE, row_width
from tests.core.models.tiny import TOLERANCE, adaln_layers, error, reads

KINDS = comfy.patcher_extension.WrappersMP
READ = ("adaln", "text")


def core_of(model):
    return model.model.diffusion_model


@pytest.fixture(autouse=True)
def one_tile(bench, monkeypatch):
    """The runs of these tests fit in one tile of the table."""
    monkeypatch.setattr(importlib.import_module(f"{bench.pack.__name__}.mmdit_core.models.adaln"), "TILE_CPU", 32)


@pytest.fixture(autouse=True)
def as_nodes_run():
    """With gradients the model takes the plain path."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def run(bench):
    """A run by either sampler, with the cache and without."""

    def without_cache(executor, x, timesteps, context, y, guidance, control, options, **kwargs):
        rest = {name: value for name, value in options.items() if name != CACHE}
        return executor(x, timesteps, context, y, guidance, control, rest, **kwargs)

    def plain(model):
        clone = model.clone()
        clone.add_wrapper_with_key(KINDS.DIFFUSION_MODEL, "test", without_cache)
        return clone

    def ksampler(model=None, *, sampler="euler", scheduler="simple", cfg=3.0, steps=5, latent=None, **given):
        latent = latent or bench.empty()
        texts = given.pop("positive", None) or bench.positive, given.pop("negative", None) or bench.negative
        noise = comfy.sample.prepare_noise(latent["samples"], 5)
        return comfy.sample.sample(
            model or bench.model, noise, steps, cfg, sampler, scheduler, *texts, latent["samples"], seed=5,
            noise_mask=latent.get("noise_mask"), disable_pbar=True, **given,
        )  # fmt: skip

    def flow(model=None, *, latent=None, **given):
        return bench.run(latent, model=model or bench.model, **given)

    return SimpleNamespace(plain=plain, ksampler=ksampler, flow=flow, both={"KSampler": ksampler, "ours": flow})


@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
def test_a_run_reads_adaln_weights_once_and_embeds_its_text_once(bench, run, sampler):
    with reads(core_of(bench.model), READ) as counts:
        made = run.both[sampler](steps=6)
        assert counts == {"adaln": adaln_layers(core_of(bench.model)), "text": 1}
        plain = run.both[sampler](run.plain(bench.model), steps=6)
        assert counts == {"adaln": 7 * adaln_layers(core_of(bench.model)), "text": 7}
    assert error(made, plain) <= 6 * TOLERANCE


COMFYUI_SAMPLERS = ["heun", "dpm_2", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "dpm_adaptive", "uni_pc"]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # in ComfyUI's dpm_adaptive
@pytest.mark.parametrize("sampler", COMFYUI_SAMPLERS)
def test_samplers_of_comfyui_also_those_that_evaluate_between_the_steps(bench, run, sampler):
    made, plain = (run.ksampler(model, sampler=sampler) for model in (bench.model, run.plain(bench.model)))
    assert error(made, plain) <= 20 * TOLERANCE  # calls of the longest of these runs


@pytest.mark.parametrize("solver", ["midpoint", "heun", "dpmpp_2m", "dopri5", "euler_ancestral"])
def test_our_solvers(bench, run, solver):
    made, plain = (run.flow(model, solver=solver) for model in (bench.model, run.plain(bench.model)))
    assert error(made, plain) <= 20 * TOLERANCE


def areas(bench):
    (left,) = comfyui_nodes.ConditioningSetArea().append(bench.positive, 32, 64, 0, 0, 1.0)
    (right,) = comfyui_nodes.ConditioningSetArea().append(bench.negative, 32, 64, 32, 0, 1.0)
    return {"positive": [*left, *right]}


def masks_and_times(bench):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (top,) = comfyui_nodes.ConditioningSetMask().append(bench.positive, mask, "default", 1.0)
    (early,) = comfyui_nodes.ConditioningSetTimestepRange().set_range(bench.negative, 0.0, 0.5)
    (late,) = comfyui_nodes.ConditioningSetTimestepRange().set_range(bench.positive, 0.4, 1.0)
    return {"positive": [*top, *late], "negative": early}


def inpainting(bench):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    return {"latent": {"samples": bench.latent, "noise_mask": mask}}


INPUTS = {
    "areas": areas,
    "masks and times": masks_and_times,
    "inpainting": inpainting,
    "a batch": lambda bench: {"latent": bench.empty(batch=3)},
    "no negative": lambda bench: {"cfg": 1.0},
    "two prompts": lambda bench: {"positive": [*bench.positive, *bench.negative]},
    "zeroed out": lambda bench: {"negative": comfyui_nodes.ConditioningZeroOut().zero_out(bench.negative)[0]},
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
def test_rows_that_change_in_order_and_number(bench, run, sampler, name):
    sample, given = run.both[sampler], INPUTS[name](bench)
    assert error(sample(**given), sample(run.plain(bench.model), **given)) <= 6 * TOLERANCE


def skip_layer_guidance(bench):
    return comfy_extras.nodes_slg.SkipLayerGuidanceDiT.execute(
        bench.model, double_layers="1", single_layers="", scale=2.5, start_percent=0.0, end_percent=0.9,
        rescaling_scale=0.0,
    ).result[0]  # fmt: skip


def controls(*given):
    return lambda bench: bench.attach(bench.model, list(given))


def second_prompt(bench):
    prompt = BlockControl("prompt", (0, 1), window=Window(0.0, 0.8), context=bench.negative[0][0][:, :11])
    return controls(BlockControl("skip", (1,), branch="negative"), prompt)(bench)


def changed_text(bench):
    """Another pack that changes the pooled text, in each step by another amount."""

    def change(executor, x, t, *args, **kwargs):
        return executor(x, t, *args, **{**kwargs, "y": kwargs["y"] * (1 + t.max())})

    clone = bench.model.clone()
    clone.add_wrapper_with_key(KINDS.APPLY_MODEL, "test", change)
    return clone


MODELS = {
    "skip": controls(BlockControl("skip", (0,), window=Window(0.2))),
    "skip, negative": controls(BlockControl("skip", (0, 1), branch="negative")),
    "boost": controls(BlockControl("boost", (0,), strength=100.0, branch="positive", window=Window(fade="in"))),
    "boost, attention": controls(BlockControl("boost", (0, 1), strength=1.6, mode="attention")),
    "skip-layer guidance": skip_layer_guidance,
    "a second prompt": second_prompt,
    "pooled text that changes": changed_text,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
def test_what_other_nodes_do_to_the_model_acts_as_on_the_plain_path(bench, run, sampler, name):
    model, sample = MODELS[name](bench), run.both[sampler]
    with reads(core_of(model), READ) as counts:
        made = sample(model)
    if name != "pooled text that changes":  # which is no conditioning of the run
        # The way of a second prompt to the first block runs the last layer once.
        assert counts["adaln"] == adaln_layers(core_of(model)) + (name == "a second prompt")
        # Skip-layer guidance evaluates the positive prompt once more, in a call of its own.
        assert counts["text"] == (2 if name in ("a second prompt", "skip-layer guidance") else 1)
    assert error(made, sample(run.plain(model))) <= 6 * TOLERANCE
    assert error(made, sample()) > 60 * TOLERANCE


def lora(strength: float, seed: int = 3, hooks: bool = False):
    """On AdaLN's layers, the embedders and the text's. A clone of a MODEL with it, or it as hooks."""
    torch.manual_seed(seed)
    shapes = {
        "joint_blocks_1_x_block_adaLN_modulation_1": (768, 128),
        "joint_blocks_0_context_block_adaLN_modulation_1": (768, 128),
        "final_layer_adaLN_modulation_1": (256, 128),
        "context_embedder": (128, 4096),
        "y_embedder_mlp_0": (128, 2048),
        "t_embedder_mlp_2": (128, 128),
    }
    weights = {}
    for name, (rows, columns) in shapes.items():
        weights[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 4) * 0.1
        weights[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, columns) * 0.1
    if hooks:
        return comfy.hooks.create_hook_lora(weights, strength, 0.0)
    return lambda model: comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)[0]


@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
def test_a_lora_on_adaln_and_the_embedders(bench, run, sampler):
    sample, patched = run.both[sampler], lora(1.0)(bench.model)
    assert len(patched.patches) == 6
    with reads(core_of(patched), READ) as counts:
        made = sample(patched)
    assert counts == {"adaln": adaln_layers(core_of(patched)), "text": 1}
    assert error(made, sample(run.plain(patched))) <= 6 * TOLERANCE
    assert error(made, sample()) > 60 * TOLERANCE


def scheduled_lora(bench):
    """Twice the LoRA at first, none after 40%, half of it from 80% on, on the positive prompt alone."""
    hooks, frames = lora(1.0, hooks=True), comfy.hooks.HookKeyframeGroup()
    for strength, start in ((2.0, 0.0), (0.0, 0.4), (0.5, 0.8)):
        frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    hooks.set_keyframes_on_hooks(frames)
    return comfy.hooks.set_hooks_for_conditioning(bench.positive, hooks)


@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
@pytest.mark.parametrize("model", ["as it is", "a second prompt"])
def test_a_lora_that_comes_and_goes_within_a_run_takes_the_plain_path(bench, run, sampler, model):
    sample = run.both[sampler]
    given = bench.model if model == "as it is" else second_prompt(bench)
    made = sample(given, positive=scheduled_lora(bench))
    assert torch.equal(made, sample(run.plain(given), positive=scheduled_lora(bench)))
    assert error(made, sample(given)) > 1e-3


@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
def test_a_lora_hook_on_other_layers_keeps_the_table(bench, run, sampler):
    torch.manual_seed(0)
    name = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    weights = {f"{name}.lora_up.weight": torch.randn(512, 4), f"{name}.lora_down.weight": torch.randn(4, 128) * 0.05}
    hooks = comfy.hooks.create_hook_lora(weights, 1.0, 0.0)
    positive, sample = comfy.hooks.set_hooks_for_conditioning(bench.positive, hooks), run.both[sampler]
    with reads(core_of(bench.model), READ) as counts:
        made = sample(positive=positive)
    assert counts["adaln"] == adaln_layers(core_of(bench.model))
    assert error(made, sample(run.plain(bench.model), positive=positive)) <= 6 * TOLERANCE


def test_a_function_of_an_adaln_weight_takes_the_plain_path(bench, run):
    calls = []

    def growing(weight):
        calls.append(1)
        return weight * (1 + 0.01 * len(calls))

    def model():
        calls.clear()
        clone = bench.model.clone()
        clone.add_weight_wrapper("diffusion_model.joint_blocks.1.x_block.adaLN_modulation.1.weight", growing)
        clone.patches_uuid = (
            object()
        )  # as every node sets it that changes weights: otherwise ComfyUI does not load the weights again
        return clone

    made = run.ksampler(model())
    assert torch.equal(made, run.ksampler(run.plain(model()))) and calls


def test_runs_one_after_another_each_make_what_a_run_by_itself_makes(bench, run, pack, tiny_file):
    """Prompts, an encoder's strength, LoRAs of two strengths and other sizes, in turn on one MODEL."""
    stronger = [[bench.positive[0][0] * 1.3, {"pooled_output": bench.positive[0][1]["pooled_output"] * 0.7}]]
    turns = [
        (lambda model: model, {}),
        (lambda model: model, {"positive": bench.negative, "negative": bench.positive}),
        (lora(1.0), {}),
        (lora(0.4), {"positive": stronger}),
        (lambda model: model, {"positive": stronger}),
        (lora(1.0, seed=4), {"latent": bench.empty(batch=2, size=(9, 7))}),
        (lambda model: model, {}),
    ]
    load = bench.module("comfyui.loading.model").load_model
    for number, (change, given) in enumerate(turns):
        sample = list(run.both.values())[number % 2]
        made, alone = sample(change(bench.model), **given), sample(change(load(str(tiny_file))), **given)
        assert torch.equal(made, alone), f"turn {number}"
        assert error(made, sample(run.plain(change(bench.model)), **given)) <= 6 * TOLERANCE


@pytest.mark.parametrize("how", ["end", "cancel", "error"])
@pytest.mark.parametrize("sampler", ["KSampler", "ours"])
def test_nothing_stays_after_a_run(bench, run, sampler, how, monkeypatch):
    sample, made, calls = run.both[sampler], [], []
    expected = sample()
    kind = bench.module("comfyui.run.adaln_cache").AdaLNCache
    original = kind.__init__

    def noted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(kind, "__init__", noted)

    def stop(*_):
        calls.append(1)
        if len(calls) == 3 and how == "cancel":
            management.interrupt_current_processing()
        if len(calls) == 3 and how == "error":
            raise RuntimeError("in the middle")

    handle = bench.model.model.diffusion_model.x_embedder.register_forward_hook(stop)
    try:
        sample()
        assert how == "end"
    except management.InterruptProcessingException:
        assert how == "cancel"
    except RuntimeError:
        assert how == "error"
    finally:
        handle.remove()
    gc.collect()
    assert made and all(cache() is None for cache in made)
    assert CACHE not in bench.model.model_options["transformer_options"]
    assert torch.equal(sample(), expected)


def test_another_model_in_the_same_run_computes_its_own(bench, run):
    """The options reach every model call of a run, also a second model's."""
    other = bench.module("comfyui.loading.model").load_model(bench.model.cached_patcher_init[1][0])
    with torch.no_grad():
        for parameter in other.model.diffusion_model.parameters():
            parameter.mul_(0.9)
    seen = []

    def second(executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
        given = {**options, "wrappers": {}}
        alone = {name: value for name, value in given.items() if name != CACHE}
        assert CACHE in given
        outputs = [other.model.apply_model(x, t, c_concat, c_crossattn, control, o, **kwargs) for o in (given, alone)]
        seen.append(torch.equal(*outputs))
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    clone = bench.model.clone()
    clone.add_wrapper_with_key(KINDS.APPLY_MODEL, "test", second)
    run.ksampler(clone)
    assert seen and all(seen)


def test_the_memory_that_comfyui_is_asked_for_includes_the_table(bench):
    base = bench.model.model
    required = base.memory_required([2, 16, 8, 8])
    own = super(type(base), base).memory_required([2, 16, 8, 8])
    assert required - own == 80 * 4 * row_width(base.diffusion_model)


def test_the_cache_leaves_nothing_that_another_step_could_remember(bench):
    cache = bench.module("comfyui.run.run_cache")
    assert cache.memory_of(bench.model, cache.others_on(bench.model), bench.positive, bench.negative) is None


@pytest.fixture
def partly(bench, tiny_file):
    """The MODEL partly loaded, as ComfyUI loads it where it does not fit in GPU memory: `partly(bytes)`."""
    model = bench.module("comfyui.loading.model").load_model(str(tiny_file), disable_dynamic=True)

    def load(room: int):
        model.unpatch_model(model.offload_device)
        model.load(model.load_device, lowvram_model_memory=room)
        core = model.model.diffusion_model
        outside = {name for name, layer in core.named_modules() if getattr(layer, "comfy_cast_weights", False)}
        return model, outside

    yield load
    model.unpatch_model(model.offload_device)


def test_adaln_is_offloaded_first(partly):
    core = partly(1)[0].model.diffusion_model
    total = sum(parameter.nbytes for parameter in core.parameters())
    adaln = {name for name, _ in core.named_modules() if name.endswith("adaLN_modulation.1")}
    size = sum(parameter.nbytes for name, parameter in core.named_parameters() if "adaLN" in name)
    assert 0.15 < size / total  # the embedders of the tiny model are large relative to its blocks
    model, outside = partly(total - size // 2)
    assert outside and outside <= adaln
    model, outside = partly(total // 2)
    assert adaln < outside
    assert model.model.model_lowvram


def test_a_step_of_an_offloaded_model_streams_the_weights_that_it_reads_alone(partly):
    model, outside = partly(1)
    core = model.model.diffusion_model
    sizes = {name: sum(p.nbytes for p in core.get_submodule(name).parameters()) for name in outside}
    streamed: Counter[str] = Counter()
    given = {
        "x": torch.randn(2, 16, 8, 8),
        "context": torch.randn(2, 20, 4096),
        "y": torch.randn(2, 2048),
        "timesteps": torch.tensor([700.0, 700.0]),
    }

    def bytes_of_a_call(options) -> int:
        streamed.clear()
        core(**given, transformer_options=options)
        return sum(sizes[name] * times for name, times in streamed.items())

    def counted(name: str):
        return lambda *_: streamed.update([name])

    handles = [core.get_submodule(name).register_forward_hook(counted(name)) for name in outside]
    try:
        with core.adaln_cache([700.0], given["y"]) as options:
            first, later, plain = (bytes_of_a_call(some) for some in (options, options, {}))
    finally:
        for handle in handles:
            handle.remove()
    read_once = ("adaLN_modulation", "t_embedder", "y_embedder", "context_embedder")
    once = sum(p.nbytes for name, p in core.named_parameters() if any(part in name for part in read_once))
    assert first == plain and later == plain - once
