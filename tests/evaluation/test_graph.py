"""Recipes: where a workflow takes its prompt, seed, settings and block controls."""

from __future__ import annotations

import copy
import json

import pytest

from evaluation.controls import Control
from evaluation.engine.graph import OUTPUT, WorkflowError, find_recipe, has_negative, read_workflow, set_values

SKIP = Control("skip", (2, 5), "negative")
BOOST = Control("boost", (3,), "both", "value", 1.5)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def ksampler():
    return {
        "m": node("UNETLoader", unet_name="a.safetensors", weight_dtype="default"),
        "c": node("CLIPLoader", clip_name="b.safetensors", type="sd3"),
        "v": node("VAELoader", vae_name="v.safetensors"),
        "shift": node("ModelSamplingSD3", model=["m", 0], shift=3.0),
        "p": node("CLIPTextEncode", clip=["c", 0], text="old"),
        "n": node("CLIPTextEncode", clip=["c", 0], text="bad"),
        "l": node("EmptyLatentImage", width=64, height=32, batch_size=4),
        "k": node(
            "KSampler",
            model=["shift", 0],
            positive=["p", 0],
            negative=["n", 0],
            latent_image=["l", 0],
            seed=7,
            steps=20,
            cfg=4.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "d": node("VAEDecode", samples=["k", 0], vae=["v", 0]),
        "s": node("SaveImage", images=["d", 0], filename_prefix="x"),
        "other": node("PreviewAny", source=["k", 0]),
    }


def custom():
    """SamplerCustomAdvanced: the guider takes model and prompt, another node the seed, a third one the steps."""
    graph = {key: value for key, value in ksampler().items() if key not in ("k", "n", "other")}
    return graph | {
        "guided": node("FluxGuidance", conditioning=["p", 0], guidance=3.5),
        "g": node("BasicGuider", model=["shift", 0], conditioning=["guided", 0]),
        "noise": node("RandomNoise", noise_seed=1),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["shift", 0], scheduler="simple", steps=20, denoise=1.0),
        "k": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["g", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["l", 0],
        ),
    }


def ours():
    graph = ksampler()
    inputs = graph["k"]["inputs"]
    inputs["solver"] = inputs.pop("sampler_name")
    graph["k"]["class_type"] = "FlowMatchingSampler"
    return graph


def fill(graph, texts=("new",), seed=11, controls=(), batch=1):
    return find_recipe(graph, batch).fill(texts, seed, controls)


def test_prompt_seed_and_images_go_where_the_workflow_has_them():
    graph = fill(ksampler())
    assert graph["p"]["inputs"]["text"] == "new" and graph["n"]["inputs"]["text"] == "bad"
    assert graph["k"]["inputs"]["seed"] == 11 and graph["l"]["inputs"]["batch_size"] == 1
    assert graph[OUTPUT] == node(OUTPUT, images=["d", 0])
    assert "other" not in graph and "s" not in graph, "what the image does not need is left out"


def test_controls_come_last_before_the_sampler_in_order():
    graph = fill(ksampler(), controls=[SKIP, BOOST])
    link = graph["k"]["inputs"]["model"]
    last = graph[link[0]]
    assert last["class_type"] == "TextBoost" and last["inputs"]["strength"] == 1.5 and last["inputs"]["mode"] == "value"
    first = graph[last["inputs"]["model"][0]]
    assert first["class_type"] == "BlockSkip"
    assert first["inputs"]["blocks"] == "2, 5" and first["inputs"]["branch"] == "negative"
    assert first["inputs"]["model"] == ["shift", 0]


def test_a_guider_is_controlled_and_its_noise_seeded():
    graph = fill(custom(), controls=[SKIP])
    assert graph[graph["g"]["inputs"]["model"][0]]["class_type"] == "BlockSkip"
    assert graph["noise"]["inputs"]["noise_seed"] == 11 and graph["p"]["inputs"]["text"] == "new"


def test_the_workflow_itself_is_not_changed():
    graph = ksampler()
    before = copy.deepcopy(graph)
    recipe = find_recipe(graph)
    recipe.fill(["a"], 1, [SKIP])
    set_values(graph, {"steps": 3})
    assert graph == before


def test_a_batch_has_an_encoder_for_each_prompt_and_a_seed_for_each_image():
    graph = ours()
    graph["zero"] = node("ConditioningZeroOut", conditioning=["p", 0])
    graph["k"]["inputs"]["negative"] = ["zero", 0]
    filled = fill(graph, ("a", "b", "c"), batch=3)
    joined = filled["joined prompts"]["inputs"]
    assert [filled[joined[f"prompt_{index}"][0]]["inputs"]["text"] for index in range(3)] == ["a", "b", "c"]
    assert filled["k"]["inputs"]["positive"] == filled["zero"]["inputs"]["conditioning"] == ["joined prompts", 0]
    assert filled["k"]["inputs"]["batch_noise"] == "per image" and filled["l"]["inputs"]["batch_size"] == 3


def test_controlnets_pass_the_prompts_on():
    graph = ksampler()
    graph["cn"] = node("ControlNetApplyAdvanced", positive=["p", 0], negative=["n", 0], strength=1.0)
    graph["k"]["inputs"] |= {"positive": ["cn", 0], "negative": ["cn", 1]}
    filled = fill(graph)
    assert filled["p"]["inputs"]["text"] == "new" and filled["n"]["inputs"]["text"] == "bad"


def test_a_long_way_to_the_prompt_is_followed():
    graph, above = ksampler(), "p"
    for number in range(3000):
        graph[f"a{number}"] = node("ConditioningSetTimestepRange", conditioning=[above, 0], start=0.0, end=1.0)
        above = f"a{number}"
    graph["k"]["inputs"]["positive"] = [above, 0]
    assert fill(graph)["p"]["inputs"]["text"] == "new"


@pytest.mark.parametrize(
    ("kind", "names"), [("CLIPTextEncodeFlux", ("clip_l", "t5xxl")), ("TextEncodeQwenImageEditPlus", ("prompt",))]
)
def test_other_text_nodes_get_the_prompt_in_their_own_inputs(kind, names):
    graph = ksampler()
    graph["p"] = node(kind, clip=["c", 0], **dict.fromkeys(names, "old"))
    assert [fill(graph)["p"]["inputs"][name] for name in names] == ["new"] * len(names)


def test_a_linked_text_is_replaced():
    graph = ksampler()
    graph["t"] = node("PrimitiveString", value="old")
    graph["p"]["inputs"]["text"] = ["t", 0]
    assert fill(graph)["p"]["inputs"]["text"] == "new"


def test_a_linked_seed_is_set_where_it_comes_from():
    graph = ksampler()
    graph["r"] = node("PrimitiveInt", value=7)
    graph["k"]["inputs"]["seed"] = ["r", 0]
    filled = fill(graph)
    assert filled["r"]["inputs"]["value"] == 11 and filled["k"]["inputs"]["seed"] == ["r", 0]


def test_an_encoders_own_prompts_do_not_stay_in_place_of_the_studys():
    graph = ksampler()
    own = {"clip_l": "a cat", "clip_g": "", "t5xxl": "a cat"}
    graph["p"] = node("TripleTextEncode", clip=["c", 0], prompt="old", negative="bad", **own)
    inputs = fill(graph)["p"]["inputs"]
    assert (inputs["prompt"], inputs["negative"]) == ("new", "bad")
    assert {inputs[name] for name in own} == {""} and graph["p"]["inputs"]["t5xxl"] == "a cat"


def test_a_guider_or_a_cfg_of_1_runs_no_negative_prompt():
    assert has_negative(ksampler()) and not has_negative(custom())
    assert not has_negative(set_values(ksampler(), {"cfg": 1.0}))


def test_a_setting_that_is_partly_linked_is_refused():
    graph = ksampler()
    graph["l2"] = node("EmptyLatentImage", width=["v", 0], height=32, batch_size=1)
    with pytest.raises(WorkflowError, match=r"--width.*node l2.*linked"):
        set_values(graph, {"width": 128})


def test_settings_go_to_the_nodes_that_hold_them():
    values = {"steps": 4, "cfg": 2.0, "solver": "heun", "shift": 5.0, "width": 128, "height": 256}
    graph = set_values(ksampler(), values)
    inputs = graph["k"]["inputs"]
    assert (inputs["steps"], inputs["cfg"], inputs["sampler_name"]) == (4, 2.0, "heun")
    assert graph["shift"]["inputs"]["shift"] == 5.0 and graph["l"]["inputs"]["width"] == 128
    assert set_values(custom(), {"steps": 4})["sigmas"]["inputs"]["steps"] == 4


def test_scaled_images_keep_their_size():
    graph = ksampler()
    graph["scale"] = node("ImageScale", image=["d", 0], width=2048, height=2048)
    assert set_values(graph, {"width": 128})["scale"]["inputs"]["width"] == 2048


def changed(change, make=ksampler):
    graph = make()
    change(graph)
    return graph


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.pop("s"), "0 of: node that saves"),
        (lambda g: g.update(s2=node("PreviewImage", images=["m", 0])), "2 of: node that saves"),
        (lambda g: g["k"]["inputs"].pop("model"), "no sampler"),
        (lambda g: g["k"]["inputs"].update(seed=["m", 0]), "seed"),
        (lambda g: g["p"].update(class_type="Strange", inputs={"clip": ["c", 0], "words": "x"}), "Strange"),
        (lambda g: g["k"]["inputs"].update(positive=["l", 0]), "EmptyLatentImage"),
        (lambda g: g["d"]["inputs"].update(samples=["gone", 0]), "node gone"),
        (
            lambda g: (
                g.update(x=node("ConditioningSetArea", conditioning=["x", 0]))
                or g["k"]["inputs"].update(positive=["x", 0])
            ),
            "0 of: prompt",
        ),
        (
            lambda g: (
                g.update(
                    p2=node("CLIPTextEncode", clip=["c", 0], text="x"),
                    both=node("ConditioningCombine", conditioning_1=["p", 0], conditioning_2=["p2", 0]),
                )
                or g["k"]["inputs"].update(positive=["both", 0])
            ),
            "2 of: prompt",
        ),
    ],
)
def test_what_cannot_be_used_is_said(change, words):
    with pytest.raises(WorkflowError, match=words):
        find_recipe(changed(change))


def test_a_batch_is_refused_where_images_would_share_a_seed():
    with pytest.raises(WorkflowError, match=r"--batch 4.*KSampler"):
        find_recipe(ksampler(), 4)
    with pytest.raises(WorkflowError, match=r"--batch 4.*0 nodes"):
        find_recipe(changed(lambda g: g["l"]["inputs"].pop("batch_size"), ours), 4)


def test_a_setting_without_a_place_is_refused():
    with pytest.raises(WorkflowError, match=r"--shift.*no node"):
        set_values({"k": node("KSampler", steps=3)}, {"shift": 3.0})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "no workflow"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": {"class_type": "SaveImage", "inputs": null}}', "no workflow"),
        ('{"a": {"class_type": [], "inputs": {}}}', "no workflow"),
        ('{"a": 1}', "no workflow"),
        ('{"nodes": [], "links": []}', "Export"),
    ],
)
def test_another_file_is_refused(tmp_path, text, words):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(WorkflowError, match=words):
        read_workflow(path)
    path.write_text(json.dumps(ksampler()))
    assert read_workflow(path) == ksampler()
