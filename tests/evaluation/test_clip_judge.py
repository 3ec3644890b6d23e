from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from evaluation.judges import JudgeError, Question, make_judge
from evaluation.prompts import Prompt

pytest.importorskip("transformers")

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
PROMPTS = [Prompt("a red cat", "animals", {}), Prompt("an owl " * 50, "", {}), Prompt("a kite", "", {})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP, with a tokenizer of single letters."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    path = tmp_path_factory.mktemp("clip") / "tiny"
    path.mkdir()
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(vocabulary)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": len(vocabulary), "max_position_embeddings": 20}
    ends = {
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=sizes | words | ends,
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def test_values_are_the_cosines_that_transformers_gives_or_0(folder):
    import torch
    from transformers import CLIPModel, CLIPProcessor

    judge = make_judge("clip", model=str(folder))
    answers = judge.answer(IMAGES, PROMPTS)
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    found = []
    for image, prompt, (answer,) in zip(IMAGES, PROMPTS, answers, strict=True):
        inputs = processor(text=[prompt.text], images=image, return_tensors="pt", truncation=True, max_length=20)
        with torch.no_grad():
            cosine = float(model(**inputs).logits_per_image[0, 0] / model.logit_scale.exp())
        assert answer.value == pytest.approx(max(cosine, 0.0), abs=1e-5)
        assert answer.confidence is None
        found.append(cosine)
    assert max(found) > 0.01, "all at 0 would compare nothing"


def test_a_pair_of_image_and_caption_counts_not_its_batch(folder):
    judge = make_judge("clip", model=str(folder))
    together = judge.answer(np.tile(IMAGES, (7, 1, 1, 1)), PROMPTS * 7)
    for index, (answer,) in enumerate(together):
        (alone,) = judge.answer(IMAGES[index % 3][None], [PROMPTS[index % 3]])[0]
        assert answer.value == pytest.approx(alone.value, abs=1e-5)


def test_one_question_about_the_whole_text_counts_for_the_category(folder):
    judge = make_judge("clip", model=str(folder))
    text = "Does the image show everything that the caption says?"
    assert judge.questions(PROMPTS[0]) == (Question("animals", text),)
    assert judge.questions(PROMPTS[1]) == (Question("all", text),)


def test_the_identity_changes_with_the_files_and_not_with_the_place(folder, tmp_path):
    judge = make_judge("clip", model=str(folder))
    copy = Path(shutil.copytree(folder, tmp_path / "other" / "tiny"))
    assert make_judge("clip", model=str(copy)).identity == judge.identity
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert make_judge("clip", model=str(copy)).identity != judge.identity
    assert judge.identity.startswith("clip, tiny, files ")


def test_the_judge_can_be_sent_to_another_process_without_its_weights(folder):
    judge = make_judge("clip", model=str(folder))
    first = judge.answer(IMAGES, PROMPTS)
    data = pickle.dumps(judge)
    assert len(data) < 2000
    assert pickle.loads(data).answer(IMAGES, PROMPTS) == first


@pytest.mark.parametrize("kind", ["config.json", "*processor*", "*token* vocab.json", "*.safetensors"])
def test_a_missing_file_is_named_before_any_image_is_judged(folder, tmp_path, kind):
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    for pattern in kind.split():
        for path in copy.glob(pattern):
            path.unlink()
    with pytest.raises(JudgeError, match="is not the folder of a complete CLIP model; it lacks ") as caught:
        make_judge("clip", model=str(copy))
    assert kind.split()[-1].strip("*") in str(caught.value)


def test_no_folder_is_an_error_and_so_are_damaged_weights(folder, tmp_path):
    with pytest.raises(JudgeError, match="has no model: name a folder with config.json"):
        make_judge("clip")
    with pytest.raises(JudgeError, match="it lacks config.json"):
        make_judge("clip", model=str(tmp_path / "nowhere"))
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(JudgeError, match="is not a complete CLIP model: its weights lack visual_projection.weight"):
        make_judge("clip", model=str(copy)).answer(IMAGES, PROMPTS)
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(JudgeError, match="is not a complete CLIP model"):
        make_judge("clip", model=str(copy)).answer(IMAGES, PROMPTS)


def test_without_transformers_the_error_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(JudgeError, match="needs the package transformers"):
        make_judge("clip", model=str(folder))
