"""The prompts with headroom: their file, their kinds, and the choice among candidates."""

from __future__ import annotations

import numpy as np
import pytest

from attributes.world import HELD_OUT_PAIRS
from benchmarks.attributes import headroom
from benchmarks.attributes.headroom import KINDS, SEEDS, candidates, choose, many_objects, many_of_unseen_pairs
from benchmarks.attributes.prompts import SETS, read_prompts
from training.render import Sampling

PROMPTS = read_prompts("headroom")


def test_every_prompt_of_the_file_is_a_candidate_of_the_code():
    known = {prompt.text: prompt for kind in KINDS for prompt in candidates(kind)}
    assert all(known[prompt.text] == prompt for prompt in PROMPTS)
    texts = {prompt.text.lower() for prompt in PROMPTS}
    assert len(texts) == len(PROMPTS) >= 24
    assert not texts & {prompt.text.lower() for name in SETS for prompt in read_prompts(name)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_is_what_its_name_says(kind):
    for prompt in candidates(kind):
        groups = prompt.stated.groups
        assert len(groups) == 2
        assert (sum(group.count for group in groups) > 6) == (kind in (many_objects, many_of_unseen_pairs))
        unseen = {(group.colour, group.shape) for group in groups} <= HELD_OUT_PAIRS
        assert unseen or kind is many_objects


def test_prompts_that_are_always_right_or_always_wrong_are_left_out(monkeypatch):
    prompts = candidates(many_objects, 3)
    right = {prompts[0].text: {0, 1, 2, 3}, prompts[1].text: set(), prompts[2].text: {2}}

    def scores(renderer, sampling, found, seeds, label):
        assert seeds == SEEDS == 4
        return [{"all": seed in right[prompt.text]} for seed in range(seeds) for prompt in found], np.empty(0)

    monkeypatch.setattr(headroom, "score_prompts", scores)
    assert choose(None, prompts, Sampling(), "") == [prompts[2]]
