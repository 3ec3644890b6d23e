"""Every node has a help page with an image that names every input that is not advanced."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from scripts.help_images import DRAWN, IMAGES

DOCS = Path(__file__).parents[3] / "web" / "docs"
MAX_BYTES = 400_000  # help pages must open quickly


def test_every_node_has_a_help_page_with_its_own_image(pack):
    assert {*IMAGES, *DRAWN} == set(pack.NODE_CLASS_MAPPINGS)
    for name in pack.NODE_CLASS_MAPPINGS:
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page)
        assert shown and (DOCS / shown[0][1]).name == f"{name}.png", name
        with Image.open(DOCS / shown[0][1]) as image:
            assert image.width > 300 and image.height > 100
        assert (DOCS / shown[0][1]).stat().st_size < MAX_BYTES


def test_every_image_belongs_to_a_page():
    assert {path.stem for path in DOCS.glob("*.png")} == {path.stem for path in DOCS.glob("*.md")}


def test_a_help_page_names_every_input_that_is_not_advanced(pack):
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8").lower()
        inputs = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
        for given, form in inputs.items():
            options = form[1] if len(form) > 1 else {}
            linked = (
                isinstance(form[0], str) and form[0].isupper() and form[0] not in ("INT", "FLOAT", "STRING", "BOOLEAN")
            )
            if not linked and not options.get("advanced"):
                assert given in page, (name, given)
