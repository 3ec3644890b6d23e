"""Queues and cancels jobs of two clients at random moments, and watches what the server holds.

    python -m tests.reliability.soak                         1,000 cycles, 40 minutes on two cores
    python -m tests.reliability.soak --cycles 100 --seed 1   others

A cycle queues one of the shipped workflows of the small model with other seeds, another file of the model, a LoRA,
block controls or a long prompt, and cancels it at a random moment or lets it be. Between rounds of cycles nothing runs,
and the server is measured; after some rounds its memory is freed by ComfyUI's `/free`, and after some a job runs whose
images a fresh server must then give, too.

Prints the counts and figures as JSON. Exits with 1 if a job failed, a cancel took longer than a second, an image
differs or something grows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import theilslopes

from scripts.client import Client, ComfyUIError, Event, Events, Interrupted
from scripts.console import say
from scripts.environment import ROOT
from scripts.installations import COMFYUI_HOME, find
from scripts.server import Server
from scripts.workflow import ObjectInfo, Prompt, nodes_of, to_prompt
from scripts.workflow_specs import WORKFLOWS

PROBE = Path(__file__).parent / "probe"
MODEL = ROOT / "models" / "mmdit-small.safetensors"
COPY = "mmdit-small-copy.safetensors"  # the same weights as another file: a switch of models
LORA = "soak.safetensors"
CANCEL_LIMIT = 1.0  # seconds
ROUND = 10  # cycles
FREE_EVERY = 5  # rounds
CHECK_EVERY = 5  # rounds
STEPS = (2, 8)
LONG = "a red circle " * 500  # 2,000 of the 2,048 tokens that T5 is given at most
TOO_LONG = ("a red circle " * 1540, "o" * 20_000)  # 20,000 characters, refused by TripleTextEncode
# Growth a cycle over the last half of the rounds: bytes of memory, and counts.
MOST = {"memory": 100_000, "files": 0.01, "threads": 0.01, "tensors": 0.1, "hooks": 0.001}


@dataclass
class Results:
    """What the cycles gave; several threads add to it."""

    ends: Counter = field(default_factory=Counter)
    cancels: dict[str, list[float]] = field(default_factory=dict)  # class of the running node -> seconds
    failures: list[str] = field(default_factory=list)
    held: list[dict[str, int]] = field(default_factory=list)  # after each round
    checks: list[tuple[Prompt, dict[str, list[bytes]]]] = field(default_factory=list)

    def growth(self, name: str) -> float:
        """The median slope of what the server holds over the last half of the rounds, a cycle.

        The median, because a round that ends right after `/free` holds hardly anything.
        """
        values = [each[name] for each in self.held[len(self.held) // 2 :]]
        return float(theilslopes(values).slope) / ROUND if len(values) > 1 else 0.0


def workflows(info: ObjectInfo) -> dict[str, Prompt]:
    """The prompts of the shipped workflows that the small model runs."""
    names = ["quickstart", *(spec.name for spec in WORKFLOWS if spec.small)]
    files = {name: (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8") for name in names}
    return {name: to_prompt(json.loads(text), info) for name, text in files.items()}


def varied(prompt: Prompt, chance: random.Random) -> Prompt:
    """A prompt with other seeds, fewer steps, and at random another model file, a LoRA, controls or a long text."""
    new: Prompt = json.loads(json.dumps(prompt))
    seed, steps = chance.randrange(1_000_000), chance.randint(*STEPS)
    for node in new.values():
        inputs = node["inputs"]
        for name in {"seed", "noise_seed"} & inputs.keys():
            inputs[name] = seed
        if "steps" in inputs:
            inputs["steps"] = steps
        if "edit_steps" in inputs:
            inputs["edit_steps"] = steps
        if node["class_type"] == "MMDiTLoader":
            inputs["checkpoint"] = chance.choice([MODEL.name, COPY])
        if node["class_type"] == "TripleTextEncode" and chance.random() < 0.02:
            inputs["prompt"] = chance.choice([LONG, *TOO_LONG])
    block = str(chance.randrange(8))
    changes = [
        ("LoraLoaderModelOnly", {"lora_name": LORA, "strength_model": chance.choice([0.5, 1.0])}),
        (
            "TextBoost",
            {"blocks": block, "strength": 1.5, "mode": chance.choice(["residual", "value"])},
        ),
        ("BlockSkip", {"blocks": block, "branch": chance.choice(["both", "negative"])}),
        ("TextDisable", {"blocks": block, "branch": "both"}),
    ]
    for kind, inputs in changes:
        if chance.random() < 0.25:
            insert(new, kind, inputs)
    return new


def insert(prompt: Prompt, kind: str, inputs: dict[str, Any]) -> None:
    """Put a node between the loader and everything that takes its MODEL."""
    (loader,) = nodes_of(prompt, "MMDiTLoader")
    for node in prompt.values():
        node["inputs"] |= {name: [kind, 0] for name, value in node["inputs"].items() if value == [loader, 0]}
    prompt[kind] = {"class_type": kind, "inputs": {**inputs, "model": [loader, 0]}}


def defaults(info: ObjectInfo, prompt: Prompt) -> Prompt:
    """The prompt with the default of every required input that it leaves out."""
    for node in prompt.values():
        for name, form in info[node["class_type"]]["input"].get("required", {}).items():
            if name not in node["inputs"] and len(form) > 1 and "default" in form[1]:
                node["inputs"][name] = form[1]["default"]
    return prompt


def cycle(client: Client, prompt: Prompt, moment: float | None, results: Results) -> None:
    """Queue a prompt and wait for its end. Args: moment, the seconds after which it is cancelled, or None."""
    with client.events() as events:
        job = client.queue(prompt, client_id=events.client_id)
        asked: list[float] = []

        def cancel() -> None:
            asked.append(time.monotonic())
            client.post("/queue", {"delete": [job]})
            client.post("/interrupt", {"prompt_id": job})

        timer = threading.Timer(moment or 0, cancel)
        if moment is not None:
            timer.start()
        running, ended = "", False
        try:
            for event in until_gone(client, events, job):
                ended = event.kind in events.END and event.data.get("prompt_id") == job
                if event.kind == "executing" and event.data.get("node") and not asked:
                    running = prompt[event.data["display_node"].split(":")[0]]["class_type"]
        finally:
            timer.cancel()
        took = time.monotonic() - asked[0] if asked else 0.0
        try:
            if ended:
                client.finished(job)
            results.ends["done" if ended else "deleted"] += 1
        except Interrupted:
            results.ends["cancelled"] += 1
            results.cancels.setdefault(running, []).append(took)
        except ComfyUIError as error:
            results.ends["refused" if is_refused(prompt) else "failed"] += 1
            if not is_refused(prompt):
                results.failures.append(str(error))


def is_refused(prompt: Prompt) -> bool:
    """Whether a text of the prompt is longer than its node takes."""
    return any(node["inputs"].get("prompt") in TOO_LONG for node in prompt.values())


def until_gone(client: Client, events: Events, job: str) -> Iterator[Event]:
    """The messages up to the end of a job, or until it was deleted from the queue."""
    while True:
        try:
            event = events.next(timeout=1)
        except TimeoutError:
            if all(entry[1] != job for part in client.get("/queue").values() for entry in part):
                return
            continue
        yield event
        if event.kind in events.END and event.data.get("prompt_id") == job:
            return


def soak(client: Client, cycles: int, seed: int, results: Results) -> None:
    """Run all cycles, in rounds of ROUND, by two clients at once."""
    info = client.object_info()
    known = workflows(info)
    took = dict.fromkeys(known, 3.0)  # seconds of a whole run, learnt from those that were not cancelled

    def one(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        name = chance.choice(sorted(known))
        prompt = defaults(info, varied(known[name], chance))
        moment = chance.uniform(0, 1.5 * took[name]) if chance.random() < 0.75 else None
        start = time.monotonic()
        cycle(client, prompt, moment, results)
        if moment is None and not is_refused(prompt):
            took[name] = 0.5 * (took[name] + time.monotonic() - start)

    with ThreadPoolExecutor(2) as clients:
        for number in range(0, cycles, ROUND):
            list(clients.map(one, range(number, min(cycles, number + ROUND))))
            index = number // ROUND
            if index % FREE_EVERY == FREE_EVERY - 1:
                client.post("/free", {"unload_models": True, "free_memory": True})
                time.sleep(1)  # the worker does it when it wakes
            if index % CHECK_EVERY == CHECK_EVERY - 1 or number + ROUND >= cycles:
                prompt = checked(known, random.Random(f"{seed} check {index}"))
                results.checks.append((defaults(info, prompt), client.images_by_node(client.run(prompt))))
            results.held.append(client.get("/probe"))
            slowest = max((max(each) for each in results.cancels.values()), default=0.0)
            line = f"{number + ROUND} cycles: {dict(results.ends)}, slowest cancel {slowest:.2f} s, {results.held[-1]}"
            print(line, file=sys.stderr, flush=True)


def checked(known: dict[str, Prompt], chance: random.Random) -> Prompt:
    """A job whose images are compared: one of the workflows that save what they sample."""
    names = ["quickstart", "boost-a-phrase", "edit-by-words", "skip-for-speed"]
    draws = (varied(known[chance.choice(names)], chance) for _ in itertools.count())
    return next(prompt for prompt in draws if not is_refused(prompt))


def differing(checks: list[tuple[Prompt, dict[str, list[bytes]]]]) -> int:
    """How many of the checked jobs give other image files on a fresh server."""
    with fresh_server() as client:
        return sum(client.images_by_node(client.run(prompt)) != images for prompt, images in checks)


def write_lora(folder: Path) -> None:
    """A LoRA of rank 2 with random weights for the first blocks of the small model."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    with safe_open(MODEL, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.startswith("model.diffusion_model.joint_blocks.0.") and name.endswith("qkv.weight"):
                rows, columns = file.get_slice(name).get_shape()
                key = name.removeprefix("model.").removesuffix(".weight")
                weights[f"{key}.lora_down.weight"] = 0.02 * torch.randn(2, columns, generator=generator)
                weights[f"{key}.lora_up.weight"] = 0.02 * torch.randn(rows, 2, generator=generator)
    assert weights, "the small model's layers have other names"
    save_file(weights, folder / LORA)


@contextmanager
def fresh_server() -> Iterator[Client]:
    """A server with this pack, the probe, a second file of the small model and a LoRA."""
    COMFYUI_HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMFYUI_HOME, prefix="soak-", ignore_cleanup_errors=True) as folder:
        models = Path(folder) / "models"
        write_lora(models / "loras")
        (models / "checkpoints").mkdir()
        shutil.copy(MODEL, models / "checkpoints" / COPY)
        with Server(find(), Path(folder), packs=(ROOT, PROBE)) as server:
            yield server.client


def report(results: Results, different: int) -> dict[str, Any]:
    """The counts and figures, and under "faults" what is not as it must be."""
    seconds = sorted(took for each in results.cancels.values() for took in each)
    growth = {name: round(results.growth(name), 4) for name in MOST}
    slow = {node: round(max(each), 2) for node, each in results.cancels.items() if max(each) > CANCEL_LIMIT}
    faults = [f"{count}: {text}" for text, count in Counter(results.failures).most_common()]
    faults += [f"{name} grows by {growth[name]} a cycle" for name, most in MOST.items() if growth[name] > most]
    faults += [f"a cancel in {node} took {took} s" for node, took in slow.items()]
    faults += [f"{different} images differ from a fresh server's"] if different else []
    return {
        "ends": dict(results.ends),
        "cancel_seconds": {"median": round(statistics.median(seconds), 3), "longest": round(seconds[-1], 3)}
        if seconds
        else {},
        "cancelled_in": {node: len(each) for node, each in sorted(results.cancels.items())},
        "images_compared": len(results.checks),
        "growth_a_cycle": growth,
        "held_at_the_end": results.held[-1],
        "faults": faults,
    }


def main() -> int:
    """Run the soak that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    results = Results()
    with fresh_server() as client:
        soak(client, given.cycles, given.seed, results)
    found = report(results, differing(results.checks))
    say(json.dumps(found, indent=2))
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
