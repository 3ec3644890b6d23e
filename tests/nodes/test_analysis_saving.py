"""BlockAnalysis saves its results under a name: as presets of the strips' menus, and the report."""

from __future__ import annotations

import errno
import importlib
import json
import os
from dataclasses import asdict

import pytest

from mmdit_core.control.preset_files import MeasuredPreset, read_presets, write_presets
from tests.nodes.model_calls import Calls
from tests.nodes.test_analysis_node import SMALL, analyse, graph

OWN = MeasuredPreset("mine", "skip", "SD3, SD3.5", 2, 0, "tiny.safetensors", "1", "both")


@pytest.fixture(scope="module")
def node_class(pack):
    return pack.NODE_CLASS_MAPPINGS["BlockAnalysis"]


@pytest.fixture
def model(pack, tiny_file):
    return importlib.import_module(f"{pack.__name__}.nodes.comfyui.loading.model").load_model(str(tiny_file))


@pytest.fixture
def user_presets(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.comfyui.frontend.user_presets")


@pytest.fixture
def folder(user_presets, tmp_path, monkeypatch):
    monkeypatch.setattr(user_presets, "folder_of_runs", lambda: tmp_path / "mmdit")
    return tmp_path / "mmdit"


@pytest.fixture
def shown(pack, monkeypatch):
    """The texts that the node shows."""
    texts = []
    messages = importlib.import_module(f"{pack.__name__}.nodes.comfyui.frontend.messages")
    monkeypatch.setattr(messages, "show_text", lambda node_id, text: texts.append(text))
    return texts


@pytest.fixture
def free(pack, monkeypatch):
    """Every skip is nearly free: those of a random model change the whole image."""
    analysis = importlib.import_module(f"{pack.__name__}.mmdit_core.analysis")
    monkeypatch.setattr(analysis, "MOST_DISTANCE", 100.0)


def test_the_report_and_the_suggestion_are_saved_by_name_and_replaced_by_the_next_run(
    node_class, model, folder, shown, free
):
    node = node_class()
    *_, report = analyse(node, model, operations="skip", save_as=" Two blocks, 3 steps ")
    saved = json.loads((folder / "reports" / "Two blocks, 3 steps.json").read_text(encoding="utf-8"))
    assert saved == {"made_by": "BlockAnalysis", **report}
    text = (folder / "presets" / "Two blocks, 3 steps.json").read_text(encoding="utf-8")
    (preset,) = read_presets(text)
    assert (preset.name, preset.action, preset.branch) == ("Two blocks, 3 steps", "skip", "both")
    assert preset.blocks == report["skip_list"]["for_block_skip"] != ""
    assert (preset.family, preset.double, preset.single) == ("SD3, SD3.5", 2, 0) and preset.evidence is None
    assert 'in the menus of the strips as "Two blocks, 3 steps"' in shown[-1]
    analyse(node, model, operations="skip", speedup=1.0, save_as="Two blocks, 3 steps")
    assert read_presets((folder / "presets" / "Two blocks, 3 steps.json").read_text(encoding="utf-8")) == ()
    assert "the report alone: nothing is suggested" in shown[-1]
    files = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert files == ["Two blocks, 3 steps.json"] * 2, "no temporary file is left"


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "a\\b",
        "..",
        "../x",
        ".hidden",
        "a:b",
        "x.",
        "con",
        "NUL.txt",
        "a\nb",
        "x" * 61,
        "C:x",
        "*",
        "𠮷" * 60,
        "COM¹",
    ],
)
def test_a_name_that_is_no_files_name_is_refused_before_sampling(node_class, model, folder, name):
    with (
        Calls(model) as calls,
        pytest.raises(ValueError, match="BlockAnalysis: save_as: .* cannot be a file.*Write at"),
    ):
        analyse(node_class(), model, save_as=name)
    assert calls.count == 0 and not folder.exists()


def test_a_file_of_somebody_else_is_never_replaced(node_class, model, folder):
    (folder / "presets").mkdir(parents=True)
    path = folder / "presets" / "mine.json"
    for content in (write_presets([OWN]), write_presets([OWN], "a study"), "{", "[]", ""):
        path.write_text(content, encoding="utf-8")
        with (
            Calls(model) as calls,
            pytest.raises(
                ValueError,
                match="BlockAnalysis: save_as: .*mine.json exists and is not from BlockAnalysis. Write another",
            ),
        ):
            analyse(node_class(), model, save_as="mine")
        assert calls.count == 0 and path.read_text(encoding="utf-8") == content


def test_several_users_of_one_server_are_refused_because_a_run_has_no_user(
    node_class, model, user_presets, monkeypatch
):
    monkeypatch.setattr(user_presets.args, "multi_user", True)
    with pytest.raises(ValueError, match="BlockAnalysis: save_as: ComfyUI runs with --multi-user.*Empty it"):
        analyse(node_class(), model, save_as="mine")


def test_a_full_disk_is_said_on_the_node_and_the_results_are_returned(node_class, model, folder, shown, monkeypatch):
    (folder / "reports").mkdir(parents=True)
    before = json.dumps({"made_by": "BlockAnalysis"})
    (folder / "reports" / "mine.json").write_text(before, encoding="utf-8")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sheet, _, report = analyse(node_class(), model, operations="skip", save_as="mine")
    assert len(report["cells"]) == 2 and sheet.ndim == 4
    assert "save_as: the results could not be saved: [Errno 28] No space left on device" in shown[-1]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files == [folder / "reports" / "mine.json"] and files[0].read_text(encoding="utf-8") == before


def test_a_judged_block_is_saved_with_its_evidence(pack):
    saving = importlib.import_module(f"{pack.__name__}.nodes.analysis.saving")
    choice = importlib.import_module(f"{pack.__name__}.nodes.analysis.choice")
    change = {"all": {"points": -1.6, "low": -120.0, "high": 2.0}}
    cells = [{"operation": "skip", "block": block, "window": "whole", "change": change} for block in (3, 4)]
    report = {
        "cells": cells, "blocks": {"total": 8}, "prompts": {"number": 64, "sets": ["shapes"]},
        "settings": {"steps": 12, "cfg": 4.5, "boost_strength": 2.0},
    }  # fmt: skip
    model = saving.MadeFor("SD3, SD3.5", 8, 0)
    found = {"skip": choice.Suggestion("4", "", (4,)), "boost": choice.Suggestion("", "")}
    (preset,) = saving.presets_of("n", model, SMALL, report, found)
    (read,) = read_presets(saving.write_presets([preset], "BlockAnalysis"))
    assert asdict(read) == asdict(preset)
    assert (preset.evidence.gain, preset.evidence.low, preset.evidence.saved) == (-1.6, -100.0, 0.125)
    both = {"skip": choice.Suggestion("3, 4", "", (3, 4)), "boost": choice.Suggestion("3:2, 4:2", "", (3, 4))}
    skip, boost = saving.presets_of("n", model, SMALL, report, both)
    assert skip.evidence is None and boost.evidence is None, "blocks were measured one at a time"
    assert (boost.strength, boost.mode, boost.blocks) == (2.0, "residual", "3:2, 4:2")


def test_live_a_saved_result_is_in_the_list_of_presets(comfyui):
    prompt = graph(blocks="4", seed=4, steps=12, cfg=4.5, save_as="four")
    prompt["2"]["inputs"]["prompt"] = "three red circles to the left of a blue star on a white background"
    comfyui.run(prompt)
    folder = comfyui.base / "user" / "default" / "mmdit"
    report = json.loads((folder / "reports" / "four.json").read_text(encoding="utf-8"))
    assert report["skip_list"]["for_block_skip"] == "4", report["cells"]
    found = [each for each in comfyui.get("/mmdit/presets") if each["kind"] == "measured"]
    for name in ("presets", "reports"):
        (folder / name / "four.json").unlink()
    assert [(each["name"], each["from"], each["widgets"]) for each in found] == [
        ("four", "four.json", {"blocks": "4", "branch": "both"})
    ]
