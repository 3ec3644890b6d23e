"""`generate`: a folder keeps the images of one model, settings and seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.engine.renderer import Source
from evaluation.generate import SETTINGS, check_settings, file_names
from evaluation.prompts import Prompt
from evaluation.study.settings import SettingsError

SOURCE = Source(model="/models/a.safetensors", settings={"steps": 4})


def note(folder, source=SOURCE, seeds=(0, 1), kind="geneval"):
    (folder / SETTINGS).write_text(check_settings(folder, kind, source, seeds))


def test_the_same_settings_continue_and_more_seeds_are_added(tmp_path):
    note(tmp_path)
    note(tmp_path, replace(SOURCE, model="elsewhere/a.safetensors", batch=4))
    note(tmp_path, seeds=(0, 1, 2))
    note(tmp_path, seeds=(0,))
    with pytest.raises(SettingsError, match="other seeds"):
        note(tmp_path, seeds=(0, 1, 5))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"model": "b.safetensors"}, "model"), ({"settings": {"steps": 8}}, "settings"), ({"vae": "v"}, "vae")],
)
def test_other_settings_are_refused(tmp_path, change, name):
    note(tmp_path)
    with pytest.raises(SettingsError, match=f"images of other {name}"):
        note(tmp_path, replace(SOURCE, **change))


def test_names_that_count_over_the_seeds_need_the_same_seeds(tmp_path):
    note(tmp_path, kind="compbench")
    with pytest.raises(SettingsError, match="other seeds"):
        note(tmp_path, kind="compbench", seeds=(0, 1, 2))


def test_compbench_names_its_images_by_prompt():
    prompts = [Prompt("a red book/a green cup", "color", {}), Prompt("a pink bowl", "color", {})]
    names = [path.as_posix() for path in file_names("compbench", prompts, (0, 1)).values()]
    assert names == [
        "color/samples/a red book_a green cup_000000.png",
        "color/samples/a red book_a green cup_000001.png",
        "color/samples/a pink bowl_000002.png",
        "color/samples/a pink bowl_000003.png",
    ]


@pytest.mark.parametrize("category", ["..", "...", "../x", "/", "a/../../b"])
def test_no_category_leads_out_of_the_folder(category):
    (path,) = file_names("compbench", [Prompt("a cup", category, {})], (0,)).values()
    assert not path.is_absolute() and ".." not in path.parts and path.parts[-1] == "a cup_000000.png"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"seeds": 1}', "[" * 100_000, "\x00"])
def test_a_note_of_another_program_is_refused(tmp_path, text):
    (tmp_path / "generate.json").write_text(text)
    with pytest.raises(SettingsError, match="generate.json is not from this command. Remove it"):
        note(tmp_path)
