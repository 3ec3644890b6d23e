"""Makes a picture from a prompt with this pack's nodes, inside a real ComfyUI.

    python scripts/run.py                                     the prompt that the example workflow holds
    python scripts/run.py "a red circle and a blue square"    another one
    python scripts/run.py --ui                                leaves the server up and prints the address to open

The first run makes the environment in .venv/ and finds or fetches ComfyUI; later runs start within seconds.
"""

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
sys.path.insert(0, str(ROOT))
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")

from scripts import installations
from scripts.client import ComfyUIError, Event
from scripts.console import Step, UserError, bar, say
from scripts.server import Server
from scripts.workflow import Prompt, WorkflowError, nodes_of, to_prompt

WORKFLOW = ROOT / "workflows" / "quickstart.json"
TEXT_NODE, SAMPLER_NODE = "TripleTextEncode", "FlowMatchingSampler"

# What a person sees while a node runs; other nodes show their type.
DOING = {
    "MMDiTLoader": "Loading the model",
    TEXT_NODE: "Encoding the prompt",
    SAMPLER_NODE: "Sampling",
    "VAEDecode": "Decoding the picture",
    "SaveImage": "Saving",
}


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description="A picture from a prompt, made inside ComfyUI.")
    parser.add_argument("prompt", nargs="?", help="what the picture shall show (default: the example's prompt)")
    parser.add_argument("--ui", action="store_true", help="leave the server up and print the address to open")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="where to save (default: in output/)")
    parser.add_argument("--seed", type=int, help="another seed gives another picture (default: the example's)")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    wanted = arguments(words)
    found = installations.find()
    if wanted.ui:
        serve(found)
    else:
        start = time.monotonic()
        path = picture(found, wanted)
        say(f"Saved {path} ({time.monotonic() - start:.0f} s in all)")


def serve(found: installations.Installation) -> None:
    """Keep a server up until Ctrl+C; its folders stay in .host/base."""
    server = Server(found, installations.COMFYUI_HOME / "base")
    with started(server):
        say(f"ComfyUI is up. Open {server.url}/?template={WORKFLOW.stem}&source={ROOT.name}")
        say(f"Its log is in {server.log}. Ctrl+C stops it.")
        server.join()


def started(server: Server) -> Server:
    with Step("Starting ComfyUI"):
        server.start()
    failure = server.pack_failure()
    if failure:
        server.stop()
        raise UserError(f"ComfyUI could not import this pack:\n{failure}")
    return server


def picture(found: installations.Installation, wanted: argparse.Namespace) -> Path:
    """Run the example workflow with the prompt and seed that were asked for; returns the saved file."""
    installations.COMFYUI_HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=installations.COMFYUI_HOME, prefix="run-", ignore_cleanup_errors=True) as base:
        with started(Server(found, Path(base))) as server:
            prompt = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.client.object_info())
            fill(prompt, TEXT_NODE, "prompt", wanted.prompt)
            fill(prompt, SAMPLER_NODE, "seed", wanted.seed)
            record = server.client.run(prompt, timeout=3600, on_event=Watcher(prompt))
            image = server.client.images(record)[0]
    path = wanted.output or ROOT / "output" / file_name(prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


def fill(prompt: Prompt, class_type: str, name: str, value: Any) -> None:
    """Set an input of every node of a type; None leaves what the workflow holds."""
    if value is not None:
        for node_id in nodes_of(prompt, class_type):
            prompt[node_id]["inputs"][name] = value


def file_name(prompt: Prompt) -> str:
    """A file name that says what the picture shows: the prompt's words and the seed."""
    inputs: dict[str, Any] = {}
    for node_id in nodes_of(prompt, TEXT_NODE) + nodes_of(prompt, SAMPLER_NODE):
        inputs |= prompt[node_id]["inputs"]
    words = re.sub(r"\W+", "-", str(inputs.get("prompt", "")).lower()).strip("-")[:60]
    return f"{words or 'picture'}-{inputs.get('seed', 0)}.png"


class Watcher:
    """Shows what runs: one line for each node, a bar for its steps."""

    def __init__(self, prompt: Prompt):
        self.types = {node_id: node["class_type"] for node_id, node in prompt.items()}
        self.step: Step | None = None

    def __call__(self, event: Event) -> None:
        if event.kind == "executing":
            self.close()
            node = event.data.get("node")
            if node is not None:
                kind = self.types.get(node, node)
                self.step = Step(DOING.get(kind, kind)).__enter__()
        elif event.kind == "progress" and self.step:
            self.step.update(bar(event.data["value"], event.data["max"]), now=True)
        elif event.kind in ("execution_error", "execution_interrupted"):
            self.close(ComfyUIError)
        elif event.kind == "execution_success":
            self.close()

    def close(self, error: type[Exception] | None = None) -> None:
        if self.step:
            self.step.__exit__(error, None, None)
        self.step = None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("\nStopped."))  # so that the server is stopped too
    try:
        main(sys.argv[1:])
    except (UserError, ComfyUIError, WorkflowError, TimeoutError) as trouble:
        sys.exit(f"\n{trouble}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
