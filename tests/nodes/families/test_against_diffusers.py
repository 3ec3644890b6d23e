"""Block controls on ComfyUI's models against plain wrappers on diffusers' models with the same weights.

Both compute one step of guidance, positive and negative prompt in one batch. The largest difference of the velocities
is at most 1e-5 of their standard deviation, on AuraFlow 1e-4: there the two libraries round the timestep differently.

The models are set so that the two libraries are the same model: an even number of rows and columns of tokens on
Qwen-Image and AuraFlow, which centre an odd number differently; ComfyUI's epsilon in the norms of queries and keys on
Z-Image, Lumina2 and FLUX.2; the modulations' numbers of the published Chroma; the timestep's width of Z-Image. ComfyUI
pads FLUX.2's text, so diffusers' model is given the padded text. Left out: Chroma Radiance, MageFlow and Lens, which
diffusers does not have; SD3, which `tests/core/control` compares; HunyuanVideo 1.5, whose class in diffusers always
adds the masked tokens of a second text and of an image to the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nodes.families.diffusers_models import Change, Row, changed
from tests.nodes.families.diffusers_twins import TWINS, Twin
from tests.nodes.families.oracles import Bench
from tests.nodes.families.tiny import build

TOLERANCE = {name: 1e-4 if name == "AuraFlow" else 1e-5 for name in TWINS}
ACTS = 1e-2  # what a change of some block must do at least
SIGMA = 0.7
BRANCHES = ("positive", "negative")  # as numbered in ComfyUI's cond_or_uncond


@dataclass(frozen=True)
class Pair:
    """One family in both libraries. Fields: twin; theirs, diffusers' model; bench, ComfyUI's; tolerance."""

    twin: Twin
    theirs: nn.Module
    bench: Bench
    tolerance: float

    def ours(self, *controls: Any) -> dict[str, tuple[Row, Tensor]]:
        """What ComfyUI's network is given and what it gives, for each branch."""
        found: dict[str, tuple[Row, Tensor]] = {}

        def note(network: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Tensor) -> None:
            branches = given["transformer_options"]["cond_or_uncond"]
            for index, branch in enumerate(branches):
                one = slice(index, index + 1)
                more = {name: value[one] for name, value in given.items() if isinstance(value, Tensor)}
                row = Row(x=args[0][one], t=args[1][one], **{"guidance": None, **more})
                found[BRANCHES[branch]] = row, out[one]

        handle = self.bench.model.model.diffusion_model.register_forward_hook(note, with_kwargs=True)
        try:
            self.bench.run(*controls, sigmas=(SIGMA, 0.0))
        finally:
            handle.remove()
        return found

    def wrapped(self, row: Row, changes: Mapping[int, Change]) -> Tensor:
        """The velocity of diffusers' model with changed blocks."""
        text = self.bench.tiny.text_tokens(7)
        with torch.no_grad(), changed(self.theirs, self.twin.layout, text, changes):
            return self.twin.call(self.theirs, row)


@pytest.fixture(scope="module", params=TWINS)
def pair(request, bench) -> Pair:
    twin = TWINS[request.param]
    theirs = twin.model()
    made = Bench(bench.module, twin.tiny, *build(twin.tiny, state=twin.state(theirs)))
    return Pair(twin, theirs, made, TOLERANCE[request.param])


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.std())


Make = Callable[..., Any]
OPERATIONS: dict[str, tuple[Callable[[Make, Sequence[int], str], Any], Change]] = {
    "skip": (lambda make, blocks, branch: make("skip", blocks, branch=branch), Change(skip=True)),
    "disable onward": (lambda make, blocks, branch: make("disable", blocks, branch=branch), Change(text=0.0)),
    "disable block": (
        lambda make, blocks, branch: make("disable", blocks, scope="block", branch=branch),
        Change(attention=0.0),
    ),
    "boost residual": (lambda make, blocks, branch: make("boost", blocks, 1.7, branch=branch), Change(text=1.7)),
    "boost attention": (
        lambda make, blocks, branch: make("boost", blocks, 2.5, "attention", branch=branch),
        Change(attention=2.5),
    ),
    "boost value": (
        lambda make, blocks, branch: make("boost", blocks, 2.5, "value", branch=branch),
        Change(value=2.5),
    ),
}


def test_both_libraries_have_the_same_model(pair):
    assert set(pair.ours()) == set(BRANCHES)
    for row, velocity in pair.ours().values():
        assert difference(velocity, pair.wrapped(row, {})) <= pair.tolerance


def compared(pair: Pair, operation: str, blocks: Sequence[int], branch: str) -> tuple[float, float]:
    """The largest difference to the wrapped blocks, and the largest to the plain model, over both branches."""
    control, change = OPERATIONS[operation]
    wrong, acts = 0.0, 0.0
    for name, (row, velocity) in pair.ours(control(pair.bench.control, blocks, branch)).items():
        changes = dict.fromkeys(blocks, change) if branch in ("both", name) else {}
        theirs = pair.wrapped(row, changes)
        wrong = max(wrong, difference(velocity, theirs))
        acts = max(acts, difference(theirs, pair.wrapped(row, {})))
    return wrong, acts


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_control_on_each_block_on_some_and_on_all_equals_plain_wrappers(pair, operation):
    numbers = pair.bench.numbers
    assert len(numbers) == len(pair.twin.layout.blocks(pair.theirs))
    found = [compared(pair, operation, blocks, "both") for blocks in (*((n,) for n in numbers), numbers[::2], numbers)]
    assert max(wrong for wrong, _ in found) <= pair.tolerance
    cancels = pair.twin.layout.cross and operation == "boost attention"  # all keys alike: nothing happens
    assert cancels or max(acts for _, acts in found) > ACTS


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_control_of_one_branch_changes_that_branch_of_the_batch_alone(pair, operation, branch):
    wrong, _ = compared(pair, operation, pair.bench.numbers[1:], branch)
    assert wrong <= pair.tolerance
