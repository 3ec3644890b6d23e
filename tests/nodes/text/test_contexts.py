"""Which prompt a context came from: any node's encoding is known, and a changed context is refused with a reason."""

from __future__ import annotations

import gc
import sys
import weakref

import comfy.hooks
import comfy.sampler_helpers
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_flux import CLIPTextEncodeFlux

import nodes as comfyui

PROMPT = "a photo of a {} circle"
CHANGED = "changed after it was encoded"


@pytest.fixture(scope="module")
def contexts(pack):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.text.contexts"]


@pytest.fixture(scope="module")
def tokens(pack):
    return sys.modules[f"{pack.__name__}.mmdit_core.text.tokens"]


@pytest.fixture(scope="module")
def flux(families):
    return families("flux")


def encoded(clip, prompt: str):
    return comfyui.CLIPTextEncode().encode(clip, prompt)[0]


def found(contexts, conditioning, phrase="red circle"):
    return contexts.token_map_of(conditioning[0]).positions([phrase])


def test_the_sampler_and_a_conditioning_have_the_same_map(contexts, flux):
    conditioning = encoded(flux, PROMPT.format("red"))
    (entry,) = comfy.sampler_helpers.convert_cond(conditioning)
    lazy = contexts.LazyTokenMap(entry)
    assert found(contexts, conditioning) == contexts.token_map_of(entry).positions(["red circle"])
    assert lazy.positions(["red circle"], "t5") == found(contexts, conditioning)
    assert set(conditioning[0][1]) == {"pooled_output"}, "the conditioning itself is as ComfyUI made it"


@pytest.mark.parametrize(
    "encode",
    [
        lambda clip, text: CLIPTextEncodeFlux.execute(clip, "another", text, 3.5).args[0],
        lambda clip, text: [[clip.encode_from_tokens(clip.tokenize(text)), {}]],
        lambda clip, text: [[clip.encode_from_tokens(tokens=clip.tokenize(text), return_pooled=True)[0], {}]],
        lambda clip, text: [[clip.encode(text), {}]],
        lambda clip, text: clip.encode_from_tokens_scheduled(tokens=clip.tokenize(text), add_dict={"guidance": 2.0}),
        lambda clip, text: encoded(clip.clone(), text),
    ],
)
def test_every_way_to_encode_is_known(contexts, flux, encode):
    with torch.inference_mode():  # as ComfyUI runs nodes
        conditioning = encode(flux, PROMPT.format("red"))
    assert found(contexts, conditioning) == found(contexts, encoded(flux, PROMPT.format("red")))


def test_a_clip_with_a_schedule_of_loras_is_known(contexts, flux):
    clip = flux.clone()
    hooks = comfy.hooks.create_hook_lora({}, strength_model=1.0, strength_clip=1.0)
    clip.patcher.forced_hooks = hooks
    clip.use_clip_schedule = True
    hooks.set_keyframes_on_hooks(comfy.hooks.HookKeyframeGroup())
    conditioning = encoded(clip, PROMPT.format("red"))
    assert "clip_start_percent" in conditioning[0][1] and found(contexts, conditioning)


def test_area_mask_and_time_are_no_change(contexts, flux):
    conditioning = encoded(flux, PROMPT.format("red"))
    (area,) = comfyui.ConditioningSetArea().append(conditioning, 64, 64, 0, 0, 1.0)
    (strength,) = comfyui.ConditioningSetAreaStrength().append(area, 0.5)
    (timed,) = comfyui.ConditioningSetTimestepRange().set_range(strength, 0.0, 0.5)
    assert found(contexts, timed) == found(contexts, conditioning)


@pytest.mark.parametrize(
    "copy",
    [
        torch.clone,
        lambda context: context.to(torch.bfloat16),
        lambda context: context.double(),
        lambda context: context.transpose(1, 2).contiguous().transpose(1, 2),
        lambda context: comfyui.ConditioningAverage().addWeighted([[context, {}]], [[context * 0, {}]], 1.0)[0][0][0],
    ],
)
def test_a_copy_with_equal_values_is_no_change(contexts, flux, copy):
    conditioning = encoded(flux, PROMPT.format("red"))
    assert found(contexts, [[copy(conditioning[0][0]), {}]]) == found(contexts, conditioning)


def averaged(a, b):
    return comfyui.ConditioningAverage().addWeighted(a, b, 0.5)[0]


def multiplied(a, b):
    node = getattr(comfyui, "ConditioningMultiply", None)  # not in ComfyUI 0.24.0
    return node().multiply(a, 1.5)[0] if node else [[a[0][0] * 1.5, a[0][1]]]


def in_place(a, b):
    with torch.inference_mode():
        a[0][0].mul_(2.0)
    return a


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (averaged, CHANGED),
        (multiplied, CHANGED),
        (in_place, CHANGED),
        (lambda a, b: [[a[0][0][:, :100], a[0][1]]], CHANGED),
        (lambda a, b: [[a[0][0].roll(1, dims=1), a[0][1]]], CHANGED),
        (lambda a, b: [[torch.cat((a[0][0], a[0][0][:, :3]), 1), a[0][1]]], CHANGED),
        (lambda a, b: [[torch.cat((a[0][0], b[0][0])), a[0][1]]], CHANGED),
        (lambda a, b: comfyui.ConditioningZeroOut().zero_out(a)[0], "set to zeros"),
        (lambda a, b: [[None, a[0][1]]], "no CLIP of ComfyUI encoded it"),
        (lambda a, b: [[torch.randn(1, 256, 32), {}]], "no CLIP of ComfyUI encoded it"),
    ],
)
def test_a_changed_context_has_no_map_and_a_reason(contexts, tokens, flux, change, reason):
    with torch.inference_mode():
        conditioning = change(encoded(flux, PROMPT.format("red")), encoded(flux, PROMPT.format("blue")))
    with pytest.raises(tokens.NoTokenMap, match=reason):
        contexts.token_map_of(conditioning[0])
    with pytest.raises(tokens.NoTokenMap, match=reason):
        contexts.LazyTokenMap(conditioning[0]).positions(["red"])


def test_joined_prompts_keep_the_words_of_each(contexts, tokens, flux):
    red, blue = encoded(flux, PROMPT.format("red")), encoded(flux, PROMPT.format("blue"))
    (both,) = comfyui.ConditioningConcat().concat(red, blue)
    (three,) = comfyui.ConditioningConcat().concat(both, red)
    length = red[0][0].shape[1]
    here, there = found(contexts, red, "red"), found(contexts, blue, "blue")
    assert found(contexts, both, "red") == here
    assert found(contexts, both, "blue") == tuple(position + length for position in there)
    assert found(contexts, three, "red") == (*here, *(position + 2 * length for position in here))
    assert torch.equal(three[0][0][:, list(found(contexts, three, "red"))], red[0][0][:, list(here)].repeat(1, 2, 1))
    assert contexts.token_map_of(both[0]).positions((), "t5") == tuple(range(2 * length))
    with pytest.raises(tokens.PartNotFound, match="its encoders are: T5$"):
        contexts.token_map_of(both[0]).positions((), "clip")


def test_our_own_map_is_validated_too(contexts, tokens, pack, families):
    node = pack.NODE_CLASS_MAPPINGS["TripleTextEncode"]()
    given = dict(clip_l="", clip_g="", t5xxl="", clip_l_strength=1.0, clip_g_strength=1.0, t5_strength=0.0,
                 t5_length="auto", empty="encode")  # fmt: skip
    positive = node.encode(families("sd3"), PROMPT.format("red"), "", **given)[0]
    token_map = contexts.token_map_of(positive[0])
    assert token_map is positive[0][1][contexts.TOKEN_MAP] or token_map == positive[0][1][contexts.TOKEN_MAP]
    with pytest.raises(tokens.PartNotFound, match="T5: missing or dropped"):
        token_map.positions((), "t5")
    changed = averaged(positive, encoded(families("sd3"), "a blue circle"))
    assert contexts.TOKEN_MAP in changed[0][1]
    with pytest.raises(tokens.NoTokenMap, match=f"{CHANGED} .ConditioningAverage, for example.$") as caught:
        contexts.token_map_of(changed[0])
    assert caught.value.kind == "changed"


def test_a_context_is_held_by_nobody(contexts, flux):
    context = weakref.ref(encoded(flux, PROMPT.format("red"))[0][0])
    gc.collect()
    assert context() is None


@pytest.mark.parametrize("broken", ["prompt_of", "_checksum"])
def test_a_fault_of_the_note_does_not_reach_comfyui(contexts, tokens, flux, monkeypatch, broken):
    def fails(*args):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(contexts, broken, fails)
        conditioning = encoded(flux, "yet another prompt")
    with pytest.raises(tokens.NoTokenMap):
        contexts.token_map_of(conditioning[0])


def test_a_text_model_that_is_not_known_is_refused_with_its_name(contexts, tokens, flux, monkeypatch):
    class Other(type(flux.cond_stage_model)):
        def encode_token_weights(self, pairs):
            return super().encode_token_weights(pairs)

    with monkeypatch.context() as patch:
        patch.setattr(flux.cond_stage_model, "__class__", Other)
        conditioning = encoded(flux, PROMPT.format("red"))
    with pytest.raises(tokens.NoTokenMap, match="it is not known where Other puts the words") as caught:
        contexts.token_map_of(conditioning[0])
    assert caught.value.kind == "unmapped"


def test_another_nodes_encoding_of_an_encoder_is_refused(contexts, tokens, flux, monkeypatch):
    t5 = flux.cond_stage_model.t5xxl
    own = t5.encode_token_weights
    with monkeypatch.context() as patch:
        patch.setattr(t5, "encode_token_weights", lambda pairs: own(pairs), raising=False)
        conditioning = encoded(flux, PROMPT.format("red"))
    with pytest.raises(tokens.NoTokenMap, match="another node replaced how T5 encodes"):
        contexts.token_map_of(conditioning[0])


def test_a_context_of_another_length_than_its_tokens_is_refused(contexts, tokens, flux, monkeypatch):
    with monkeypatch.context() as patch:
        encode = type(flux.cond_stage_model).encode_token_weights

        def cut(self, pairs):
            return encode(self, pairs)[0][:, 1:], None

        cut.__module__, cut.__qualname__ = "comfy.text_encoders.flux", "FluxClipModel.encode_token_weights"
        patch.setattr(type(flux.cond_stage_model), "encode_token_weights", cut)
        conditioning = encoded(flux, PROMPT.format("red"))
    with pytest.raises(tokens.NoTokenMap, match="made 255 positions of a prompt that should have 256"):
        contexts.token_map_of(conditioning[0])


def test_a_replacement_of_the_clips_method_is_not_taken_for_it(contexts, tokens, flux, monkeypatch):
    """Another pack that changes what ComfyUI's method returns: only the unchanged context is known."""
    with monkeypatch.context() as patch:
        ours = comfy.sd.CLIP.encode_from_tokens

        def theirs(self, *args, **kwargs):
            out = ours(self, *args, **kwargs)
            return {**out, "cond": out["cond"] * 1.1}

        patch.setattr(comfy.sd.CLIP, "encode_from_tokens", theirs)
        conditioning = encoded(flux, PROMPT.format("red"))
    with pytest.raises(tokens.NoTokenMap):
        contexts.token_map_of(conditioning[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda t: t.NoTokenMap("changed", "it was averaged"),
            "phrase: it was averaged. Connect the prompt as its text",
        ),
        (lambda t: t.NoTokenMap("unmapped", "no layout"), "phrase: no layout. Act on the whole text: empty the phrase"),
        (lambda t: t.NoTokenMap(), "phrase: .*straight from CLIPTextEncode or TripleTextEncode"),
        (lambda t: t.PartNotFound("t5", ("Qwen",), ()), "part: .*its encoders are: Qwen. Set part to all"),
        (lambda t: t.PhraseNotFound("red", "all", ("a dog",), ()), "phrase: 'red' is not in.*a dog. Write whole words"),
    ],
)
def test_text_boosts_errors_say_what_helps(pack, tokens, make, words):
    boost = pack.NODE_CLASS_MAPPINGS["TextBoost"]
    cause = make(tokens)
    spec, model_call = (sys.modules[f"{pack.__name__}.mmdit_core.control.{room}"] for room in ("spec", "model_call"))
    phrases = ("red",) if words.startswith("phrase") else ()
    control = spec.BlockControl("boost", (0,), 2.0, phrases=phrases, part="all" if phrases else "t5")
    error = model_call.ControlError(control, "phrases", str(cause))
    error.__cause__ = cause
    with pytest.raises(ValueError, match=f"TextBoost: {words}"):
        raise boost.word_error(error)
    if "TripleTextEncode" not in words:
        assert "TripleTextEncode" not in str(boost.word_error(error))
