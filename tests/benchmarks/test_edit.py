"""The measurement of edits on drawn images: captions, masks, verdicts, tables. No model."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from attributes.words import parse_caption
from attributes.world import Group, Scene, arrange, draw_image, is_held_out
from benchmarks.edit.edits import CHOOSE, KINDS, MEASURE, Edit, caption, changes, purpose_of, sample_edits
from benchmarks.edit.measures import GROWN, SAME, measure, object_mask, rest_of
from benchmarks.edit.report import ALL, WIDE, by_kind, contact_sheet, tables
from benchmarks.edit.store import Store

PAIR = Scene((Group(2, "red", "circle"), Group(1, "blue", "star")), "left", "white")


def drawn(scene: Scene) -> np.ndarray:
    """The scene as the training draws it, uint8."""
    return (255 * draw_image(scene, arrange(scene, random.Random(0)))).round().astype(np.uint8)


def first(kind: str, scene: Scene = PAIR) -> Edit:
    return changes(kind, scene)[0]


def alone(edit: Edit) -> bool:
    """True if the edit concerns the only group of objects."""
    return edit.group is not None and len(edit.source.groups) == 1


def some(purpose: str, kind: str, number: int = 12) -> list[Edit]:
    return list(itertools.islice(sample_edits(purpose, kind), number))


@pytest.mark.parametrize("kind", KINDS)
def test_captions_name_everything_and_targets_occur_in_training(kind):
    for edit in some(MEASURE, kind):
        assert tuple(parse_caption(text) for text in edit.texts) == (edit.source, edit.target)
        assert edit.source != edit.target and not is_held_out(edit.target)
        assert edit in changes(kind, edit.source)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_chosen_on_other_captions_than_the_measured_ones(kind):
    for purpose in (CHOOSE, MEASURE):
        assert all(purpose_of(edit.texts[0]) == purpose for edit in some(purpose, kind))
    assert some(MEASURE, kind) == some(MEASURE, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_that_changes_nothing_else_is_right_and_keeps_the_rest(kind):
    for edit in some(MEASURE, kind, 6):
        found = measure(edit, drawn(edit.source), drawn(edit.target))
        assert found["objects"] in (1.0, None) and (found["objects"] is None) == (kind == "position" or alone(edit))
        assert (found["right"], found["kept"], found["near"], found["wrong"]) == (True, 1.0, 1.0, [])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_image_keeps_the_rest_and_is_wrong_in_what_was_to_change(kind):
    image = drawn(PAIR)
    column = {"position": "spatial"}.get(kind, kind)
    found = measure(first(kind), image, image)
    assert not found["right"] and found["kept"] == 1 and column in found["wrong"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_stays_if_no_channel_differs_by_more_than_the_limit(kind):
    edit = first(kind)
    before, after = drawn(edit.source), drawn(edit.target)
    rest = rest_of(edit, before, after)
    rows, columns = (places[::2] for places in np.nonzero(rest))
    channel = 1 if kind == "background" else 0  # away from its end: of red and blue objects, of a white background
    value = after[rows, columns, channel].astype(int)
    for difference, kept in ((SAME, 1.0), (SAME + 1, 1 - len(rows) / rest.sum())):
        changed = after.copy()
        changed[rows, columns, channel] = np.where(value >= 128, value - difference, value + difference)
        same = np.abs(before.astype(int) - changed).max(-1) <= SAME
        assert same[rest].mean() == pytest.approx(kept)


def test_the_mask_holds_the_group_in_both_images_and_no_other_object():
    edit = first("colour")
    before, after = drawn(edit.source), drawn(edit.target)
    changed = (before != after).any(-1)
    may_change = ~rest_of(edit, before, after)
    assert (may_change & changed).sum() == changed.sum()
    star = object_mask(before, "white", {"blue"})
    assert star.sum() > 100 and not (may_change & star).any()
    assert may_change.sum() < 3 * changed.sum(), f"grown by {GROWN} pixels alone"


def test_an_object_that_moves_without_being_named_is_not_kept():
    edit = first("colour")
    before, after = drawn(edit.source), drawn(edit.target)
    star = object_mask(before, "white", {"blue"})
    shifted = np.where(star[..., None], 255, after)
    moved = np.roll(star, -24, axis=0)
    shifted[moved] = before[star]
    found = measure(edit, before, shifted)
    assert found["right"] and found["kept"] < 0.98 and found["objects"] < 0.2


def test_of_a_background_edit_the_inside_of_the_objects_is_kept():
    edit = first("background")
    before, after = drawn(edit.source), drawn(edit.target)
    rest = rest_of(edit, before, after)
    objects = object_mask(before, "white")
    assert 0 < rest.sum() < objects.sum() and not (rest & ~objects).any()
    recoloured = after.copy()
    recoloured[object_mask(before, "white", {"blue"})] = (60, 100, 220)  # still blue, and not the same
    found = measure(edit, before, recoloured)
    assert found["right"] and 0.5 < found["kept"] < 0.95


def test_the_noise_of_an_edit_depends_on_its_captions_and_use():
    one, other = some(MEASURE, "colour", 2)
    assert len({one.seed("source"), one.seed("FlowEdit"), other.seed("source")}) == 3
    assert one.seed("source") == some(MEASURE, "colour", 1)[0].seed("source")


def test_a_stopped_run_continues_and_another_model_starts_again(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"images": torch.ones(2)}

    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
        for _ in range(2):
            store = Store(tmp_path / "store", tmp_path / name)
            assert store.get(["a", 1], make)["images"].equal(torch.ones(2))
            assert store.has(["a", 1]) and not store.has(["a", 2])
    assert len(calls) == 2


def test_the_tables_state_each_kind_and_all():
    rows = [
        {"right": index % 10 != 0, "kept": 0.9 if index % 10 == 1 else 1.0, "near": 1.0, "objects": None}
        for index in range(50)
    ]
    found = by_kind(rows)
    assert list(found) == [*KINDS, ALL, WIDE] and found[ALL]["edits"] == 50
    assert [found[ALL][name][0] for name in ("right", "kept", "both")] == [90, 90, 80]
    assert found[KINDS[0]]["right"][0] == 50 and found[KINDS[2]]["both"][0] == 100
    printed = tables({"FlowEdit": found})
    assert printed.count("| FlowEdit |") == len(KINDS) + 2 and "| 80 (67 to 89) |" in printed


def test_the_contact_sheet_has_a_row_for_each_edit():
    edits = [first(kind) for kind in KINDS]
    images = np.stack([drawn(edit.source) for edit in edits])
    rows = [measure(edit, image, image) for edit, image in zip(edits, images, strict=True)]
    sheet = contact_sheet(edits, images, {"none": (images, rows)})
    assert sheet.width > 2 * 128 and sheet.height > len(KINDS) * 128
    assert caption(PAIR) == "two red circles to the left of a blue star on a white background"
