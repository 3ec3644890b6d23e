"""Each node on each family: the oracles of the block nodes through the node classes, and plain checks of the others.

A cell is (node on a family) -> the largest difference from what must come out, in standard deviations of the latent.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from torch import Tensor

import nodes as comfyui_nodes
from tests.nodes.families import oracles
from tests.nodes.families.oracles import MODES, ROUNDING, Bench, difference
from tests.nodes.families.text_oracles import boosted_phrase, boosted_whole, scaled_text, without_text
from tests.nodes.families.tiny import FAMILIES, build

SEED, THERE_AND_BACK = 5, 1e-4


@dataclass
class NodeBench(Bench):
    """A tiny model with the pack's node classes. Fields: nodes, NODE_CLASS_MAPPINGS."""

    nodes: Mapping[str, type] = field(default_factory=dict)

    @classmethod
    def of_pack(cls, pack: ModuleType, name: str, cfg: float = 3.0) -> NodeBench:
        """The bench of a family. Args: pack, this repository as ComfyUI imports it."""

        def module(of: str) -> ModuleType:
            return importlib.import_module(f"{pack.__name__}.nodes.{of}")

        return cls(module, FAMILIES[name], *build(FAMILIES[name]), cfg, nodes=pack.NODE_CLASS_MAPPINGS)

    def attach(self, model, controls: Sequence[Any]):
        """A MODEL from the node of each control, with the control's fields as its inputs."""
        for control in controls:
            model = self.node(control)(model)
        return model

    def node(self, control) -> Callable[[Any], Any]:
        """MODEL -> MODEL of the node that makes this control."""
        given = {
            "blocks": ", ".join(map(str, control.blocks)),
            "start_percent": control.window.start,
            "end_percent": control.window.end,
        }
        if control.action == "skip":
            name, given["branch"] = "BlockSkip", control.branch
        elif control.action == "disable":
            name, given["branch"], given["scope"] = "TextDisable", control.branch, control.scope
        elif control.action == "prompt":
            name, given["conditioning"] = "BlockPrompt", [[control.context, dict(control.context_inputs or {})]]
        else:
            name = "TextBoost"
            given |= {each: getattr(control, each) for each in ("strength", "mode", "part", "branch")}
            given |= {"phrase": "\n".join(control.phrases), "fade": control.window.fade}
        node = self.nodes[name]()
        return lambda model: node.apply(model, **given)[0]

    def sampled(self, model=None, latent: dict[str, Any] | None = None, **changed: Any) -> Tensor:
        """What FlowMatchingSampler gives. Args: changed, its inputs; two steps of Euler of its own schedule."""
        given = dict(seed=SEED, steps=2, cfg=self.cfg, solver="euler", schedule="linear", shift=0.0, denoise=1.0)
        texts = self.prompt(1), self.prompt(3)
        node = self.nodes["FlowMatchingSampler"]()
        return node.sample(model or self.model, *texts, latent or self.empty, **{**given, **changed})[0]["samples"]

    def by_comfyui(self, model=None, steps: int = 2) -> Tensor:
        """What MMDiTSampler gives, with ComfyUI's Euler."""
        given = dict(seed=SEED, steps=steps, cfg=self.cfg, sampler_name="euler", scheduler="simple", denoise=1.0)
        texts = self.prompt(1), self.prompt(3)
        node = self.nodes["MMDiTSampler"]()
        return node.sample(model or self.model, *texts, self.empty, **given)[0]["samples"]

    @property
    def empty(self) -> dict[str, Any]:
        """An empty LATENT."""
        return {"samples": torch.zeros_like(self.latent)}


def skipped_blocks(bench: Bench) -> float:
    """A skipped block is the identity in its place; controls of one branch leave the other alone."""
    return max(oracles.skipped_block(bench), oracles.branches(bench), oracles.nothing(bench))


def other_prompts(bench: Bench) -> float:
    """A second prompt in all blocks, of the same and of another length, is that prompt."""
    # With another padded length Z-Image's refiners see another number of padding tokens in the image.
    padded = bench.tiny.kind in ("ZImage", "ZImagePixelSpace")
    return max(oracles.other_prompt(bench), oracles.other_prompt(bench, 12 if padded else 40))


class Vae:
    """A VAE that decodes to three channels of the latent, or of its first frame."""

    def decode(self, latent: Tensor) -> Tensor:
        """[B, H, W, 3] in [0, 1]."""
        frame = latent[:, :, 0] if latent.ndim == 5 else latent
        return (frame[:, :3] / 6 + 0.5).clamp(0, 1).movedim(1, -1)


def analysed(bench: NodeBench) -> float:
    """Its skip cell is what Block Skip and Flow Matching Sampler give, over all blocks; the report is whole."""
    node = bench.nodes["BlockAnalysis"]()
    given = dict(operations="all", blocks="all", strength=2.0, seed=SEED, seeds=1, steps=2, cfg=bench.cfg)
    texts = bench.prompt(1), bench.prompt(3)
    node.analyse(bench.model, *texts, bench.empty, Vae(), **given, speedup=1.3, early_late=False)
    assert len(node._latents) == 1 + 3 * len(bench.blocks)
    found = []
    for (_, cell), latent in node._latents.items():
        if cell is None or cell.operation == "skip":
            control = [] if cell is None else [bench.control("skip", (cell.block,))]
            found.append(difference(latent, bench.sampled(bench.attach(bench.model, control))))
    return max(found)


def sampled_flow(bench: NodeBench, cfg: float) -> float:
    """Flow Matching Sampler's Euler is ComfyUI's, with the same sigmas."""
    sigmas = torch.tensor([1.0, 0.8, 0.45, 0.0])
    ours = bench.sampled(cfg=cfg, sigmas=sigmas)
    theirs = comfy.sample.sample_custom(
        bench.model,
        comfy.sample.prepare_noise(bench.empty["samples"], SEED),
        cfg,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        bench.prompt(1),
        bench.prompt(3),
        bench.empty["samples"],
        disable_pbar=True,
        seed=SEED,
    )
    return difference(ours, theirs)


def sampled_by_comfyui(bench: NodeBench) -> float:
    """MMDiT Sampler is KSampler."""
    texts = bench.prompt(1), bench.prompt(3)
    given = SEED, 3, bench.cfg, "euler", "simple"
    theirs = comfyui_nodes.KSampler().sample(bench.model, *given, *texts, bench.empty)[0]
    return difference(bench.by_comfyui(steps=3), theirs["samples"])


def planned(bench: NodeBench) -> float:
    """A plan that computes everything changes nothing, bit for bit; one that extrapolates runs, and computes less."""
    node, calls = bench.nodes["SpeedPlan"](), 0
    sampled = bench.sampled if bench.tiny.is_flow else bench.by_comfyui

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = bench.model.model.diffusion_model.register_forward_hook(count)
    try:
        plain = sampled(steps=12)
        whole, computed = sampled(node.apply(bench.model, "1x (off)")[0], steps=12), calls
        extrapolated = sampled(node.apply(bench.model, "2x")[0], steps=12)
    finally:
        handle.remove()
    assert extrapolated.isfinite().all() and not torch.equal(extrapolated, plain), "2x did not extrapolate"
    assert calls - computed < computed / 2, "2x computed all steps"
    return 0.0 if torch.equal(whole, plain) else math.inf


def precomputed(bench: NodeBench) -> float:
    """KSampler with a table of modulation gives the latent without it, bit for bit; all calls are served."""
    model, said = bench.nodes["PrecomputeModulation"]().apply(bench.model)
    if model is bench.model:
        raise Unchanged(said.removeprefix("Unchanged: ").removesuffix("."))
    patching, counts = bench.of("comfyui.patching"), []
    make, texts = patching._modulation, (bench.prompt(1), bench.prompt(3))

    def noted(run, *args):
        table = make(run, *args)
        counts.append(run.modulation)
        return table

    given = SEED, 3, bench.cfg, "euler", "simple"
    plain = comfyui_nodes.KSampler().sample(bench.model, *given, *texts, bench.empty)[0]["samples"]
    patching._modulation = noted
    try:
        ours = comfyui_nodes.KSampler().sample(model, *given, *texts, bench.empty)[0]["samples"]
    finally:
        patching._modulation = make
    assert counts[0].served and not counts[0].computed, str(counts[0])
    return 0.0 if torch.equal(ours, plain) else math.inf


def swept(bench: NodeBench) -> float:
    """Its cells over a block list and a shift are what Block Skip and Flow Matching Sampler give, bit for bit."""
    node, texts = bench.nodes["SweepXY"](), (bench.prompt(1), bench.prompt(3))
    given = dict(seed=SEED, steps=2, cfg=bench.cfg, solver="euler", schedule="linear", shift=0.0, denoise=1.0)
    axes = dict(x="blocks", x_values="0 | none", y="shift", y_values="0, 2")

    def skip(blocks: str):
        node = bench.nodes["BlockSkip"]()
        return node.apply(bench.model, blocks=blocks, branch="both", start_percent=0.0, end_percent=1.0)[0]

    _, images, _ = node.sweep(skip("0"), *texts, bench.empty, Vae(), **{**given, **axes})
    found = [made.latent for made in node._kept.values()]
    plain = [bench.sampled(skip(blocks), shift=shift) for shift in (0.0, 2.0) for blocks in ("0", "none")]
    assert len(images) == len(found) == len(plain)
    return 0.0 if all(map(torch.equal, found, plain)) else math.inf


def inverted(bench: NodeBench) -> float:
    """Leapfrog from an image to noise and back gives the image."""
    given = dict(steps=8, solver="leapfrog", shift=0.0)
    noise = bench.nodes["FlowInvert"]().invert(bench.model, bench.prompt(1), {"samples": bench.latent}, **given)[0]
    return difference(bench.sampled(latent=noise, cfg=1.0, **given), bench.latent)


def edited(bench: NodeBench) -> float:
    """Equal prompts give the image bit for bit; another target prompt changes it."""
    node, source = bench.nodes["FlowEdit"](), bench.prompt(1)
    given = dict(seed=SEED, steps=3, edit_steps=2, source_cfg=bench.cfg, target_cfg=bench.cfg, shift=0.0)
    latent, negative = {"samples": bench.latent}, bench.prompt(3)
    same, other = (
        node.edit(bench.model, source, target, negative, latent, **given)[0]["samples"]
        for target in (source, bench.prompt(5))
    )
    assert other.isfinite().all() and not torch.equal(other, same), "the target prompt changes nothing"
    return 0.0 if torch.equal(same, bench.latent) else math.inf


def pulled(bench: NodeBench) -> float:
    """With eta 1 in all steps the sampler gives the source image; with eta 0 it is unchanged."""
    given = dict(decay=0.0, start_percent=0.0, end_percent=1.0)
    pull = lambda eta: bench.nodes["SourcePull"]().apply(bench.model, {"samples": bench.latent}, eta, **given)[0]  # noqa: E731
    assert torch.equal(bench.sampled(pull(0.0)), bench.sampled()), "eta 0 changes the image"
    return difference(bench.sampled(pull(1.0)), bench.latent)


class Unchanged(Exception):
    """A node gave back the MODEL that it was given, and said why."""


@dataclass(frozen=True)
class Cell:
    """A column of the table. Fields: check; tolerance, of its difference; block, True for a node that needs blocks."""

    check: Callable[[Any], float]
    tolerance: float = ROUNDING
    block: bool = True


CELLS: dict[str, Cell] = {
    "BlockSkip": Cell(skipped_blocks),
    "TextBoost residual": Cell(scaled_text),
    **{f"TextBoost {mode}": Cell(partial(boosted_whole, mode=mode)) for mode in MODES[1:]},
    "TextBoost phrase": Cell(boosted_phrase),
    "TextDisable onward": Cell(partial(without_text, oracle=oracles.disabled_text)),
    "TextDisable block": Cell(partial(without_text, oracle=oracles.hidden_text)),
    "BlockPrompt": Cell(other_prompts),
    "BlockAnalysis": Cell(analysed),
    "FlowMatchingSampler cfg 1": Cell(partial(sampled_flow, cfg=1.0), block=False),
    "FlowMatchingSampler cfg 3": Cell(partial(sampled_flow, cfg=3.0), block=False),
    "MMDiTSampler": Cell(sampled_by_comfyui, block=False),
    "SpeedPlan": Cell(planned, block=False),
    "FlowEdit": Cell(edited, block=False),
    "SourcePull": Cell(pulled, block=False),
    "FlowInvert": Cell(inverted, THERE_AND_BACK, block=False),
    "PrecomputeModulation": Cell(precomputed, block=False),
    "SweepXY": Cell(swept, block=False),
}


@dataclass(frozen=True)
class Verdict:
    """What came out of a cell.

    Fields: word, "exact", "refused", "unchanged", "wrong" or "crash"; difference; reason.
    """

    word: str
    difference: float = math.nan
    reason: str = ""


def judge(bench: NodeBench, column: str) -> Verdict:
    """Run one cell."""
    cell = CELLS[column]
    try:
        found = cell.check(bench)
    except Unchanged as unchanged:
        return Verdict("unchanged", reason=str(unchanged))
    except Exception as error:  # the table says what happened, whatever it was
        said = str(error)
        refused = isinstance(error, ValueError) and said.startswith(f"{column.split()[0]}: ")
        return Verdict("refused" if refused else "crash", reason=said if refused else f"{type(error).__name__}: {said}")
    return Verdict("exact" if found <= cell.tolerance else "wrong", found)


def refusal(pack: ModuleType, kind: str, column: str) -> str:
    """The error of a block node on a model of a class in comfy.supported_models, whose network is not built.

    Raises: AssertionError if the node takes the model.
    """
    described = getattr(comfy.supported_models, kind)
    base = SimpleNamespace(model_config=described.__new__(described), diffusion_model=torch.nn.Identity())
    flow = comfy.model_sampling.CONST()
    model = SimpleNamespace(model=base, model_options={}, get_model_object=lambda name: flow)
    name, _, choice = column.partition(" ")
    node = pack.NODE_CLASS_MAPPINGS[name]()
    window = dict(start_percent=0.0, end_percent=1.0)
    boost = dict(blocks="0", strength=2.0, mode=choice, phrase="", part="all", branch="both", fade="constant")
    if choice == "phrase":
        boost |= dict(mode="value", phrase="red circle")
    call = {
        "BlockSkip": lambda: node.apply(model, blocks="0", branch="both", **window),
        "TextBoost": lambda: node.apply(model, **boost, **window),
        "TextDisable": lambda: node.apply(model, blocks="0", scope=choice, branch="both", **window),
        "BlockPrompt": lambda: node.apply(model, conditioning=[[torch.zeros(1, 7, 8), {}]], blocks="0", **window),
        "BlockAnalysis": lambda: _analyse(node, model),
    }[name]
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{column} takes {kind}")


def _analyse(node, model) -> None:
    given = dict(operations="all", blocks="all", strength=2.0, seed=SEED, seeds=1, steps=2, cfg=1.0)
    node.analyse(model, None, None, None, None, **given, speedup=1.3, early_late=False)
