"""Training runs: settings, batches, resumed runs, and the exported file."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from attributes.world import Group, Scene
from mmdit_core import MMDiTConfig, load_checkpoint
from training.batches import image_size, sample_batch
from training.checkpoints import read_tensors, write_tensors
from training.decoder import projection_for
from training.export import export
from training.settings import Settings
from training.text import TextEncoders, relative_buckets
from training.text_pretraining import CLASSES, labels_of, load_or_pretrain
from training.tokens import UNKNOWN_WORD, FullVocabulary, Vocabulary
from training.train import SmallModel, batch_loss, load_small_model, prepare, settings_from, train
from training.vae import build_decoder
from training.vocabulary import vocabularies
from training.warm_start import warm_start
from training.workers import Worker, run_workers

TINY = Settings(
    steps=6,
    batch=4,
    warmup=2,
    decay_steps=3,
    small_images_until=4,
    text_steps=2,
    model=MMDiTConfig(
        hidden_size=32, num_heads=2, depth=2, context_dim=64, pooled_dim=64, pos_embed_max_size=12, qk_norm="rms"
    ),
)


class WordTokenizer:
    """Replaces ComfyUI's tokenizers: one id for each word, spread over the vocabularies."""

    def caption(self, caption: str, rng: random.Random | None = None) -> tuple[list[int], list[int]]:
        words = caption.split()
        numbers = [-1 if word == UNKNOWN_WORD else 2 + sum(map(ord, word)) * 7 % 30000 for word in words]
        return numbers, numbers


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with a small vocabulary."""
    folder = tmp_path / "run"
    folder.mkdir()
    known = WordTokenizer().caption("red blue circle star left of")[0]
    words = {"clip": [0, 49406, 49407, *known], "t5": [0, 1, *known]}
    (folder / "vocabulary.json").write_text(json.dumps(words))
    return folder


def _weights(small_model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in small_model.named_parameters()}


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(run, tmp_path):
    whole, killed = run, tmp_path / "killed"
    shutil.copytree(whole, killed)
    expected = _weights(train(whole, TINY, WordTokenizer(), save_every=2))

    class Killed(Exception):
        pass

    def kill(small_model, step, losses):
        raise Killed

    for _ in range(2):  # dies after its checkpoints at step 2 and at step 4
        with pytest.raises(Killed):
            train(killed, TINY, WordTokenizer(), save_every=2, after_save=kill)
    result = _weights(train(killed, TINY, WordTokenizer(), save_every=2))
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
    records = [json.loads(read_tensors(folder / "state.safetensors")[1]["record"]) for folder in (whole, killed)]
    assert records[0]["losses"] == records[1]["losses"] and len(records[0]["losses"]) == 6


def _worker(folder, together, worker):
    """One of several processes that train together."""
    torch.set_num_threads(1)
    small_model = train(folder, together, WordTokenizer(), save_every=2, worker=worker)
    write_tensors(folder / f"weights-{worker.rank}.safetensors", _weights(small_model))


def test_processes_that_train_together_have_equal_weights_and_the_mean_loss(run):
    together = dataclasses.replace(TINY, steps=2)
    prepare(run, together, WordTokenizer())
    # In a separate process: spawned workers import this file by its path, not by pytest's module name.
    root = Path(__file__).parents[2]
    command = [sys.executable, __file__, str(run), json.dumps(together.to_dict())]
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    first, second = (read_tensors(run / f"weights-{rank}.safetensors")[0] for rank in (0, 1))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    torch.manual_seed(together.seed)
    small_model = SmallModel(together, *vocabularies(run, WordTokenizer()))
    load_or_pretrain(small_model.text, WordTokenizer(), together, run)
    projection = projection_for(run, together.seed)
    losses = []
    for rank in (0, 1):  # the first step in one process: the loss of each worker on its half of the batch
        batch = sample_batch(together, 0, small_model.text, WordTokenizer(), *projection, Worker(rank, 2))
        assert len(batch.latent) == together.batch // 2
        losses.append(batch_loss(small_model, batch, together, 0).item())
    record = json.loads(read_tensors(run / "state.safetensors")[1]["record"])
    assert losses[0] != losses[1]
    assert record["losses"][0] == pytest.approx(sum(losses) / 2, abs=2e-5)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("training.checkpoints.os.replace", fail)
    with pytest.raises(OSError):
        write_tensors(path, {"a": torch.ones(2)})
    assert read_tensors(path)[0]["a"].tolist() == [0, 0]


def test_an_exported_file_loads_with_the_core_and_has_the_averaged_weights(run):
    small_model = train(run, TINY, WordTokenizer(), save_every=6)
    write_tensors(
        run / "decoder.safetensors",
        {f"ema.{name}": tensor for name, tensor in build_decoder().state_dict().items()},
        {"record": json.dumps({"step": 1, "psnr": 20.0})},
    )
    target = run / "model.safetensors"
    export(run, WordTokenizer(), target)
    config, state = load_checkpoint(target)
    assert config == TINY.model
    own = small_model.model.state_dict()
    assert set(state) == set(own)
    assert all(torch.equal(tensor, own[name].half()) for name, tensor in state.items())
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
        table = file.get_tensor("text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight")
    assert MMDiTConfig(**json.loads(metadata["mmdit.config"])) == TINY.model
    assert float(metadata["mmdit.shift"]) == TINY.shift
    assert len(json.loads(metadata["mmdit.latent_rgb_factors"])["factors"]) == 16
    assert table.shape == (49408, 32)


def test_a_run_can_start_from_an_exported_file(run, tmp_path):
    first = train(run, TINY, WordTokenizer(), save_every=6)
    write_tensors(
        run / "decoder.safetensors",
        {f"ema.{name}": tensor for name, tensor in build_decoder().state_dict().items()},
        {"record": json.dumps({"step": 1, "psnr": 20.0})},
    )
    file, again = run / "model.safetensors", tmp_path / "again"
    export(run, WordTokenizer(), file)
    again.mkdir()
    shutil.copy(run / "vocabulary.json", again)
    warm_start(file, again, WordTokenizer())
    nothing_learned = dataclasses.replace(TINY, steps=1, rate=0.0, weight_decay=0.0)
    second = train(again, nothing_learned, WordTokenizer())
    own = dict(second.named_parameters())
    for name, tensor in first.named_parameters():
        assert torch.equal(own[name].half(), tensor.half()), name
    export(again, WordTokenizer(), again / "model.safetensors")
    with safe_open(file, "pt") as one, safe_open(again / "model.safetensors", "pt") as two:
        assert set(one.keys()) == set(two.keys())
        assert all(torch.equal(one.get_tensor(name), two.get_tensor(name)) for name in one.keys())
    with pytest.raises(FileExistsError, match="holds a run already"):
        warm_start(file, again, WordTokenizer())


def test_a_checkpoint_keeps_the_settings(run):
    train(run, TINY, WordTokenizer(), save_every=6)
    _, record = load_small_model(run, WordTokenizer())
    assert settings_from(record["settings"]) == TINY


def test_every_token_outside_the_vocabulary_shares_one_row():
    vocabulary = Vocabulary([5, 3, 9], size=12)
    assert vocabulary.rows([9, 4, 3, -1]) == [3, 0, 1, 0]
    full = vocabulary.expand(torch.arange(4.0)[:, None])
    assert full[:, 0].tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 0, 3, 0, 0]


def test_compact_and_full_tables_give_equal_encodings():
    clip, t5 = Vocabulary([0, 49406, 49407, 77, 500], 49408), Vocabulary([0, 1, 33, 44], 32128)
    compact, full = TextEncoders(clip, t5), TextEncoders(FullVocabulary(49408), FullVocabulary(32128))
    state = compact.state_dict()
    for name in state:
        if name.endswith("token_embedding.weight"):
            state[name] = clip.expand(state[name])
        elif name.endswith("shared.weight"):
            state[name] = t5.expand(state[name])
    full.load_state_dict(state)
    tokens = [([77, 500], [33, 44, 33]), ([], [])]
    for one, two in zip(compact(compact.batch(tokens, 9, 8)), full(full.batch(tokens, 9, 8)), strict=True):
        torch.testing.assert_close(one, two)


def test_dropped_encoders_are_zeros_and_do_not_change_the_others():
    text = TextEncoders(Vocabulary([0, 49406, 49407, 77], 49408), Vocabulary([0, 1, 33], 32128))
    batch = text.batch([([77], [33])] * 2, 6, 5)
    whole, pooled = text(batch)
    part, part_pooled = text(batch, torch.tensor([[0.0, 1, 1], [1, 0, 0]]))
    assert part[0, :6, :32].abs().max() == 0 and part_pooled[0, :32].abs().max() == 0
    assert torch.equal(part[0, :6, 32:], whole[0, :6, 32:]) and torch.equal(part[0, 6:], whole[0, 6:])
    assert part[1, 6:].abs().max() == 0 and part[1, :6, 32:].abs().max() == 0
    assert torch.equal(part_pooled[1, :32], pooled[1, :32])


def test_relative_positions_have_the_buckets_of_t5():
    found = relative_buckets(torch.tensor([0, -1, 1, 7, 8, 11, 12, 127, 500, -500])).tolist()
    assert found == [0, 1, 17, 23, 24, 24, 25, 31, 31, 15]


def test_batches_depend_on_seed_and_step_only():
    text = TextEncoders(Vocabulary([0, 49406, 49407], 49408), Vocabulary([0, 1], 32128))
    projection, bias = torch.randn(16, 192), torch.zeros(16)
    first, again, other = (sample_batch(TINY, step, text, WordTokenizer(), projection, bias) for step in (5, 5, 6))
    assert torch.equal(first.latent, again.latent) and torch.equal(first.text.clip_l, again.text.clip_l)
    assert first.latent.shape != other.latent.shape or not torch.equal(first.latent, other.latent)


def test_image_sizes_start_small_and_then_vary():
    settings = dataclasses.replace(TINY, small_images_until=10)
    early = {image_size(settings, random.Random(seed), 3) for seed in range(50)}
    late = {image_size(settings, random.Random(seed), 30) for seed in range(300)}
    assert early == {(96, 96)}
    assert (128, 128) in late and max(max(size) for size in late) == 160 and len(late) == 9


def test_the_learning_rate_warms_up_is_constant_and_decays_to_zero():
    settings = Settings(steps=100, warmup=10, decay_steps=20, rate=1.0)
    rates = [settings.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == rates[79] == 1.0 and rates[100] == 0.0
    assert all(one >= two for one, two in zip(rates[80:], rates[81:], strict=False))


def test_labels_depend_on_positions_not_on_the_order_of_groups():
    red, blue = Group(3, "red", "circle"), Group(1, "blue", "star", "small")
    left = labels_of(Scene((red, blue), "left"))
    assert left == labels_of(Scene((blue, red), "right"))
    assert left != labels_of(Scene((red, blue), "right"))
    assert all(0 <= value < size for value, size in zip(left, CLASSES, strict=True))


if __name__ == "__main__":
    run_workers(2, _worker, Path(sys.argv[1]), settings_from(json.loads(sys.argv[2])))
