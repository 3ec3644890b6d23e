"""Make the thumbnails of the template browser: run each workflow that the small model can run.

    python -m scripts.thumbnails [name ...]

A thumbnail shows the last two images of the run side by side ("before" and "after", "without" and "with"), or its one.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image

from scripts.client import Client
from scripts.console import say
from scripts.environment import ROOT
from scripts.server import temporary_server
from scripts.workflow import to_prompt
from scripts.workflow_specs import WORKFLOWS

FOLDER = ROOT / "workflows"
SIDE, GAP, QUALITY = 256, 4, 88
LARGE = {spec.name for spec in WORKFLOWS if not spec.small}
ONE = {"analysis", "cfg-window"}  # their other images are plots


def thumbnail(client: Client, path: Path) -> Image.Image:
    """Run a workflow and arrange its images."""
    prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), client.object_info())
    record = client.run(prompt)
    # By the nodes' numbers, "before" first: ComfyUI runs a node as soon as it can.
    record["outputs"] = dict(sorted(record["outputs"].items(), key=lambda output: int(output[0])))
    found = [Image.open(io.BytesIO(image)).convert("RGB") for image in client.images(record)]
    squares = [image for image in found if image.width == image.height]
    chosen = found[:1] if path.stem in ONE else (squares or found)[-2:]
    scaled = [image.resize((round(SIDE * image.width / image.height), SIDE)) for image in chosen]
    canvas = Image.new("RGB", (sum(image.width + GAP for image in scaled) - GAP, SIDE), (128, 128, 128))
    left = 0
    for image in scaled:
        canvas.paste(image, (left, 0))
        left += image.width + GAP
    return canvas


def main(names: list[str]) -> None:
    """Write the thumbnails of the workflows with these names, or all."""
    chosen = [path for path in sorted(FOLDER.glob("*.json")) if path.stem not in LARGE]
    with temporary_server("thumbnails") as server:
        for path in chosen:
            if not names or path.stem in names:
                thumbnail(server.client, path).save(path.with_suffix(".jpg"), quality=QUALITY)
                say(str(path.with_suffix(".jpg")))


if __name__ == "__main__":
    main(sys.argv[1:])
