"""Published settings: what they hold, and that each can be parsed back as blocks of its model."""

from __future__ import annotations

import pytest

from mmdit_core.control.grammar import parse_blocks
from mmdit_core.control.preset_files import read_made_for
from mmdit_core.control.presets import BY_NAME, FILLED_PRESETS, PRESETS, presets_of
from mmdit_core.control.spec import BlockControl


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_has_a_note_and_lies_within_its_model(preset):
    assert preset.note and preset.controls
    for control in preset.controls:
        assert not control.does_nothing
        text = ", ".join(map(str, control.blocks))
        assert parse_blocks(text, preset.double, preset.single) == control.blocks


def test_the_papers_settings_for_flux():
    assert BY_NAME["FLUX.1-dev: text alignment"].controls == (BlockControl("boost", (2, 7, 12, 17, 22), 1.5),)
    both, negative = BY_NAME["FLUX.1-dev: fewer blocks with true CFG"].controls
    assert both == BlockControl("skip", (30, 40, 50))
    assert negative == BlockControl("skip", (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55), branch="negative")
    positive, negative = BY_NAME["FLUX.1-dev: fewer blocks, as the published script skips"].controls
    assert positive == BlockControl("skip", (49,), branch="positive")
    assert negative == BlockControl("skip", (5, 10, 15, 24, 29, 34, 39, 44, 49, 54), branch="negative")


def test_the_script_reads_the_lists_with_the_numbers_of_single_blocks():
    """Its loop over the single blocks counts from 0: block 19 + i is skipped where the list has i."""
    lists = BY_NAME["FLUX.1-dev: fewer blocks with true CFG"].controls
    script = BY_NAME["FLUX.1-dev: fewer blocks, as the published script skips"].controls
    for listed, run in zip(lists, script, strict=True):
        double = {block for block in listed.blocks if block < 19}
        single = {19 + block for block in listed.blocks if block < 38}
        assert set(run.blocks) == double | single


def test_presets_by_action_leave_none_out_and_double_none():
    found = [preset for action in ("skip", "disable", "boost") for preset in presets_of(action)]
    assert sorted(preset.name for preset in found) == sorted(BY_NAME) and len(BY_NAME) == len(PRESETS)


@pytest.mark.parametrize("preset", FILLED_PRESETS, ids=lambda preset: preset.name)
def test_a_preset_that_fills_inputs_names_blocks_of_its_model(preset):
    model = preset.model
    assert read_made_for(preset.made_for) == model
    assert parse_blocks(preset.widgets["blocks"], model.double, model.single)
    assert preset.notes["en"] and preset.notes["zh"]


def test_skip_layer_guidance_is_as_published_for_sd35_medium():
    """Stability AI's sd3_infer.py: layers 7, 8 and 9, from 1% to 20% of the steps."""
    (found,) = FILLED_PRESETS
    assert parse_blocks(found.widgets["blocks"], 24, 0) == (7, 8, 9)
    assert (found.widgets["start_percent"], found.widgets["end_percent"]) == (0.01, 0.2)
    assert found.widgets["branch"] == "negative" and "scale 2.5, cfg 4" in found.notes["en"]
