"""The small model's own encoders, tokens and VAE against the host's classes: training must see what users will get."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import comfy
import pytest
import torch
from comfy.taesd.taesd import TAESD
from comfy.text_encoders.sd3_clip import SD3ClipModel, SD3Tokenizer

from attributes.world import sample_images
from benchmarks.attributes.prompts import read_prompts
from training.export import text_state
from training.settings import Settings
from training.text import CONFIGS, TextEncoders
from training.tokens import LENGTH, FullVocabulary, Tokenizer
from training.train import SmallModel
from training.vae import build_decoder, encode, encoder_state, fit_projection

CAPTIONS = [prompt.text for prompt in read_prompts("held_out", 12)] + ["", "A photo, in 4k, of three red circles!"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Path(comfy.__path__[0]))


@pytest.fixture(scope="module")
def host_tokenizer() -> SD3Tokenizer:
    return SD3Tokenizer()


def test_words_one_by_one_give_the_hosts_tokens(tokenizer, host_tokenizer):
    text = TextEncoders(FullVocabulary(49408), FullVocabulary(32128))
    for caption in CAPTIONS + [prompt.text for prompt in read_prompts("seen", 40)]:
        expected = host_tokenizer.tokenize_with_weights(caption)
        batch = text.batch([tokenizer.caption(caption)], LENGTH, LENGTH)
        for ours, name in ((batch.clip_l, "l"), (batch.clip_g, "g"), (batch.t5, "t5xxl")):
            assert ours[0].tolist() == [token for token, _ in expected[name][0]], (caption, name)


def test_encoders_give_what_the_hosts_classes_give(tokenizer, host_tokenizer):
    torch.manual_seed(0)
    settings = dataclasses.replace(Settings(), model=dataclasses.replace(Settings().model, depth=1))
    small_model = SmallModel(settings, FullVocabulary(49408), FullVocabulary(32128))
    for encoder in (small_model.text.clip_l, small_model.text.clip_g):  # of one scale, so that all layers matter
        torch.nn.init.normal_(encoder.text_model["embeddings"]["token_embedding"].weight)
    options = {f"{name}_model_config": config for name, config in CONFIGS.items()}
    theirs = SD3ClipModel(dtype=torch.float32, dtype_t5=torch.float32, model_options=options)
    state = text_state(small_model)
    for name in CONFIGS:
        prefix = f"text_encoders.{name}.transformer."
        part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        missing, surplus = getattr(theirs, name).transformer.load_state_dict(part, strict=False)
        assert not surplus and set(missing) <= {"text_projection.weight"}
    for caption in CAPTIONS:
        tokens = host_tokenizer.tokenize_with_weights(caption)
        batch = small_model.text.batch([tokenizer.caption(caption)], LENGTH, LENGTH)
        with torch.no_grad():
            context, pooled = small_model.text(batch)
            clip_l, pooled_l = theirs.clip_l.encode_token_weights(tokens["l"])
            clip_g, pooled_g = theirs.clip_g.encode_token_weights(tokens["g"])
            t5 = theirs.t5xxl.encode_token_weights(tokens["t5xxl"])[0]
        expected = torch.cat((torch.cat((clip_l, clip_g), -1), t5), 1)
        torch.testing.assert_close(context, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(pooled, torch.cat((pooled_l, pooled_g), -1), rtol=0, atol=2e-5)


def test_vae_is_taesds_own_layout():
    images = torch.from_numpy(sample_images(random.Random(0), 6, 128, 96)[1])
    projection, bias = fit_projection(images)
    vae, decoder = TAESD(latent_channels=16), build_decoder()
    vae.taesd_encoder.load_state_dict(encoder_state(projection, bias))
    vae.taesd_decoder.load_state_dict(decoder.state_dict())
    latent = encode(images, projection, bias)
    with torch.no_grad():
        torch.testing.assert_close(vae.taesd_encoder(images.permute(0, 3, 1, 2)), latent, rtol=0, atol=2e-5)
        torch.testing.assert_close(vae.taesd_decoder(latent), decoder(latent), rtol=0, atol=1e-5)
