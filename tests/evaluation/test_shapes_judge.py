from __future__ import annotations

import dataclasses
import pickle
import random

import numpy as np
import pytest

from attributes.judge import score
from attributes.words import parse_caption
from attributes.world import Scene, arrange, draw_image
from evaluation.judges import JudgeError, PromptError, make_judge
from evaluation.judges.questions import questions_of
from evaluation.prompts import Prompt, read_prompts


def drawn(scene: Scene, seed: int = 0) -> np.ndarray:
    """An image of a scene, uint8 [128, 128, 3]."""
    scene = dataclasses.replace(scene, background=scene.background or "white")
    return (draw_image(scene, arrange(scene, random.Random(seed))) * 255).round().astype(np.uint8)


def test_right_images_of_the_shipped_prompts_are_right_in_everything():
    judge, prompts = make_judge("shapes"), read_prompts("shapes").prompts[:48]
    images = np.stack([drawn(parse_caption(prompt.text)) for prompt in prompts])
    for prompt, answers in zip(prompts, judge.answer(images, prompts), strict=True):
        assert [answer.value for answer in answers] == [1.0] * len(judge.questions(prompt))


def test_answers_are_those_of_the_image_analysis_also_for_wrong_images():
    judge, prompts = make_judge("shapes"), read_prompts("shapes").prompts[:48]
    images = np.stack([drawn(parse_caption(prompt.text)) for prompt in prompts[1:] + prompts[:1]])
    wrong = 0
    for image, prompt, answers in zip(images, prompts, judge.answer(images, prompts), strict=True):
        right = score(image.astype(np.float32) / 255, parse_caption(prompt.text))
        names = [question.attribute for question in judge.questions(prompt)]
        assert dict(zip(names, (a.value for a in answers), strict=True)) == {name: float(right[name]) for name in names}
        wrong += not right["all"]
    assert wrong > 40


def test_a_background_and_a_relation_are_judged_only_if_the_caption_names_them():
    judge = make_judge("shapes")

    def attributes(text: str) -> list[str]:
        return [question.attribute for question in judge.questions(Prompt(text, "", {}))]

    assert attributes("a red circle") == ["colour", "shape", "count"]
    assert attributes("two red circles on a gray background") == ["background", "colour", "shape", "count"]
    assert attributes("a red circle above a blue star") == ["colour", "shape", "count", "spatial"]


def test_a_models_questions_about_a_shipped_prompt_are_those_of_the_image_analysis():
    judge = make_judge("shapes")
    for prompt in read_prompts("shapes").prompts:
        assert questions_of(prompt) == judge.questions(prompt)


def test_a_caption_outside_the_small_models_world_is_refused():
    judge, prompt = make_judge("shapes"), Prompt("a photo of a cat", "", {})
    with pytest.raises(PromptError, match="knows flat shapes only: 'a photo of a cat' names 0 shapes"):
        judge.questions(prompt)
    with pytest.raises(PromptError):
        judge.answer(np.zeros((1, 64, 64, 3), np.uint8), [prompt])


def test_images_of_another_type_or_number_are_refused():
    judge, prompt = make_judge("shapes"), Prompt("a red circle", "", {})
    with pytest.raises(ValueError, match="must be uint8"):
        judge.answer(np.zeros((1, 64, 64, 3), np.float32), [prompt])
    with pytest.raises(ValueError, match="2 images, but 1 prompts"):
        judge.answer(np.zeros((2, 64, 64, 3), np.uint8), [prompt])


def test_the_judge_can_be_sent_to_another_process_and_has_one_identity():
    judge = make_judge("shapes")
    assert pickle.loads(pickle.dumps(judge)).identity == judge.identity == make_judge("shapes").identity
    assert judge.identity.startswith("shapes, code ")


def test_an_unknown_judge_is_refused():
    with pytest.raises(JudgeError, match="unknown judge 'eye'; known: shapes, endpoint, clip"):
        make_judge("eye")
