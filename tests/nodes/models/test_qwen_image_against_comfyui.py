"""The core's Qwen-Image against ComfyUI's own with the same weights, in process: velocities, hooks, patches."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import comfy.ldm.modules.attention
import comfy.ops
import pytest
import torch
from comfy.ldm.lightricks.model import Timesteps
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel as HostModel

from mmdit_core.config import REFERENCE_METHODS
from mmdit_core.models.layers import timestep_embedding
from mmdit_core.models.qwen_image import QwenImage
from tests.core.models.tiny_qwen import MASK, TINY, error, inputs, random_model, references

SIZES = [(8, 12), (7, 9), (13, 4), (1, 3)]
REFERENCES = {"one": [(6, 7)], "two": [(9, 5), (6, 18)]}
ADDED = 3 * torch.randn(2, 7, generator=torch.Generator().manual_seed(3))
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


def comfyui_model(model: QwenImage):
    """ComfyUI's model with the same weights."""
    c = model.config
    made = HostModel(
        patch_size=c.patch_size, in_channels=c.in_channels * c.patch_size**2, out_channels=c.channels_out,
        num_layers=c.depth, attention_head_dim=c.head_dim, num_attention_heads=c.num_heads,
        joint_attention_dim=c.context_dim, axes_dims_rope=c.axes_dim, default_ref_method=c.reference_method,
        use_additional_t_cond=c.additional_t_cond, dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    made.load_state_dict(model.state_dict(), strict=True)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair():
    model = random_model()
    return model, comfyui_model(model)


def velocity(host, x, timesteps, context, ref_latents=None, transformer_options=None, **more):
    """ComfyUI's prediction. It takes sigma, and latents with an axis of frames."""
    x = x[:, :, None] if x.ndim == 4 else x
    refs = None if ref_latents is None else [ref[:, :, None] for ref in ref_latents]
    out = host(x, timesteps / 1000, context, ref_latents=refs, transformer_options=dict(transformer_options or {}),
               **more)  # fmt: skip
    return out[:, :, 0] if out.shape[2] == 1 else out


def given_with(size=(8, 12), refs=None, **more):
    return inputs(size) | ({} if refs is None else {"ref_latents": references(refs)}) | more


@pytest.mark.parametrize("mask", [None, MASK, ADDED], ids=["no mask", "integers", "added"])
@pytest.mark.parametrize("size", SIZES)
def test_same_velocity_as_comfyuis_model(pair, size, mask):
    given = given_with(size, attention_mask=mask)
    assert error(pair[0](**given), velocity(pair[1], **given)) <= 1e-5


@pytest.mark.parametrize("method", REFERENCE_METHODS)
@pytest.mark.parametrize("count", REFERENCES)
@pytest.mark.parametrize("size", SIZES[:2])
def test_references_by_each_of_comfyuis_methods(pair, size, count, method):
    for mask in (None, MASK):
        given = given_with(size, REFERENCES[count], attention_mask=mask, ref_latents_method=method)
        assert error(pair[0](**given), velocity(pair[1], **given)) <= 1e-5


def test_the_methods_differ():
    model, given = random_model(), given_with((8, 12), REFERENCES["two"])
    found = {method: model(**given, ref_latents_method=method) for method in REFERENCE_METHODS}
    for one, other in product(found, repeat=2):
        same = {one, other} <= {"offset", "uxo"} or one == other
        assert (error(found[one], found[other]) <= 1e-6) == same, (one, other)


@pytest.mark.parametrize("method", ["index_timestep_zero", "negative_index"])
def test_a_models_own_method_is_the_one_of_comfyuis_class(method):
    model = random_model(replace(TINY, reference_method=method))
    given = given_with((7, 9), REFERENCES["two"])
    assert error(model(**given), velocity(comfyui_model(model), **given)) <= 1e-5


def test_layers_and_their_second_condition_as_in_comfyuis_model():
    model = random_model(replace(TINY, additional_t_cond=True, reference_method="negative_index"))
    host = comfyui_model(model)
    given = given_with((7, 9), REFERENCES["one"], x=torch.randn(2, 16, 3, 7, 9))
    assert error(model(**given), velocity(host, **given)) <= 1e-5
    kind = torch.tensor([1, 0])
    assert error(model(**given, additional_t_cond=kind), velocity(host, **given, additional_t_cond=kind)) <= 1e-5


def test_timesteps_are_embedded_at_least_as_exactly_as_by_comfyui():
    sigmas = torch.rand(200, generator=torch.Generator().manual_seed(0))
    angles = 1000 * sigmas.double()[:, None] * 10000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
    exact = torch.cat((angles.cos(), angles.sin()), dim=-1)
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)(sigmas)
    ours = timestep_embedding((1000 * sigmas.double()).float(), 256)
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max() <= 2e-4


def test_comfyuis_layers_and_attention_give_the_same():
    plain = random_model()
    model = QwenImage(TINY, "cpu", torch.float32, comfy.ops.disable_weight_init,
                      comfy.ldm.modules.attention.optimized_attention)  # fmt: skip
    model.load_state_dict(plain.state_dict())
    for mask in (None, MASK):
        given = given_with((7, 9), REFERENCES["two"], attention_mask=mask)
        assert error(model(**given), plain(**given)) <= 1e-5


def test_controlnet_residuals_act_as_in_comfyuis_model(pair):
    given = given_with((8, 12), REFERENCES["one"])
    control = {"input": [torch.randn(2, 24, 64), None, torch.randn(2, 24, 64)], "output": [None]}
    ours, theirs = pair[0](**given, control=control), velocity(pair[1], **given, control=control)
    assert error(ours, theirs) <= 1e-5 and error(ours, pair[0](**given)) > 1e-3


# -- hooks and patches -------------------------------------------------------------------------------------------


class Noted:
    """Hooks and patches that change something and note what they were given."""

    def __init__(self):
        self.calls: list[tuple] = []

    def note(self, kind, args):
        shapes = {name: tuple(value.shape) for name, value in args.items() if isinstance(value, torch.Tensor)}
        options = args["transformer_options"]
        told = {name: options.get(name) for name in ("block_index", "block_type", "total_blocks")}
        self.calls.append((kind, shapes, told, options.get("reference_image_num_tokens")))

    def block(self, args, extra):
        self.note("block", args)
        out = extra["original_block"]({**args, "txt": 1.5 * args["txt"]})
        return {"img": out["img"] + 0.1, "txt": out["txt"]}

    def input(self, args):
        self.note("input", args)
        return {**args, "img": 1.1 * args["img"], "img_ids": args["img_ids"] + 1, "txt_ids": args["txt_ids"] + 2}

    def after(self, args):
        self.note("after", args)
        return {"img": args["img"] + 0.05 * args["block_index"], "txt": 1.2 * args["txt"]}

    def qkv(self, q, k, v, pe, attn_mask, extra_options):
        self.note("qkv", {"q": q, "k": k, "v": v, "pe": pe, "transformer_options": extra_options})
        self.calls.append(("slice", extra_options["img_slice"]))
        return {"q": 1.1 * q, "v": 0.9 * v, "pe": pe.roll(1, dims=2)}

    def attention(self, func, q, k, v, heads, *args, **kwargs):
        self.calls.append(("attention", tuple(q.shape), heads, kwargs["skip_reshape"]))
        return 0.5 * func(q, k, v, heads, *args, **kwargs)

    @property
    def options(self):
        return {
            "patches": {"post_input": [self.input], "double_block": [self.after], "attn1_patch": [self.qkv]},
            "patches_replace": {"dit": {("double_block", 1): self.block}},
            "optimized_attention_override": self.attention,
        }


@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_hooks_and_patches_are_given_the_same_and_act_the_same(pair, mask, method):
    given = given_with((7, 9), REFERENCES["two"], attention_mask=mask, ref_latents_method=method)
    ours, theirs = Noted(), Noted()
    mine = pair[0](**given, transformer_options=ours.options)
    other = velocity(pair[1], **given, transformer_options=theirs.options)
    assert error(mine, other) <= 1e-5 and error(mine, pair[0](**given)) > 1e-3
    for one, two in zip(ours.calls, theirs.calls, strict=True):
        if one[0] in ("block", "after", "input"):  # the latent has no axis of frames here, and the mask is given
            one, two = [
                (c[0], {n: s for n, s in c[1].items() if n not in ("x", "attn_mask")}, *c[2:]) for c in (one, two)
            ]
            # ComfyUI tells a patch of the input neither the kind nor the number of blocks.
            one, two = [(*c[:2], c[2] if c[0] != "input" else None, *c[3:]) for c in (one, two)]
        assert one == two


def test_the_options_that_come_in_are_not_changed(pair):
    options = Noted().options
    before = dict(options)
    pair[0](**given_with(refs=[(4, 4)]), transformer_options=options)
    assert options == before
