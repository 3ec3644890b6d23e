"""BlockAnalysis over many prompts: in process on a tiny random model with a made-up CLIP, and on the shipped model."""

from __future__ import annotations

import importlib
import json
import zlib

import comfy.model_management
import pytest
import torch

from attributes import prompt_sets
from scripts.client import ComfyUIError
from tests.nodes.families.node_cells import SEED, NodeBench
from tests.nodes.families.node_cells import Vae as FirstFrameVae
from tests.nodes.families.oracles import ROUNDING, difference
from tests.nodes.model_calls import Calls
from tests.nodes.test_analysis_node import CALLS, Vae, empty, graph, texts

RED, BLUE, GREEN = "two red circles above a blue star", "a blue square", "three green stars"
THREE = f"{RED}\n\n  {BLUE}\n{GREEN}\n"


@pytest.fixture(scope="module")
def node_class(pack):
    return pack.NODE_CLASS_MAPPINGS["BlockAnalysis"]


@pytest.fixture
def model(pack, tiny_file):
    return importlib.import_module(f"{pack.__name__}.nodes.comfyui.loading.model").load_model(str(tiny_file))


@pytest.fixture(scope="module")
def module(pack):
    """A module of the pack's nodes, by its name in nodes/."""
    return lambda name: importlib.import_module(f"{pack.__name__}.nodes.{name}")


class Clip:
    """A CLIP that makes up a text of each prompt, with a mask that belongs to it."""

    def __init__(self, width: int = 4096):
        self.encoded, self.width = [], width

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens, show_pbar=True):
        self.encoded.append(tokens)
        made = torch.Generator().manual_seed(zlib.crc32(tokens.encode()))
        pooled = torch.randn(1, 2048, generator=made)
        return [[torch.randn(1, 20, self.width, generator=made), {"pooled_output": pooled}]]


VAE = Vae()


def analyse(node, model, prompts=THREE, *, conds=None, clip=None, **changed):
    given = dict(operations="all", blocks="all", strength=2.0, seed=7, seeds=1, steps=3, cfg=3.0, speedup=1.3)
    given |= dict(early_late=False, prompts=prompts, clip=clip or Clip(), vae=VAE)
    *_, report, skip, boost = node.analyse(model, *(conds or texts()), empty(), **{**given, **changed})
    return json.loads(report), skip, boost


def test_distances_are_the_means_of_those_of_each_prompt_by_itself(node_class, model):
    clip = Clip()
    report, skip, boost = analyse(node_class(), model, seeds=2, clip=clip)
    assert clip.encoded == [RED, BLUE, GREEN], "each prompt is encoded once"
    assert report["prompts"] == {"number": 3, "sets": [], "texts": [RED, BLUE, GREEN]}
    alone = []
    for text in (RED, BLUE, GREEN):
        conds = Clip().encode_from_tokens_scheduled(text), texts()[1]
        alone.append(analyse(node_class(), model, "", conds=conds, seeds=2)[0]["cells"])
    for cell, *cells in zip(report["cells"], *alone, strict=True):
        for kind in ("latent", "image"):
            assert cell[kind] == pytest.approx(sum(each[kind] for each in cells) / 3, rel=1e-4), cell
        listed = [float(value) for value in cell["latent_by_prompt"].split()]
        assert listed == pytest.approx([each["latent"] for each in cells], rel=5e-3)
    assert skip == report["skip_list"]["for_block_skip"] == report["suggested"]["skip_blocks"]["blocks"]
    assert boost == "" and "distance does not show what is better" in report["suggested"]["boost_blocks"]["words"]


def test_without_prompts_the_report_has_no_new_entry_and_the_list_is_an_output(node_class, model):
    report, skip, boost = analyse(node_class(), model, "", clip=None, operations="skip")
    entries = ["model", "blocks", "settings", "metric", "cells", "skip_list", "notes"]
    assert list(report) == entries and (skip, boost) == (report["skip_list"]["for_block_skip"], "")
    noted = node_class().analyse(
        model, *texts(), empty(), VAE, operations="skip", blocks="0", strength=2.0, seed=7, seeds=1, steps=3, cfg=3.0,
        speedup=1.3, early_late=False,
    )  # fmt: skip
    assert json.loads(noted[2])["notes"] == [] and len(noted) == 5


def test_a_clip_without_prompts_is_noted(node_class, model):
    report, *_ = analyse(node_class(), model, "", operations="skip", blocks="0")
    assert any("clip is not used" in note for note in report["notes"])


def test_a_second_run_samples_nothing_and_more_prompts_or_seeds_only_what_is_new(node_class, model):
    node = node_class()
    first, *_ = analyse(node, model, f"{RED}\n{BLUE}", operations="skip")
    with Calls(model) as calls:
        again, *_ = analyse(node, model, f"{RED}\n{BLUE}", operations="skip", speedup=1.3)
    assert calls.count == 0 and again == first
    with Calls(model) as calls:
        longer, *_ = analyse(node, model, THREE, operations="skip")
    assert calls.count == 3 * CALLS and longer == analyse(node_class(), model, THREE, operations="skip")[0]
    with Calls(model) as calls:
        analyse(node, model, THREE, operations="skip", seeds=2)
    assert calls.count == 3 * 3 * CALLS


def test_new_cells_sample_the_baselines_again_but_the_shown_one(node_class, model):
    node = node_class()
    analyse(node, model, operations="skip")
    with Calls(model) as calls:
        wider, *_ = analyse(node, model, operations="all")
    assert calls.count == (3 * 4 + 2) * CALLS
    assert wider == analyse(node_class(), model)[0]
    assert len(node._latents) == 1 + 3 * 2, "only the shown images are kept as latents"


def test_a_run_after_a_cancel_continues_from_the_finished_measures(node_class, model):
    node = node_class()
    with (
        Calls(model, cancel_at=5 * CALLS + 1),
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        analyse(node, model, operations="skip")
    with Calls(model) as calls:
        resumed = analyse(node, model, operations="skip")
    # 9 images, of which 5 were finished; the second prompt's baseline is sampled again.
    assert calls.count == (9 - 5 + 1) * CALLS and resumed == analyse(node_class(), model, operations="skip")


@pytest.mark.parametrize("changed", [dict(vae=Vae()), dict(judge="shapes"), dict(cfg=4.0), dict(steps=2)])
def test_what_changes_the_measures_discards_them(node_class, model, changed):
    node = node_class()
    analyse(node, model, operations="skip", blocks="0")
    with Calls(model) as calls:
        analyse(node, model, operations="skip", blocks="0", **changed)
    kept = 2 if set(changed) <= {"vae", "judge"} else 0  # latents of the shown images
    assert calls.count == (6 - kept) * changed.get("steps", CALLS)


def test_everything_but_the_text_comes_from_positive(module):
    context, clip = torch.ones(1, 4, 8), Clip()
    reference = [torch.ones(1, 16, 4, 4)]
    options = dict(guidance=3.5, reference_latents=reference, pooled_output=context, attention_mask=context)
    made = module("comfyui.text.prompt_list").encode_each(clip, [RED, BLUE], {**options, "mmdit_tokens": 1}, None)
    assert len(made) == 2
    for ((found, given),), text in zip(made, (RED, BLUE), strict=True):
        ((expected, own),) = Clip().encode_from_tokens_scheduled(text)
        assert torch.equal(found, expected) and torch.equal(given["pooled_output"], own["pooled_output"])
        assert set(given) == {"guidance", "reference_latents", "pooled_output"} and given["guidance"] == 3.5
        assert given["reference_latents"] is reference


def test_a_judge_reports_each_attribute_with_its_interval_and_paired_change(node_class, model):
    report, skip, boost = analyse(node_class(), model, judge="shapes", blocks="0", seeds=2)
    columns = ["background", "colour", "shape", "count", "spatial", "all"]
    assert list(report["untouched"]["attributes"]) == columns
    for cell in report["cells"]:
        assert set(cell["intervals"]) == set(columns) and set(cell["change"]) == {*columns, "mean"}
        low, high = cell["intervals"]["all"]
        assert low <= cell["attributes"]["all"] <= high
        assert set(cell["change"]["all"]) == {"points", "low", "high"}
        assert len(cell["right"]["all"]) == 6 and cell["right"]["spatial"][2:] == "----", "one prompt has a relation"
    assert report["skip_list_by_judge"]["for_block_skip"] == skip
    assert boost == "" and "3 prompts are too few" in report["suggested"]["boost_blocks"]["words"]
    assert analyse(node_class(), model, attributes=True, blocks="0", seeds=2) == (report, skip, boost)


def test_the_change_of_an_attribute_is_over_prompts_that_have_it_and_of_one_prompt_over_seeds(module):
    attributes = module("analysis.attributes")
    cell = module("analysis.sweep").Cell("boost", 3)
    scores = attributes.Scores(*map(attributes.parse_caption, (RED, BLUE, GREEN)))
    wrong, right = ({"background": True, "colour": value, "all": value} for value in (False, True))
    for prompt in (0, 0, 1, 1, 2, 2):  # two seeds each
        scores.note(None, wrong, prompt)
    for prompt, found in ((0, right), (0, wrong), (1, right), (1, right), (2, {**wrong, "spatial": True})):
        scores.note(cell, found, prompt)
    scores.note(cell, wrong, 2)
    change = scores.change(cell, "colour")
    assert (change.mean, change.pairs) == (50, 3)  # 50, 100 and 0 points
    assert scores.percent(cell, "colour") == 50 and scores.losses([cell]) == {3: -50}
    assert scores._units(None, "mean") == [50, 50, 50] and scores._units(cell, "mean")[:2] == [75, 100]
    one = attributes.Scores(attributes.parse_caption(BLUE))
    for found in (wrong, right, right):
        one.note(None, wrong)
        one.note(cell, found)
    assert one.change(cell, "colour").pairs == 3


@pytest.mark.parametrize(
    ("gains", "blocks", "words"),
    [
        ({0: 8, 1: 0}, "0:1.5", "For TextBoost: 0:1.5"),
        ({0: 7, 1: 8}, "1:1.5, 0:1.5", "multiply"),
        ({0: 1, 1: -3}, "", "no block's boost helped beyond chance"),
    ],
)
def test_the_suggested_boosts_are_those_that_help_beyond_chance(module, gains, blocks, words):
    attributes, choice = module("analysis.attributes"), module("analysis.choice")
    cells = [module("analysis.sweep").Cell("boost", block, "whole", 1.5) for block in gains]
    scores = attributes.Scores(*map(attributes.parse_caption, [BLUE] * 8))
    for prompt in range(8):
        scores.note(None, {"colour": False, "shape": True, "all": False}, prompt)
        for cell in cells:
            gain = gains[cell.block]
            found = {"colour": prompt < gain, "shape": prompt >= -gain}
            scores.note(cell, {**found, "all": all(found.values())}, prompt)
    found = choice.boosts(scores, cells)
    assert found.blocks == blocks and words in found.words
    strengths = module("control").parse_block_strengths(found.blocks, 2)
    assert strengths == {block: 1.5 for block in gains if f"{block}:" in blocks}
    assert "no boost was measured" in choice.boosts(scores, []).words


def skip_words(module, distances, speedup=1.3, losses=None, decides=True, total=8):
    """The suggestion of a report with these distances of skips."""
    node = module("analysis.node")
    cells = {module("analysis.sweep").Cell("skip", b): node.analysis.Distances([d], [d]) for b, d in distances.items()}
    given = dict(model="m", double=total, single=0, settings={}, distances=cells, speedup=speedup, calls_each=24)
    return module("analysis.choice").skips(node.analysis.report(**given, losses=losses, judge_decides=decides))


@pytest.mark.parametrize(
    ("distances", "changed", "blocks", "words"),
    [
        (
            {4: 0.13, 5: 0.57}, {}, "4",
            "For BlockSkip: 4. Only block 4 is nearly free (a latent distance of at most 0.25): latent distance 0.130. "
            "Next comes block 5: latent distance 0.570. On both branches, about 1.14 times as fast, 24 of 192 block "
            "calls saved. A speedup of 1.3 needs more blocks than are nearly free.",
        ),
        (
            {4: 0.13, 5: 0.2, 6: 0.5}, {}, "4, 5",
            "For BlockSkip: 4, 5. Only blocks 4 and 5 are nearly free (a latent distance of at most 0.25): latent "
            "distance 0.130 and 0.200. Next comes block 6: latent distance 0.500. On both branches, about 1.33 times "
            "as fast, 48 of 192 block calls saved. Measured one block at a time: check an image with the whole list "
            "skipped.",
        ),
        (
            {4: 0.5, 5: 0.57}, {}, "",
            "skip_blocks is empty: no block is nearly free (a latent distance of at most 0.25). Next comes block 4: "
            "latent distance 0.500.",
        ),
        ({1: 0.1, 4: 0.05, 6: 0.5}, dict(speedup=1.1), "4", "Of 2 blocks that are nearly free, block 4 has the least"),
        ({4: 0.05}, {}, "4", "For BlockSkip: 4. Block 4 is nearly free ("),
        ({4: 0.05}, dict(speedup=1.0), "", "This speedup needs no skipped block."),
        (
            {4: 0.9, 5: 0.1}, dict(losses={4: 3.1, 5: 14.6}), "4",
            "Only block 4 is nearly free (at most 5 points fewer images right in everything): -3.1 points, latent "
            "distance 0.900. Next comes block 5: -14.6 points, latent distance 0.100.",
        ),
        (
            {4: 0.9, 5: 0.1}, dict(losses={4: 0.0, 5: 0.0}, decides=False), "5",
            "(at most 5 points fewer images right in everything and a latent distance of at most 0.25): +0.0 points",
        ),
    ],
)  # fmt: skip
def test_the_words_name_what_is_nearly_free_and_why(module, distances, changed, blocks, words):
    found = skip_words(module, distances, **changed)
    assert found.blocks == blocks and words in found.words
    assert found.numbers == tuple(map(int, filter(None, blocks.split(", "))))


def test_a_judge_decides_over_images_enough_of_which_most_are_right(module):
    attributes = module("analysis.attributes")
    for number, right, decides in ((6, 6, True), (6, 3, True), (6, 2, False), (5, 5, False)):
        scores = attributes.Scores(*map(attributes.parse_caption, [BLUE] * number))
        for prompt in range(number):
            scores.note(None, {"all": prompt < right}, prompt)
        assert scores.decides is decides, (number, right)


def test_empty_lists_connected_to_the_block_nodes_change_nothing(pack, model):
    window = dict(start_percent=0.0, end_percent=1.0)
    boost = dict(strength=1.5, mode="residual", phrase="", part="all", branch="both", fade="constant")
    for name, given in (("TextBoost", boost), ("BlockSkip", dict(branch="both"))):
        (patched,) = pack.NODE_CLASS_MAPPINGS[name]().apply(model, blocks="", **given, **window)
        inputs = dict(seed=7, steps=3, cfg=3.0)
        sample = pack.NODE_CLASS_MAPPINGS["FlowMatchingSampler"]().sample
        found, plain = (sample(each, *texts(), empty(), **inputs)[0]["samples"] for each in (patched, model))
        assert torch.equal(found, plain), name


def test_a_set_or_its_first_prompts_are_read_with_other_lines(module):
    read = module("analysis.prompts").read_prompts
    shipped = [entry.text for entry in prompt_sets.read_set("shapes")]
    assert read("N", "") is None
    assert read("N", "set:shapes").texts == tuple(shipped)
    assert read("N", "ｓｅｔ：shapes ８").texts == tuple(shipped)[:8], "the signs of another keyboard"
    found = read("N", f"a castle\n Set: shapes  3\n{shipped[1]}")
    assert found.texts == ("a castle", *shipped[:3]) and found.sets == ("shapes",) and found.repeated == 1
    assert found.origins == ("line 1", *(f"line 2, prompt {number} of set shapes" for number in (1, 2, 3)))
    assert found.notes == ["1 repeated prompts were left out."]


MANY = "\n".join(map(str, range(1001)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(prompts=" \n"), "prompts: it holds no prompt. Write one prompt a line, or set:shapes"),
        (
            dict(prompts="a cat\nset:cats"),
            "prompts: line 2: set 'cats' is unknown. Write one of set:shapes, set:objects",
        ),
        (dict(prompts="set:"), "prompts: line 1: '' is not the name of a set"),
        (dict(prompts="set:shapes many of"), "prompts: line 1: 'shapes many of' is not the name of a set"),
        (dict(prompts="set:shapes 0"), "prompts: line 1: 0 prompts of set shapes, which has .* Write a number from 1"),
        (dict(prompts="set:shapes 99999"), "prompts: line 1: 99,999 prompts of set shapes"),
        (dict(prompts=MANY), "prompts: it holds 1,001 prompts. Write at most 1,000"),
        (dict(prompts=7), "prompts: 7 is not a text"),
        (dict(judge="beauty"), "judge: 'beauty' is unknown. Choose one of none, shapes"),
        (dict(prompts=f"{RED}\na castle", judge="shapes"), "prompts: line 2: 'a castle' names 0 shapes.*judge to none"),
        (dict(prompts="a castle", attributes=True), "prompts: line 1: 'a castle' names 0 shapes"),
        # A context of its own: one with the values of a prompt that another test encoded would have that one's words.
        (
            dict(conds=texts(seed=99), prompts="", judge="shapes"),
            "judge: the positive prompt's words are not known.*set judge to none",
        ),
        (dict(conds=(texts()[0] * 2, texts()[1])), "positive: it holds 2 prompts.*everything but the text"),
        (dict(clip=Clip(width=64)), "clip: the text is 64 channels wide, the model takes 4096"),
    ],
)
def test_wrong_prompts_are_refused_before_sampling(node_class, model, changed, words):
    with Calls(model) as calls, pytest.raises(ValueError, match=f"BlockAnalysis: {words}"):
        analyse(node_class(), model, **changed)
    assert calls.count == 0


def test_prompts_without_a_clip_and_a_positive_for_a_part_of_the_image_are_refused(node_class, model):
    given = dict(operations="skip", blocks="0", strength=2.0, seed=7, seeds=1, steps=3, cfg=3.0, speedup=1.3)
    given |= dict(early_late=False, prompts=RED)
    with pytest.raises(ValueError, match="BlockAnalysis: clip: prompts are set and no CLIP is connected"):
        node_class().analyse(model, *texts(), empty(), VAE, **given)
    (positive,), negative = texts()
    positive = [[positive[0], {**positive[1], "area": (8, 8, 0, 0)}]]
    with pytest.raises(ValueError, match="BlockAnalysis: positive: .* part of the image: it has area"):
        node_class().analyse(model, positive, negative, empty(), VAE, clip=Clip(), **given)


def test_live_the_shipped_model_over_prompts_of_a_set(comfyui):
    prompt = graph(clip=["1", 1], prompts="set:shapes 6", judge="shapes", operations="all", blocks="0, 4", steps=4)
    prompt["8"] = {
        "class_type": "BlockSkip",
        "inputs": {
            "model": ["1", 0], "blocks": ["4", 3], "branch": "both", "start_percent": 0.0, "end_percent": 1.0,
        },
    }  # fmt: skip
    boost = {
        "model": ["8", 0], "blocks": ["4", 4], "strength": 1.5, "mode": "residual", "phrase": "", "part": "all",
        "branch": "both", "start_percent": 0.0, "end_percent": 1.0, "fade": "constant",
    }  # fmt: skip
    prompt["9"] = {"class_type": "TextBoost", "inputs": boost}
    sampled = {name: prompt["4"]["inputs"][name] for name in ("positive", "negative", "latent_image")}
    widgets = dict(seed=3, steps=4, cfg=3.0, solver="euler", schedule="linear", shift=0.0, denoise=1.0)
    prompt["10"] = {"class_type": "FlowMatchingSampler", "inputs": {"model": ["9", 0], **sampled, **widgets}}
    prompt["11"] = {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["1", 2]}}
    prompt["12"] = {"class_type": "PreviewImage", "inputs": {"images": ["11", 0]}}
    record = comfyui.run(prompt)
    report = json.loads(record["outputs"]["7"]["text"][0])
    assert report["prompts"]["number"] == 6 and report["prompts"]["sets"] == ["shapes"]
    by_block = {(cell["operation"], cell["block"]): cell for cell in report["cells"]}
    # Without block 0 the small model draws nothing of the prompt; block 4 matters least.
    assert by_block["skip", 0]["change"]["mean"]["points"] < by_block["skip", 4]["change"]["mean"]["points"]
    suggested = report["suggested"]["skip_blocks"]
    assert suggested["blocks"] == "", "without block 4 fewer images are right (docs/block-controls.md)"
    assert "no block is nearly free" in suggested["words"] and "Next comes block 4" in suggested["words"]
    assert all(len(cell["right"]["all"]) == 6 for cell in report["cells"])
    assert record["outputs"]["12"]["images"]


def test_live_an_unknown_set_is_an_error_of_the_node(comfyui):
    with pytest.raises(ComfyUIError, match="BlockAnalysis: prompts: line 1: set 'trees' is unknown"):
        comfyui.run(graph(clip=["1", 1], prompts="set:trees"))


# With guidance, references, images next to the latent, text masks, and the texts of two encoders.
OTHER_INPUTS = (
    "FLUX.1 dev", "FLUX.1 Kontext", "FLUX.1 Fill", "Qwen-Image-Edit", "Qwen-Image with a text mask", "Z-Image",
    "HunyuanVideo 1.5 with quoted text", "HiDream-I1", "Wan 2.1 image to video", "LTX-2",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHER_INPUTS)
def test_a_family_gets_the_text_of_a_prompt_and_all_else_of_positive(pack, module, name):
    bench = NodeBench.of_pack(pack, name)
    ((context, options),), ((_, others),) = bench.prompt(1), bench.prompt(5)
    names = module("comfyui.text.prompt_list").TEXT_OPTIONS
    different = {key for key in options if torch.is_tensor(options[key]) and not torch.equal(options[key], others[key])}
    assert different <= names, "an option of the text is not listed"
    clip = Clip()
    own = {key: value for key, value in options.items() if key in names}
    clip.encode_from_tokens_scheduled = lambda *_, **__: [[context, own]]
    node = bench.nodes["BlockAnalysis"]()
    given = dict(operations="skip", blocks="0", strength=2.0, seed=SEED, seeds=1, steps=2, cfg=bench.cfg, speedup=1.3)
    conds = bench.prompt(5), bench.prompt(3)
    vae = FirstFrameVae()
    node.analyse(bench.model, *conds, bench.empty, vae, clip=clip, prompts="a cat", early_late=False, **given)
    found = {cell: latent for (_, cell), latent in node._latents.items()}
    assert difference(found[None], bench.sampled()) < ROUNDING
