"""Every file, module and link that the documentation names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import list_modules

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "training/RECORD.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = "attributes|benchmarks|docs|locales|mmdit_core|models|nodes|scripts|tests|training|web|workflows"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w?")
DATA = re.compile(r"`([\w-]+\.(?:json|png))`")
MODULE = re.compile(r"python -m ([\w.]+)")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() or name in ("pytest", "pip")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_file_exists(page):
    text = page.read_text(encoding="utf-8")
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    missing += [name for name in DATA.findall(text) if not (ROOT / "docs" / name).exists()]
    missing += [name for name in MODULE.findall(text) if not is_module(name)]
    links = [link for link in LINK.findall(text) if not link.startswith("https://")]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_image_and_data_file_in_docs_belongs_to_a_page():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    files = [path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".json", ".png")]
    assert [name for name in sorted(files) if name not in texts] == []


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_every_shared_workflow_is_in_the_readmes_table(page):
    rows = [line.split("|")[1] for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("| ")]
    names = {name for row in rows for name in re.split(r"[,、 ]+", row.strip())}
    assert {path.stem for path in (ROOT / "workflows").glob("*.json")} <= names


def test_the_list_of_modules_is_up_to_date():
    assert list_modules.TARGET.read_text(encoding="utf-8") == list_modules.page()
