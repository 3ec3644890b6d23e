"""The library's public names, `load_model`, and the README's snippet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mmdit_core
from mmdit_core import CheckpointError, MMDiT, MMDiTConfig, load_checkpoint, load_model
from mmdit_core.checkpoints.errors import TensorsError
from mmdit_core.checkpoints.keymaps import to_diffusers
from tests.core.models.tiny import CONFIGS, random_model

README = Path(__file__).parents[2] / "README.md"
PUBLIC = """MMDiT MMDiTConfig Flux FluxConfig load_checkpoint load_model config_from_state_dict BlockControl
parse_blocks SOLVERS solve sigmas interpolate velocity_target flow_loss sample_timesteps KNOWN_MODELS CheckpointError
QwenImage QwenImageConfig __version__""".split()


@pytest.fixture
def checkpoint(tmp_path):
    def write(config: MMDiTConfig, dtype=torch.float32, layout="single file") -> tuple[Path, MMDiT]:
        model = random_model(config).to(dtype)
        state = model.state_dict()
        state = to_diffusers(state, config) if layout == "diffusers" else state
        path = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return path, model

    return write


def test_every_public_name_is_exported():
    assert sorted(mmdit_core.__all__) == sorted(PUBLIC)
    assert all(hasattr(mmdit_core, name) for name in PUBLIC)


def test_the_version_is_the_one_of_the_pack():
    text = (README.parent / "pyproject.toml").read_text("utf-8")
    stated = re.search(r'^version = "(.+)"$', text, re.M)
    assert stated is None or stated[1] == mmdit_core.__version__


@pytest.mark.parametrize("layout", ["single file", "diffusers"])
def test_load_model_is_the_model_of_the_file_without_gradients(checkpoint, layout):
    path, saved = checkpoint(CONFIGS["dual"], layout=layout)
    model = load_model(path)
    assert model.config == saved.config and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    given = {"context": torch.randn(1, 5, 48), "y": torch.randn(1, 40)}
    x, timesteps = torch.randn(1, 16, 8, 8), torch.tensor([500.0])
    velocity = model(x, timesteps, **given)
    torch.testing.assert_close(velocity, saved(x, timesteps, **given), rtol=0, atol=1e-5)
    assert not velocity.requires_grad


def test_load_model_converts_the_dtype_and_keeps_it_without_one(checkpoint):
    path, _ = checkpoint(CONFIGS["plain"], torch.bfloat16)
    assert {tensor.dtype for tensor in load_model(path).state_dict().values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_model(path, torch.float32).state_dict().values()} == {torch.float32}
    assert {tensor.device.type for tensor in load_model(path, device="cpu").state_dict().values()} == {"cpu"}


def test_load_model_refuses_float8_weights_that_no_plain_layer_computes_with(tmp_path, checkpoint):
    path, model = checkpoint(CONFIGS["plain"])
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in model.state_dict().items()}
    save_file(state, path)
    with pytest.raises(TensorsError, match=r"its weights are torch.float8_e4m3fn. Pass dtype=, such as torch.bfloat16"):
        load_model(path)
    assert load_model(path, torch.float32).final_layer.linear.weight.dtype == torch.float32


def test_load_model_refuses_weights_of_several_dtypes(tmp_path, checkpoint):
    path, model = checkpoint(CONFIGS["plain"])
    state = model.state_dict()
    save_file({**state, "final_layer.linear.weight": state["final_layer.linear.weight"].half()}, path)
    with pytest.raises(TensorsError, match="mixed dtypes"):
        load_model(path)


def test_loading_is_logged_with_file_layout_and_dtype(checkpoint, caplog):
    path, _ = checkpoint(CONFIGS["plain"])
    with caplog.at_level("INFO", logger="mmdit_core"):
        load_checkpoint(path)
    assert caplog.messages == [f"{path}: single file layout, 4 blocks of width 128, F32"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.randn(1, 4, 8, 8)}, r"the latent is \[1, 4, 8, 8\]; this model takes \[B, 16, H, W\]"),
        ({"x": torch.randn(16, 8, 8)}, r"the latent is \[16, 8, 8\]"),
        ({"context": torch.randn(1, 5, 47)}, r"the text context is \[1, 5, 47\]; this model takes \[B, L, 48\]"),
        ({"context": None}, "the text context is None"),
        ({"y": torch.randn(1, 41)}, r"the pooled text is \[1, 41\]; this model takes \[B, 40\]"),
        (
            {"context": torch.randn(1, 5, 48).half()},
            "latent torch.float32, context torch.float16, weights torch.float32",
        ),
        ({"x": torch.randn(1, 16, 8, 8).half()}, "latent torch.float16, context torch.float32, weights torch.float32"),
        (
            {"x": torch.randn(1, 16, 8, 8).bfloat16(), "context": torch.randn(1, 5, 48).bfloat16()},
            "latent torch.bfloat16, context torch.bfloat16, weights torch.float32: give all one dtype",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_an_error_with_what_the_model_takes(changed, message):
    given = {"x": torch.randn(1, 16, 8, 8), "context": torch.randn(1, 5, 48), "y": torch.randn(1, 40), **changed}
    with pytest.raises(ValueError, match=f"MMDiT: {message}"):
        random_model(CONFIGS["plain"])(timesteps=torch.tensor([500.0]), **given)


def test_after_a_backward_pass_every_parameter_has_a_gradient():
    model = random_model(CONFIGS["guidance"]).requires_grad_(True)
    given = {"context": torch.randn(1, 5, 48), "y": torch.randn(1, 40), "guidance": torch.tensor([3.5])}
    model(torch.randn(1, 16, 8, 8), torch.tensor([500.0]), **given).square().mean().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_errors_of_checkpoints_have_one_base_and_their_facts(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "no.safetensors")
    assert caught.value.source == tmp_path / "no.safetensors" and caught.value.found == "there is no such file"


def test_the_readmes_snippet_samples_a_latent(checkpoint, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    (snippet,) = [text for text in snippets if "mmdit_core" in text]
    lines = [line for line in snippet.splitlines() if line.strip()]
    assert len(lines) <= 10
    path, _ = checkpoint(CONFIGS["dual"])
    for there, here in (('"cuda"', '"cpu"'), ("sd3.5_medium.safetensors", path.as_posix()), ("128, 128", "8, 12")):
        assert there in snippet
        snippet = snippet.replace(there, here)
    names = {"context": torch.randn(2, 5, 48).bfloat16(), "pooled": torch.randn(2, 40).bfloat16()}
    torch.manual_seed(0)
    exec(compile(snippet, str(README), "exec"), names)
    latent = names["latent"]
    assert latent.shape == (1, 16, 8, 12) and latent.dtype == torch.bfloat16 and latent.isfinite().all()
