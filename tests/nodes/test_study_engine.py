"""The study engine on the shipped workflows of other families: ComfyUI's executor, tiny models of their classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.controls import Control
from evaluation.engine.graph import WorkflowError
from evaluation.engine.host import Host, HostError, read_extra_paths
from evaluation.engine.renderer import Renderer, Source
from tests.evaluation.planted import weaken
from tests.nodes.test_workflow_families import CASES, FOLDER, SMALL, prompt_of, stand_ins  # noqa: F401

LABELS = {"Z-Image": "Z-Image", "Krea 2": "Krea 2", "Qwen": "Qwen-Image", "FLUX.2": "FLUX.2"}


@pytest.fixture(scope="module")
def host(tmp_path_factory, comfy_path):
    return Host(tmp_path_factory.mktemp("base"), threads=1)


class Stands:
    """ComfyUI's loaders, replaced by nodes that give a tiny model's parts."""

    def __init__(self, host: Host, given):
        self.mappings, self.before = host._nodes.NODE_CLASS_MAPPINGS, {}
        self.given, self.forget = given, host._executor.reset  # the loaders' inputs are the same for each model

    def __enter__(self):
        self.forget()
        for name, values in self.given.items():
            self.before[name] = self.mappings[name]
            self.mappings[name] = stand_in(self.before[name], values)

    def __exit__(self, *_):
        self.mappings.update(self.before)
        self.forget()


def stand_in(kind, values):
    class Loader:
        RETURN_TYPES, FUNCTION, CATEGORY = kind.RETURN_TYPES, "load", "tests"

        @classmethod
        def INPUT_TYPES(cls):
            found = kind.INPUT_TYPES()["required"]
            return {"required": {name: ("STRING", {"default": ""}) for name in found}}

        def load(self, **_):
            return values

    return Loader


@pytest.fixture
def written(tmp_path, prompt_of):  # noqa: F811
    def write(name):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(prompt_of(name)))
        return path

    return write


@pytest.mark.parametrize(("name", "model"), CASES)
def test_a_study_samples_each_family_by_its_own_workflow(host, written, name, model):
    with Stands(host, stand_ins(model)):
        renderer = Renderer(Source(written(name)), host)
        about = renderer.about()
        label = next(label for start, label in LABELS.items() if model.startswith(start))
        assert about.facts.family == label and about.facts.blocks > 20 and about.sampling["steps"] == SMALL["steps"]
        block = about.facts.blocks // 2
        plain = renderer.render(["a lighthouse"], 0, 0, ())
        for control in (Control("skip", (block,)), Control("boost", (block,), "both", "value", 3.0)):
            changed = renderer.render(["a lighthouse"], 0, 0, [control])
            assert np.abs(changed.astype(int) - plain).max() > 0, control.name
        assert (renderer.render(["a lighthouse"], 0, 0, ()) == plain).all()
        assert (renderer.render(["a cat"], 0, 0, ()) != plain).any()
        assert (renderer.render(["a lighthouse"], 0, 1, ()) != plain).any()


def test_a_node_that_is_not_installed_is_named(host, tmp_path):
    path = tmp_path / "w.json"
    links = {"model": ["m", 0], "positive": ["p", 0], "latent_image": ["l", 0]}
    graph = {
        "m": {"class_type": "LoaderOfAnotherPack", "inputs": {"name": "x"}},
        "p": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["m", 1], "text": ""}},
        "l": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "k": {"class_type": "KSampler", "inputs": {**links, "negative": ["p", 0], "seed": 1}},
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["k", 0], "vae": ["m", 2]}},
        "s": {"class_type": "SaveImage", "inputs": {"images": ["d", 0]}},
    }
    path.write_text(json.dumps(graph))
    with pytest.raises(HostError, match="LoaderOfAnotherPack"):
        Renderer(Source(path), host)


def test_a_file_goes_before_the_pack_s_own_of_the_same_name(host, tmp_path):
    own, name = Path(__file__).parents[2] / "models", "mmdit-small.safetensors"
    weaken(own / name, tmp_path / name, block=1, factor=0.0)
    settings = {"width": 64, "height": 64, "steps": 2}
    paths = host.module("comfyui.loading.folders").folder_paths.folder_names_and_paths
    before = {kind: list(folders) for kind, (folders, _) in paths.items()}
    plain = Renderer(Source(model=name, settings=settings), host)
    expected, about = plain.render(["a red circle"], 0, 0, ()), plain.about()
    host._executor.reset()  # a process has one source; here the loader's inputs are the same for two files
    try:
        given = Renderer(Source(model=str(tmp_path / name), settings=settings), host)
        found, other = given.render(["a red circle"], 0, 0, ()), given.about()
    finally:
        for kind, folders in before.items():
            paths[kind][0][:] = folders
        host._executor.reset()
    assert (found != expected).any() and other.model == about.model == name
    assert other.graph == about.graph and other.files != about.files and other.software == about.software


def test_the_users_extra_folders_of_models_are_read(host, tmp_path):
    (tmp_path / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {tmp_path}\n  vae: more_vae\n")
    paths = host.module("comfyui.loading.folders").folder_paths.folder_names_and_paths["vae"][0]
    before = list(paths)
    try:
        read_extra_paths(tmp_path)
        assert str(tmp_path / "more_vae") in paths
    finally:
        paths[:] = before


def test_a_study_is_named_by_its_model_and_not_by_a_lora():
    graph = {
        "m": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": "mmdit-small.safetensors"}},
        "l": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["m", 0], "lora_name": "l.safetensors"}},
    }
    renderer = Renderer.__new__(Renderer)
    renderer.graph = graph
    assert renderer._model_name("l") == "mmdit-small.safetensors"


def test_a_workflow_that_makes_more_images_than_prompts_is_refused(host):
    renderer = Renderer(Source(model="mmdit-small.safetensors", settings={"width": 64, "height": 64, "steps": 1}), host)
    renderer._recipe.graph["repeat"] = {
        "class_type": "RepeatLatentBatch",
        "inputs": {"samples": ["latent", 0], "amount": 2},
    }
    renderer._recipe.graph["sampler"]["inputs"]["latent_image"] = ["repeat", 0]
    with pytest.raises(WorkflowError, match="2 images of 1 prompts"):
        renderer.render(["a red circle"], 0, 0, ())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_gives_the_images_of_single_prompts(host, batch):
    size = {"width": 64, "height": 64, "steps": 3}
    texts = ["two red circles", "a blue star on white", "three green squares"]
    source = Source(model="mmdit-small.safetensors", settings=size, batch=batch)
    renderer = Renderer(source, host)
    images = [renderer.render(texts[at : at + batch], at, 2, ()) for at in range(0, 3, batch)]
    alone = Renderer(Source(model="mmdit-small.safetensors", settings=size), host)
    expected = np.concatenate([alone.render([text], at, 2, ()) for at, text in enumerate(texts)])
    assert np.abs(np.concatenate(images).astype(int) - expected).max() <= 1
