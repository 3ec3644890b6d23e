"""The table of families against ComfyUI's list of models: nothing is missing, misnamed, or accepted by mistake."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import comfy.supported_models
import pytest
from comfy.supported_models_base import BASE

from tests.nodes.families.tiny import FAMILIES as TINY
from tests.nodes.families.tiny import Tiny, network_on_meta

KINDS = {kind.__name__: kind for kind in comfy.supported_models.models}
# Supported classes without a tiny model of their own: the one that has their network, and what differs.
LIKE = {
    "HunyuanVideoI2V": ("HunyuanVideo", {"in_channels": 33}),
    "HunyuanVideoSkyreelsI2V": ("HunyuanVideo", {"in_channels": 32}),
    "HunyuanVideo15_SR_Distilled": ("HunyuanVideo 1.5", {"in_channels": 98}),
    "CosmosI2VPredict2": ("Cosmos-Predict2", {"in_channels": 17}),
    "WAN21_FunControl2V": ("Wan 2.1 image to video", {"in_dim": 48}),
    "WAN22_T2V": ("Wan 2.1", {"in_dim": 48, "out_dim": 48}),
    "WAN21_Camera": ("Wan 2.1 image to video", {"model_type": "camera", "in_dim": 32}),
    "CogVideoX_I2V": ("CogVideoX", {"in_channels": 32}),
    "CogVideoX_Inpaint": ("CogVideoX", {"in_channels": 48}),
    "WAN22_Camera": ("Wan 2.1", {"model_type": "camera_2.2", "in_dim": 36}),
}


@pytest.fixture(scope="module")
def table(bench):
    return bench.module("comfyui.families")


def tiny_of(kind: str) -> Tiny:
    if kind in LIKE:
        name, changed = LIKE[kind]
        return dataclasses.replace(TINY[name], kind=kind, config={**TINY[name].config, **changed})
    return next(tiny for tiny in TINY.values() if tiny.kind == kind)


def supported(table) -> list[tuple[Any, str]]:
    """The rows with each of their classes that this ComfyUI has."""
    return [(family, kind) for family in table.FAMILIES for kind in family.models if kind in KINDS]


def test_every_model_of_comfyui_is_in_a_row_or_refused_on_purpose(table):
    rows = [kind for family in table.FAMILIES for kind in family.models]
    assert len(rows) == len(set(rows)), "a class is in two rows"
    assert not set(rows) & set(table.REFUSED), "a class is both supported and refused"
    missing = set(KINDS) - set(rows) - set(table.REFUSED)
    assert not missing, f"add a row to FAMILIES, or a reason to REFUSED, for {sorted(missing)}"


def test_a_class_that_this_comfyui_lacks_is_only_reported(table, capsys):
    """Older versions of ComfyUI lack some, so that this is no failure."""
    named = {kind for family in table.FAMILIES for kind in family.models} | set(table.REFUSED)
    if lacking := sorted(named - set(KINDS)):
        with capsys.disabled():
            print(f"\nthis ComfyUI has no {', '.join(lacking)}")


def test_a_row_names_the_network_that_its_class_builds(table):
    built = {}
    for family, kind in supported(table):
        network = network_on_meta(tiny_of(kind))
        built[kind] = f"{type(network).__module__}.{type(network).__qualname__}"
        assert built[kind] in family.networks, kind
        assert family.counts(network) and all(family.lists(network)), kind
    named = {name for family in table.FAMILIES for name in family.networks if set(family.models) & set(KINDS)}
    assert named == {table.CORE, *built.values()}, "a row names a network that no class builds"
    for name in named - {table.CORE}:
        module, _, network = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), network))


def model_of(kind: type, network: str) -> Any:
    """What BlockSkip looks at before it refuses: a MODEL of a class, with a network of another one, not built."""
    module, _, name = network.rpartition(".")
    of = getattr(importlib.import_module(module), name)
    base = SimpleNamespace(model_config=kind.__new__(kind), diffusion_model=of.__new__(of))
    return SimpleNamespace(model=base)


def refusal(bench, kind: type, network: str) -> str:
    node = bench.module("control").BlockSkip()
    given = dict(blocks="0", branch="both", start_percent=0.0, end_percent=1.0)
    with pytest.raises(ValueError) as caught:
        node.apply(model_of(kind, network), **given)
    return str(caught.value)


FLUX, OTHER = "comfy.ldm.flux.model.Flux", "torch.nn.modules.linear.Linear"


def networks(table) -> list[str]:
    here = {name for family, _ in supported(table) for name in family.networks}
    return [OTHER, *sorted(here - {table.CORE})]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_refused_class_is_refused_by_name_whatever_its_network(bench, table, kind):
    """Some refused classes derive from supported ones, and one of them builds the same network."""
    if kind not in table.REFUSED:
        return
    for network in networks(table):
        said = refusal(bench, KINDS[kind], network)
        assert said.startswith(f"BlockSkip: model: {kind} is not supported: {table.REFUSED[kind]}. ")
        assert said.endswith(f"Connect one of {table.SUPPORTED}")


def made(name: str, parent: type, module: str) -> type:
    return type(name, (parent,), {"__module__": module})


def test_a_class_that_a_newer_comfyui_adds_is_refused_by_name_even_if_it_derives_from_a_known_one(bench, table):
    for parent in (BASE, comfy.supported_models.Flux, comfy.supported_models.SD15):
        newer = made("Flux9", parent, "comfy.supported_models")
        said = refusal(bench, newer, FLUX)
        assert said == f"BlockSkip: model: Flux9 (network {FLUX}) is not known. Connect one of {table.SUPPORTED}"


def test_another_packs_class_is_known_by_the_class_of_comfyui_that_it_derives_from(bench, table):
    known = made("PatchedFlux", comfy.supported_models.Flux, "another_pack")
    assert table.family_of(model_of(known, FLUX).model).label == "FLUX.1"
    refused = made("PatchedSD15", comfy.supported_models.SD15, "another_pack")
    assert table.family_of(model_of(refused, FLUX).model) is None
    said = refusal(bench, made("Own", BASE, "another_pack"), FLUX)
    assert said.startswith(f"BlockSkip: model: Own (network {FLUX}) is not known. Connect one of ")


def test_a_known_class_with_another_network_is_refused_by_the_name_of_both(bench, table):
    for _, kind in supported(table):
        said = refusal(bench, KINDS[kind], OTHER)
        assert said.startswith(f"BlockSkip: model: {kind} is supported, but another node replaced its network by ")
        assert f"{OTHER}. Connect one of {table.SUPPORTED}" in said


@pytest.mark.parametrize("name", TINY)
def test_the_table_and_the_tiny_models_agree_on_which_blocks_can_only_be_skipped(table, name):
    kind = TINY[name].kind
    (family,) = (family for family in table.FAMILIES if kind in family.models)
    assert bool(family.only_skip) == TINY[name].only_skip
