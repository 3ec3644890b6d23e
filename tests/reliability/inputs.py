"""Node inputs through `/prompt` of a live server: bad and extreme values, directly and by links.

    python -m tests.reliability.inputs --count 3000 --seed 0

prints the number of prompts by outcome as JSON, and each defect with the command that repeats it. Every node runs from
a valid prompt with one to three inputs replaced. It must give finite results, be refused by ComfyUI, or fail with an
error that names a node, its input, what was found and what is right, before any sampling.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from mmdit_core.checkpoints.keymaps import expected_shapes
from mmdit_core.config import FluxConfig
from scripts.client import Client, ComfyUIError
from scripts.environment import ROOT
from scripts.installations import Installation
from scripts.server import Server
from scripts.workflow import ObjectInfo, Prompt, is_widget
from tests.reliability import command
from tests.reliability.damage import parts_of
from tests.reliability.graphs import GOOD, OTHER, SOURCES, TARGET, inputs_of, nodes_of_pack, valid_prompt

ODD_VALUES = Path(__file__).parent / "odd_values"
SLOW = 10.0  # seconds for one prompt
# Its blocks are those of FLUX, and its sizes those by which ComfyUI knows it.
FLUX = FluxConfig(
    hidden_size=256, num_heads=2, depth=1, depth_single_blocks=1, context_dim=4096, pooled_dim=768, guidance_embed=True
)
# Type of an input -> the names that odd values for it begin with.
FAMILIES = {"LATENT": ("latent",), "SIGMAS": ("sigmas",), "VAE": ("vae",), "MODEL": (), "CLIP": ()}
CONDITIONINGS = (
    "conditioning", "pooled", "area", "mask", "strength", "range", "hooks", "control", "gligen", "guidance",
    "reference", "concat", "token map", "unknown option",
)  # fmt: skip
PLAIN = (
    "nan", "inf", "-inf", "huge int", "huge negative int", "2**64", "-1", "0", "1", "1.0", "2.5", "1e308", "5e-324",
    "-0.0", "true", "numpy int64", "numpy float32", "numpy float64 nan", "numpy bool", "numpy array", "tensor",
    "tensor of two", "complex", "empty text", "long word", "long text", "very long text", "half a surrogate", "null",
    "bytes", "none", "empty list", "list", "dict", "object",
)  # fmt: skip
WRONG = ("none", "empty list", "list", "dict", "object", "1", "empty text", "tensor")  # for any link
DIRECT_NUMBERS: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, 10**400, -(10**400), 2**64, 2**63, -1, 0, 1, 2, 0.5, 1e308, 5e-324, "5", "x", "",
    "nan", "9" * 5000, None, True, {}, [1, 2, 3],
)  # fmt: skip
DIRECT_TEXTS: tuple[Any, ...] = (
    "", " ", "\n\n", "a" * 20_000, "a red circle " * 1_600, "x" * 1_000_000, "0, " * 333_333, "0" * 5000, "1-" * 9000,
    "d" + "9" * 5000, "\ud800", "a\0b", "红色的圆", "\u202eabc", "é" * 2000, "(" * 20_000, "((a:1e400):nan)",
    "embedding:x", "a | b", "1, 0.5, 0", "0.9, 1", "1 nan 0", "0-0.5 | 0.5-1", "all", "3:1e400", "!" * 100,
    "set:shapes 9" * 9, "set:objects 1", "on | 0 | 1 |", "off | 9 | 1 | x", 5, None, True, {}, [1, 2, 3], 1e308,
)  # fmt: skip
SLOW_CHOICES = {"bosh3", "dopri5"}  # which choose their own steps, as many as a tolerance needs
LARGEST_IS_SLOW = {"steps", "seeds", "average", "tolerance"}
MESSAGE = re.compile(r"(?P<node>\w+): (?P<names>\w[\w, ]*): (?P<found>.+)\. (?P<right>.+)", re.DOTALL)
NOT_FINITE = "not finite"  # an error while sampling: what makes it is not known before


@dataclass(frozen=True)
class Replaced:
    """An input of the target with another value. Fields: name; words, what it is; value; nodes that it needs."""

    name: str
    words: str
    value: Any
    nodes: Prompt


class Fuzzer:
    """Makes prompts and runs them on a server.

    Fields: outcomes, by kind; nodes, prompts of each node; defects, (seed of the prompt, what went wrong).
    """

    def __init__(self, client: Client):
        self.client = client
        self.info: ObjectInfo = client.object_info()
        self.names = nodes_of_pack(self.info)
        self.valid = {name: valid_prompt(self.info, name) for name in self.names}
        self.outcomes: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()
        self.defects: list[tuple[str, str]] = []

    def one(self, seed: str) -> list[str]:
        """Run the prompt of a seed. Returns: its defects."""
        random = Random(seed)
        node = random.choice(self.names)
        replaced = self._replacements(node, random)
        outcome = self.run(self.prompt(node, replaced))
        self.outcomes[outcome.partition(":")[0]] += 1
        self.nodes[node] += 1
        if not outcome.startswith("defect"):
            return []
        found = f"{node} with {', '.join(f'{each.name} = {each.words}' for each in replaced)}: {outcome}"
        self.defects.append((seed, found))
        return [found]

    def prompt(self, node: str, replaced: list[Replaced]) -> Prompt:
        """The valid prompt of a node with other values."""
        valid = self.valid[node]
        prompt = {**valid, TARGET: {**valid[TARGET], "inputs": dict(valid[TARGET]["inputs"])}}
        for each in replaced:
            prompt |= each.nodes
            prompt[TARGET]["inputs"][each.name] = each.value
        return prompt

    def _replacements(self, node: str, random: Random) -> list[Replaced]:
        inputs = inputs_of(self.info, node)
        names = random.sample(sorted(inputs), min(len(inputs), random.choice((1, 1, 1, 2, 3))))
        return [self.replacement(name, *inputs[name], random) for name in names]

    def replacement(self, name: str, kind: Any, options: dict[str, Any], random: Random) -> Replaced:
        """Another value for an input."""
        if is_widget(kind, options):
            if random.random() < 0.6:
                value = random.choice(_direct(name, kind, options))
                return Replaced(name, f"{value!r:.40}", value, {})
            return _odd(name, random.choice(PLAIN), None)
        if kind in ("MODEL", "CLIP", "VAE") and random.random() < 0.4:
            # Another family's model, whose file holds no CLIP and no VAE; or another output of the loader.
            slot = {"MODEL": 0, "CLIP": 1, "VAE": 2}[kind]
            if random.random() < 0.7:
                return Replaced(name, "another family's", ["other", slot], {"other": SOURCES["other"]})
            return _odd_link(name, "another output", ["loader", (slot + 1) % 3])
        own = CONDITIONINGS if kind == "CONDITIONING" else FAMILIES[kind]
        values = [value for value in odd_names() if value.startswith(own)] if own else []
        choices = values if values and random.random() < 0.85 else list(WRONG)
        return _odd(name, random.choice(choices), GOOD.get(kind))

    def run(self, prompt: Prompt) -> str:
        """Run a prompt. Returns: "finite", "refused by ComfyUI", "named error", NOT_FINITE, or "defect: ..."."""
        worked = False
        with self.client.events() as events:
            try:
                prompt_id = self.client.queue(prompt, client_id=events.client_id)
            except ComfyUIError as error:
                refused = "HTTP 400" in str(error)
                return "refused by ComfyUI" if refused else f"defect: {error!s:.300}"
            try:
                for event in events.until_done(prompt_id, timeout=SLOW):
                    worked = worked or (event.kind == "progress" and event.data["value"] > 0)
            except TimeoutError:
                self.client.interrupt()
                self._wait(prompt_id)
                return f"defect: no end within {SLOW:g} s"
        try:
            record = self.client.finished(prompt_id)
        except ComfyUIError as error:
            return self._judge(prompt, error.details, worked)
        finite = all(all(each.get("finite", [True])) for each in record["outputs"].values())
        return "finite" if finite else "defect: a result is not finite"

    def _wait(self, prompt_id: str) -> None:
        """Wait for the end of a cancelled prompt, so that the next one is timed by itself."""
        try:
            self.client.finished(prompt_id, timeout=300)
        except ComfyUIError:
            pass

    def _judge(self, prompt: Prompt, error: dict[str, Any], worked: bool) -> str:
        """What an error says."""
        words = error["exception_message"].strip()
        shown = f"{error['node_type']}: {words:.400}"
        match = MESSAGE.fullmatch(words)
        classes = {each["class_type"] for each in prompt.values()}
        if match is None or match["node"] not in classes:
            return NOT_FINITE if "a value that is not finite" in words else f"defect: {shown}"
        known = {*inputs_of(self.info, match["node"]), *self.info[match["node"]]["output"]}
        if not set(match["names"].split(", ")) <= known:
            return f"defect: no input of the node: {shown}"
        if len(words) > 3000:
            return f"defect: {len(words)} characters: {shown}"
        return f"defect: after sampling: {shown}" if worked else "named error"


def odd_names() -> list[str]:
    """The names of OddValue's values, without its module, which needs ComfyUI."""
    text = (ODD_VALUES / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^    "([^"]+)": lambda', text, re.MULTILINE)


def _odd(name: str, value: str, base: list[Any] | None) -> Replaced:
    """An input by a link from OddValue."""
    inputs = {"name": value} if base is None else {"name": value, "base": base}
    return Replaced(
        name, f"{value} by a link", [f"odd {name}", 0], {f"odd {name}": {"class_type": "OddValue", "inputs": inputs}}
    )


def _odd_link(name: str, words: str, source: list[Any]) -> Replaced:
    """An input by a link of another type: through a node, as ComfyUI refuses a plain one."""
    node = {"class_type": "OddValue", "inputs": {"name": "as it is", "base": source}}
    return Replaced(name, words, [f"odd {name}", 0], {f"odd {name}": node})


def _direct(name: str, kind: Any, options: dict[str, Any]) -> list[Any]:
    """Values that are written into a prompt."""
    if isinstance(kind, list):
        return [*(each for each in kind[:40] if each not in SLOW_CHOICES), "x", "", 5, None, {}, "a" * 1_000_000]
    if kind in ("INT", "FLOAT"):
        ends = [options["min"], options["min"] - 1, options["max"] + 1]
        return [*DIRECT_NUMBERS, *ends, *([] if name in LARGEST_IS_SLOW else [options["max"]])]
    return list(DIRECT_TEXTS) if kind == "STRING" else [True, False, "", "x", 5, None, {}, math.nan]


@contextmanager
def odd_server(installation: Installation, base: Path) -> Iterator[Server]:
    """A server with the pack, the odd values and a tiny model of another family."""
    folder = base / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    source = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(shape, generator=source) for name, shape in expected_shapes(FLUX).items()}
    (folder / OTHER).write_bytes(parts_of(state).file())
    with Server(installation, base, packs=(ROOT, ODD_VALUES)) as server:
        yield server


def main(words: list[str]) -> int:
    seeds = command.seeds_of(words, "inputs", __doc__, "prompt", 3000)
    with command.comfyui() as (installation, base), odd_server(installation, base) as server:
        fuzzer = Fuzzer(server.client)
        command.run_all(seeds, fuzzer.one)
    return command.status(fuzzer.defects, prompts=len(seeds), nodes=fuzzer.nodes, outcomes=fuzzer.outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
