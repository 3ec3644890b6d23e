"""The routes of measured presets: the files of a user's folder are listed."""

from __future__ import annotations

import json

import pytest

from mmdit_core.control.preset_files import Evidence, MeasuredPreset, write_presets
from scripts.client import ComfyUIError

SMALL = "mmdit-small.safetensors"
MEASURED = MeasuredPreset(
    "count", "boost", "SD3, SD3.5", 8, 0, SMALL, "2, 3:2", "both", 1.5, "value",
    Evidence("2026-11-30", "shapes", 128, "shapes", "all", 3.1, 0.4, 5.8, 0.2, 8, 4.5),
)  # fmt: skip


@pytest.fixture
def folder(comfyui):
    path = comfyui.base / "user" / "default" / "mmdit" / "presets"
    path.mkdir(parents=True, exist_ok=True)
    yield path
    for each in path.iterdir():
        each.rmdir() if each.is_dir() else each.unlink()


def listed(comfyui, kind):
    return [each for each in comfyui.get("/mmdit/presets") if each["kind"] == kind]


def test_the_presets_of_a_users_files_are_listed_with_all_that_the_page_needs(comfyui, folder):
    (folder / "study.json").write_text(write_presets([MEASURED]), encoding="utf-8")
    (found,) = listed(comfyui, "measured")
    assert (found["name"], found["from"], found["action"]) == ("count", "study.json", "boost")
    assert (found["family"], found["double"], found["single"], found["file"]) == ("SD3, SD3.5", 8, 0, SMALL)
    assert found["widgets"] == {"blocks": "2, 3:2", "branch": "both", "strength": 1.5, "mode": "value"}
    assert found["made_for"] == MEASURED.made_for and found["evidence"]["random"] == 0.2


def test_a_file_that_cannot_be_read_is_listed_with_the_reason_next_to_the_others(comfyui, folder):
    (folder / "a.json").write_text("{", encoding="utf-8")
    (folder / "b.json").write_bytes(b"\xff\xfe")
    (folder / "c.json").write_bytes(b" " * 2_000_000)
    (folder / "d.json").mkdir()
    wrong = json.loads(write_presets([MEASURED]))
    wrong["presets"][0]["widgets"]["blocks"] = "8"
    (folder / "e.json").write_text(json.dumps(wrong), encoding="utf-8")
    (folder / "f.json").write_text(write_presets([MEASURED]), encoding="utf-8")
    (folder / "other.txt").write_text("no preset", encoding="utf-8")
    assert [each["from"] for each in listed(comfyui, "measured")] == ["f.json"]
    reasons = {each["name"]: each["reason"] for each in listed(comfyui, "unreadable")}
    assert list(reasons) == ["a.json", "b.json", "c.json", "d.json", "e.json"]
    for name, words in (("a", "not JSON"), ("b", "utf"), ("c", "more than"), ("d", "not a file"), ("e", "block 8")):
        assert words in reasons[f"{name}.json"]
    assert "presets[0].widgets.blocks" in reasons["e.json"]


def test_the_published_setting_that_fills_the_inputs_is_listed(comfyui):
    (found,) = listed(comfyui, "filled")
    assert found["name"] == "SD3.5 Medium: skip-layer guidance 7, 8, 9" and found["action"] == "skip"
    assert found["widgets"] == {"blocks": "7-9", "branch": "negative", "start_percent": 0.01, "end_percent": 0.2}
    assert found["made_for"] == "SD3.5 Medium 24+0: skip-layer guidance 7, 8, 9"
    assert all("SkipLayerGuidanceSD3" in found["notes"][language] for language in ("en", "zh"))


def test_only_so_many_files_are_read(comfyui, folder):
    text = write_presets([MEASURED])
    for number in range(101):
        (folder / f"{number:03}.json").write_text(text, encoding="utf-8")
    assert len(listed(comfyui, "measured")) == 100
    assert "first 100" in listed(comfyui, "unreadable")[0]["reason"]


def run_with(comfyui, file, **widgets):
    """A workflow with the boost of a preset, as the page fills it, in a live server."""
    whole = {"phrase": "", "part": "all", "start_percent": 0.0, "end_percent": 1.0, "fade": "constant"}
    encode = {"clip": ["1", 1], "prompt": "a red circle", "negative": "", "clip_l": "", "clip_g": "", "t5xxl": ""}
    encode |= {"clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0, "t5_length": "auto"}
    sampler = {"model": ["3", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["4", 0], "seed": 1}
    sampler |= {"steps": 2, "cfg": 4.0, "solver": "euler", "schedule": "linear", "shift": 0.0, "denoise": 1.0}
    return comfyui.run(
        {
            "1": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": file, "weight_dtype": "default"}},
            "2": {"class_type": "TripleTextEncode", "inputs": {**encode, "empty": "encode"}},
            "3": {"class_type": "TextBoost", "inputs": {"model": ["1", 0], **whole, "preset": "none", **widgets}},
            "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "5": {"class_type": "FlowMatchingSampler", "inputs": sampler},
            "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "preset"}},
        }
    )


def test_a_filled_node_runs_without_the_presets_file_and_on_its_model_alone(comfyui, folder):
    (folder / "study.json").write_text(write_presets([MEASURED]), encoding="utf-8")
    (found,) = listed(comfyui, "measured")
    (folder / "study.json").unlink()
    filled = {**found["widgets"], "made_for": found["made_for"]}
    assert run_with(comfyui, SMALL, **filled)["status"]["status_str"] == "success"
    filled["made_for"] = filled["made_for"].replace("8+0", "24+0")
    with pytest.raises(ComfyUIError, match=r"TextBoost: made_for: it names SD3, SD3.5 24\+0, this model is .* 8\+0"):
        run_with(comfyui, SMALL, **filled)
