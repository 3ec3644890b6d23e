"""The options: what has no effect is refused, and what is written wrong is said in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.command_line import check, numbers, parse, source_of
from evaluation.study.settings import SettingsError

MODEL = ("--model", "a.safetensors", "--out", "x")
STUDY, GENERATE = ("study", *MODEL), ("generate", *MODEL)


@pytest.mark.parametrize(
    ("words", "option", "right"),
    [
        ((*STUDY, "--workers", "2"), "--workers", "--ray"),
        ((*GENERATE, "--workers", "2"), "--workers", "--ray"),
        ((*STUDY, "--clip-type", "sd3"), "--clip-type", "one or two"),
        ((*STUDY, "--clip", "l", "g", "t", "--clip-type", "sd3"), "--clip-type", "one or two"),
        ((*STUDY, "--clip", "a", "b", "c", "d", "e"), "--clip: 5 files", "at most 4"),
        (("study", "--workflow", "w.json", "--out", "x", "--vae", "v"), "--vae", "workflow"),
        (("study", "--workflow", "w.json", "--out", "x", "--clip", "c"), "--clip", "workflow"),
        ((*STUDY, "--judge-url", "http://x/v1"), "--judge-url", "endpoint"),
        ((*STUDY, "--judge-model", "x"), "--judge-model", "clip"),
        ((*STUDY, "--sweep", "skip", "--modes", "value"), "--modes", "boost"),
        ((*STUDY, "--sweep", "skip,disable", "--strength", "3"), "--strength", "boost"),
        ((*STUDY, "--sweep", "boost", "--max-loss", "5"), "--max-loss", "skip"),
    ],
)
def test_an_option_without_effect_is_refused(words, option, right):
    with pytest.raises(SettingsError, match=f"{option}.*{right}"):
        check(parse(list(words)))


@pytest.mark.parametrize(
    "words",
    [
        STUDY,
        (*STUDY, "--clip", "l", "g", "--clip-type", "sd3"),
        (*STUDY, "--ray", "--workers", "2", "--judge", "clip", "--judge-model", "folder"),
        (*GENERATE, "--max-disk-gb", "0.5"),
    ],
)
def test_options_that_belong_together_are_taken(words):
    check(parse(list(words)))


@pytest.mark.parametrize(
    "words",
    [
        ("--threads", "0"),
        ("--max-disk-gb", "nan"),
        ("--max-disk-gb", "inf"),
        ("--max-disk-gb", "-1"),
        ("--batch", "0"),
        ("--cfg", "nan"),
        ("--strength", "1.2345678"),
    ],
)
def test_a_number_out_of_range_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse([*STUDY, *words])
    assert words[0] in capsys.readouterr().err


def test_numbers_and_ranges_are_read_and_a_range_from_its_end_is_refused():
    assert numbers("0-2, 7 1", "seeds") == (0, 1, 2, 7)
    with pytest.raises(SettingsError, match=r"--seeds.*3-1.*1-3"):
        numbers("0,3-1", "seeds")


def test_files_are_found_from_other_folders_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.safetensors").touch()
    words = ["study", "--model", "m.safetensors", "--clip", "listed.safetensors", "--out", "x"]
    source = source_of(parse(words))
    assert source.model == str(tmp_path / "m.safetensors") and source.clips == ("listed.safetensors",)
    source = source_of(parse(["study", "--workflow", "w.json", "--out", "x"]))
    assert source.workflow == tmp_path / "w.json" and source.model == ""
