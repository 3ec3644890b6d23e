"""The second half of scripts/run.py, in the environment that it made: starts ComfyUI and runs the example workflow."""

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
if str(ROOT) not in sys.path:  # it is there if this file is imported as scripts.generate
    sys.path.insert(0, str(ROOT))

from scripts import installations
from scripts.client import ComfyUIError, Event
from scripts.console import Step, UserError, bar, say
from scripts.installations import Installation
from scripts.run import options
from scripts.server import Server
from scripts.workflow import Prompt, WorkflowError, nodes_of, to_prompt

WORKFLOW = ROOT / "workflows" / "quickstart.json"
TEXT_NODE, SAMPLER_NODE = "TripleTextEncode", "FlowMatchingSampler"

# The title of a node's line; other nodes show their type.
TITLES = {
    "MMDiTLoader": "Loading the model",
    TEXT_NODE: "Encoding the prompt",
    SAMPLER_NODE: "Sampling",
    "VAEDecode": "Decoding the image",
    "SaveImage": "Saving",
}


def main(words: list[str]) -> None:
    """Generate an image, or serve the page until Ctrl+C."""
    given, start = options(words), time.monotonic()
    installation = installations.find()
    if not installation.owned:
        say(f"ComfyUI: {installation.folder} (its Python: {installation.python})")
    if given.ui:
        serve(installation)
    else:
        path = generate(installation, given)
        say(f"Saved {path} ({time.monotonic() - start:.0f} s in all)")


def serve(installation: Installation) -> None:
    """Keep a server up until Ctrl+C; its folders stay in .host/base."""
    server = Server(installation, installations.COMFYUI_HOME / "base")
    with started(server):
        say(f"ComfyUI is up. Open {server.url}/?template={WORKFLOW.stem}&source={ROOT.name}")
        say(f"Its log is in {server.log}. Ctrl+C stops it.")
        server.join()


def started(server: Server) -> Server:
    """The server, up and with this pack in it. Other modules that ComfyUI could not import are remarked upon.

    Raises: UserError with ComfyUI's traceback if it could not import the pack.
    """
    with Step("Starting ComfyUI"):
        server.start()
    failure = server.pack_failure()
    if failure:
        server.stop()
        raise UserError(f"ComfyUI could not import this pack:\n{failure}")
    for path, log in server.import_failures().items():
        reason = log.rpartition("module for custom nodes: ")[2]
        say(f"ComfyUI could not import {'/'.join(path.parts[-2:])} ({reason}); this pack does not need it.")
    return server


def generate(installation: Installation, given: argparse.Namespace) -> Path:
    """Run the example workflow with the given prompt and seed; returns the saved file."""
    home = installations.COMFYUI_HOME
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="run-", ignore_cleanup_errors=True) as base:
        with started(Server(installation, Path(base))) as server:
            prompt = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.client.object_info())
            fill(prompt, TEXT_NODE, "prompt", given.prompt)
            fill(prompt, SAMPLER_NODE, "seed", given.seed)
            record = server.client.run(prompt, timeout=3600, on_event=ProgressLines(prompt))
            image = server.client.images(record)[0]
    path = given.output or ROOT / "output" / file_name(prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


def fill(prompt: Prompt, class_type: str, name: str, value: Any) -> None:
    """Set an input of every node of a type; None keeps the workflow's value."""
    if value is not None:
        for node_id in nodes_of(prompt, class_type):
            prompt[node_id]["inputs"][name] = value


def file_name(prompt: Prompt) -> str:
    """A file name made of the prompt's words and the seed."""
    inputs: dict[str, Any] = {}
    for node_id in nodes_of(prompt, TEXT_NODE) + nodes_of(prompt, SAMPLER_NODE):
        inputs |= prompt[node_id]["inputs"]
    words = re.sub(r"\W+", "-", str(inputs.get("prompt", "")).lower()).strip("-")[:60]
    return f"{words or 'image'}-{inputs.get('seed', 0)}.png"


class ProgressLines:
    """Prints one line for each running node, with a bar for its steps."""

    def __init__(self, prompt: Prompt):
        self.types = {node_id: node["class_type"] for node_id, node in prompt.items()}
        self.step: Step | None = None

    def __call__(self, event: Event) -> None:
        """Print what an event of the run changes."""
        if event.kind == "executing":
            self.end("done")
            node = event.data.get("node")
            if node is not None:
                kind = self.types.get(node, node)
                self.step = Step(TITLES.get(kind, kind)).__enter__()
        elif event.kind == "progress" and self.step:
            self.step.update(bar(event.data["value"], event.data["max"]), now=True)
        elif event.kind in ("execution_error", "execution_interrupted"):
            self.end("failed")
        elif event.kind == "execution_success":
            self.end("done")

    def end(self, word: str) -> None:
        """Close the current line."""
        if self.step:
            self.step.end(word)
        self.step = None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("\nStopped."))  # so that the server is stopped too
    try:
        main(sys.argv[1:])
    except (UserError, ComfyUIError, WorkflowError, TimeoutError) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
