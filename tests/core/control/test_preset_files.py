"""Preset files: the format, its round trip, and that nothing outside of it is read."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from mmdit_core.control.preset_files import (
    MAX_FILE,
    MAX_PRESETS,
    Evidence,
    MadeFor,
    MeasuredPreset,
    PresetError,
    read_made_for,
    read_presets,
    write_presets,
)

EVIDENCE = {
    "date": "2026-11-30", "set": "shapes", "prompts": 128, "judge": "shapes", "attribute": "all", "gain": 3.1,
    "low": 0.4, "high": 5.8, "random": 0.2, "steps": 8, "cfg": 4.5,
}  # fmt: skip
MODEL = {"family": "SD3, SD3.5", "double": 8, "single": 0, "file": "mmdit-small.safetensors"}
BOOST = {
    "name": "count",
    "action": "boost",
    "model": MODEL,
    "widgets": {"blocks": "2, 3", "branch": "both", "strength": 1.5, "mode": "value"},
    "evidence": EVIDENCE,
}
SKIP = {
    "name": "fast",
    "action": "skip",
    "model": {"family": "FLUX.1", "double": 19, "single": 38, "file": "flux.safetensors"},
    "widgets": {"blocks": "d3, s7", "branch": "negative"},
    "evidence": {**EVIDENCE, "random": None, "saved": 0.035},
}
MINE = {**BOOST, "name": "mine", "evidence": None}
SHOWN = "SD3, SD3.5 8+0: mmdit-small.safetensors, 2026-11-30, 128 shapes prompts, all +3.1 (0.4 to 5.8)"


def file(*presets, **changed) -> str:
    return json.dumps({"format": "mmdit-presets", "version": 1, "presets": list(presets), **changed})


def test_a_file_holds_what_a_study_measured_and_what_a_user_saved():
    boost, skip, mine = read_presets(file(BOOST, SKIP, MINE))
    assert boost == MeasuredPreset(
        "count", "boost", "SD3, SD3.5", 8, 0, "mmdit-small.safetensors", "2, 3", "both", 1.5, "value",
        Evidence("2026-11-30", "shapes", 128, "shapes", "all", 3.1, 0.4, 5.8, 0.2, 8, 4.5),
    )  # fmt: skip
    assert (skip.blocks, skip.strength, skip.mode) == ("d3, s7", None, None)
    assert skip.evidence is not None and (skip.evidence.random, skip.evidence.saved) == (None, 0.035)
    assert mine.evidence is None and read_presets(file()) == ()


def test_writing_and_reading_give_the_same_presets_and_the_same_file():
    presets = read_presets(file(BOOST, SKIP, MINE))
    text = write_presets(presets)
    assert read_presets(text) == presets and json.loads(text) == json.loads(file(BOOST, SKIP, MINE))
    assert write_presets(read_presets(text)) == text and write_presets(()).endswith("}\n")


def test_made_for_names_model_and_evidence_and_is_read_back():
    boost, skip, mine = read_presets(file(BOOST, SKIP, MINE))
    assert boost.made_for == SHOWN
    assert mine.made_for == "SD3, SD3.5 8+0: mmdit-small.safetensors"
    assert read_made_for(SHOWN) == boost.model == MadeFor("SD3, SD3.5", 8, 0)
    assert read_made_for(skip.made_for) == MadeFor("FLUX.1", 19, 38)
    assert read_made_for("Kandinsky 5 32+0: file 3+4: x") == MadeFor("Kandinsky 5", 32, 0)


@pytest.mark.parametrize("text", ["", "SD3", "SD3 8: x", "8+0: x", "SD3 8+0:", "SD3 8+x: y", "a\nb 8+0: x", "x" * 501])
def test_a_made_for_that_names_no_model_is_refused(text):
    with pytest.raises(PresetError) as caught:
        read_made_for(text)
    assert caught.value.field == "made_for" and "names no model" in caught.value.found and caught.value.right


def changed(preset, path, value):
    """A copy with one value changed, removed (...) or added."""
    made = copy.deepcopy(preset)
    *parents, last = path.split(".")
    at = made
    for each in parents:
        at = at[each]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return made


WRONG = [
    (BOOST, "name", "", "one line of at most 255 characters, not empty"),
    (BOOST, "name", "a\nb", "one line"),
    (BOOST, "name", "x" * 256, "one line"),
    (BOOST, "name", 3, "one line"),
    (BOOST, "action", "disable", "one of skip, boost"),
    (BOOST, "action", ["boost"], "one of skip, boost"),
    (BOOST, "model", [], "an object with family, double, single, file"),
    (BOOST, "model.double", True, "a whole number from 0 to 1000"),
    (BOOST, "model.double", 8.0, "a whole number"),
    (BOOST, "model.single", -1, "a whole number"),
    (BOOST, "model.file", "../x.safetensors", "without folders"),
    (BOOST, "model.file", "c:\\x.safetensors", "without folders"),
    (BOOST, "model.family", "SD3 8+0: x", "no numbers"),
    (BOOST, "widgets.blocks", "8", "This model has blocks 0 to 7"),
    (BOOST, "widgets.blocks", "frog", "Write numbers and ranges"),
    (BOOST, "widgets.blocks", "3:11", "at most 10"),
    (BOOST, "widgets.blocks", "", "at least one block"),
    (SKIP, "widgets.blocks", "3:2", "Write the block alone"),
    (BOOST, "widgets.branch", "left", "one of both, positive, negative"),
    (BOOST, "widgets.strength", ..., "It needs blocks, branch, strength, mode"),
    (BOOST, "widgets.strength", float("nan"), "not JSON"),
    (BOOST, "widgets.strength", 10**400, "a number from 0 to 10"),
    (BOOST, "widgets.strength", "1.5", "a number from 0 to 10"),
    (BOOST, "widgets.mode", "loud", "one of residual, attention, value"),
    (SKIP, "widgets.strength", 1.5, "There are blocks, branch"),
    (BOOST, "evidence", {}, "It needs date"),
    (BOOST, "evidence.date", "2026-02-30", "a date"),
    (BOOST, "evidence.date", "20261130", "a date"),
    (BOOST, "evidence.date", 20261130, "a date"),
    (BOOST, "evidence.prompts", 0, "a whole number from 1"),
    (BOOST, "evidence.gain", 101, "a number from -100 to 100"),
    (BOOST, "evidence.gain", 6, "inside its interval"),
    (BOOST, "evidence.low", None, "a number"),
    (BOOST, "evidence.random", float("inf"), "not JSON"),
    (BOOST, "evidence.cfg", -1, "a number from 0 to 100"),
    (BOOST, "evidence.saved", 0.1, "There are date"),
    (SKIP, "evidence.saved", 1.5, "a number from 0 to 1"),
    (BOOST, "evidence.note", "x", "There are date"),
    (BOOST, "note", "x", "There are name"),
    (BOOST, "evidence", ..., "It needs name"),
]


@pytest.mark.parametrize(("preset", "path", "value", "right"), WRONG)
def test_a_wrong_value_is_refused_with_its_field_what_was_found_and_what_is_right(preset, path, value, right):
    with pytest.raises(PresetError) as caught:
        read_presets(file(MINE, changed(preset, path, value)))
    error = caught.value
    assert right in f"{error.found}. {error.right}", error
    assert error.field == "file" or error.field.startswith(f"presets[1].{path}")
    assert error.found and error.right and str(error) == f"{error.field}: {error.found}. {error.right}"
    assert len(error.found) < 150


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "file"), ("[]", "file"), ("{}", "file.format"), ("[" * 100_000, "file"), (" " * (MAX_FILE + 1), "file"),
        (file(format="x"), "format"), (file(version=2), "version"), (file(version=True), "version"),
        (file(presets={}), "presets"), (file(*[MINE] * (MAX_PRESETS + 1)), "presets"),
        (file(MINE, MINE), "presets[1].name"), (file(3), "presets[0]"), (file(more=1), "file.more"),
        ('{"format": 1' + "0" * 5000 + "}", "file"),
    ],
)  # fmt: skip
def test_another_file_is_refused(text, field):
    with pytest.raises(PresetError) as caught:
        read_presets(text)
    assert caught.value.field == field


def test_what_could_not_be_read_back_is_not_written():
    (preset,) = read_presets(file(BOOST))
    assert preset.evidence is not None
    wrong = [
        replace(preset, strength=float("nan")), replace(preset, mode=None), replace(preset, blocks="9"),
        replace(preset, action="skip"), replace(preset, evidence=replace(preset.evidence, gain=float("inf"))),
        replace(preset, evidence=replace(preset.evidence, saved=0.1)), replace(preset, name=object()),  # type: ignore[arg-type]
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(PresetError):
            write_presets([each])
