"""Block controls with reference images and inputs that belong to the sampler's call, not to the second prompt."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.families.oracles import ROUNDING, Bench, difference, other_prompt
from tests.nodes.families.tiny import FAMILIES, FLUX2, HUNYUAN, build, randn


def made(bench, tiny, cfg: float = 1.0) -> Bench:
    return Bench(bench.module, tiny, *build(tiny), cfg, 1)


def block_prompt(bench, model, conditioning, which: str = "all"):
    node = bench.module("control").BlockPrompt()
    return node.apply(model, conditioning=conditioning, blocks=which, start_percent=0.0, end_percent=1.0)[0]


def test_a_phrase_on_z_image_with_references_is_refused(bench):
    """The text of each reference comes before the prompt's."""
    extra = {"reference_latents": [randn((1, 16, 8, 10), 2)]}
    own = made(bench, replace(FAMILIES["Z-Image"], extra=lambda seed, length: extra, image_tokens=64))
    prompt = own.with_map(own.prompt(1))
    boost = own.control("boost", own.numbers, 2.0, "value", phrases=("red circle",))
    with pytest.raises(ValueError, match="Z-Image puts other text before the prompt's here, because of ref_latents"):
        own.run(boost, positive=prompt)
    own.run(own.control("boost", own.numbers, 2.0, "value"), positive=prompt)  # the whole text has its place


@pytest.mark.parametrize(("kind", "channels"), [("HunyuanVideoI2V", 33), ("HunyuanVideoSkyreelsI2V", 32)])
def test_a_block_prompt_on_an_image_to_video_model_needs_no_image_of_its_own(bench, kind, channels):
    image = {"concat_latent_image": randn((1, 16, 1, 8, 10), 4), "concat_mask": torch.zeros(1, 1, 1, 8, 10)}
    tiny = replace(
        FAMILIES["HunyuanVideo"],
        kind=kind,
        config={**HUNYUAN, "in_channels": channels},
        extra=lambda seed, length: {"guidance": 6.0, **image},
    )
    own = made(bench, tiny, cfg=3.0)
    ((context, options),) = own.prompt(2)
    bare = [[context, {"pooled_output": options["pooled_output"]}]]
    ours = own.run(model=block_prompt(bench, own.model, bare))
    assert difference(ours, own.run(positive=own.prompt(2))) <= ROUNDING


def test_a_block_prompt_of_another_length_is_refused_where_the_single_blocks_keep_the_length(bench):
    extra = {"reference_latents": [randn((1, 128, 4, 5), 2)], "reference_latents_method": "index_timestep_zero"}
    tiny = replace(
        FAMILIES["FLUX.2 with a reference"],
        config={**FLUX2, "guidance_embed": False},
        extra=lambda seed, length: extra,
    )
    own = made(bench, tiny)
    assert other_prompt(own, 40) <= ROUNDING  # both are padded to 512 tokens
    with pytest.raises(ValueError, match="it has 520 tokens, the sampler's prompt 512"):
        other_prompt(own, 520)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"start_percent": 0.5}, "it has start_percent"),
        ({"end_percent": 0.5}, "it has end_percent"),
        ({"strength": 0.2}, "it has strength"),
        ({"hooks": SimpleNamespace(hooks=[])}, "it has hooks"),
        ({"control": SimpleNamespace(get_control=None)}, "it has control"),
    ],
)
def test_what_a_block_prompt_would_drop_is_refused(bench, options, found):
    own = made(bench, FAMILIES["FLUX.1 dev"])
    ((context, given),) = own.prompt(2)
    with pytest.raises(ValueError, match=f"BlockPrompt: conditioning: {found}"):
        block_prompt(bench, own.model, [[context, {**given, **options}]])


@pytest.mark.parametrize("shape", [(1, 0, 24), (7, 24), (3, 7, 24)])
def test_a_malformed_prompt_is_refused(bench, shape):
    own = made(bench, FAMILIES["FLUX.1 dev"])
    with pytest.raises(ValueError, match="BlockPrompt: conditioning: the text is of shape"):
        block_prompt(bench, own.model, [[torch.zeros(shape), {}]])
