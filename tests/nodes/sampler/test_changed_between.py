"""A latent of an unfinished run that another node changed: an error or words, never noise on noise in silence."""

from __future__ import annotations

import comfy_extras.nodes_post_processing  # noqa: F401  first: it and nodes_latent import each other
import pytest
import torch
from comfy_extras import nodes_latent

import nodes as host_nodes


def upscaled(latent):
    return host_nodes.LatentUpscale().upscale(latent, "nearest-exact", 96, 96, "disabled")[0]


def flipped(latent):
    return host_nodes.LatentFlip().flip(latent, "y-axis: horizontally")[0]


CHANGES = {
    "upscale": upscaled,
    "upscale by": lambda latent: host_nodes.LatentUpscaleBy().upscale(latent, "bislerp", 1.5)[0],
    "repeat": lambda latent: host_nodes.RepeatLatentBatch().repeat(latent, 2)[0],
    "crop": lambda latent: host_nodes.LatentCrop().crop(
        {**latent, "samples": torch.nn.functional.pad(latent["samples"], (4, 4, 4, 4))}, 64, 64, 8, 8
    )[0],
    "flip": flipped,
    "rotate": lambda latent: host_nodes.LatentRotate().rotate(latent, "90 degrees")[0],
    "composite": lambda latent: host_nodes.LatentComposite().composite(
        latent, {"samples": torch.ones(1, 16, 4, 4)}, 8, 8
    )[0],
    "blend": lambda latent: nodes_latent.LatentInterpolate.execute(
        latent, {"samples": torch.ones_like(latent["samples"])}, 0.5
    )[0],
    "scale": lambda latent: nodes_latent.LatentMultiply.execute(latent, 1.1)[0],
}


def host_advanced(bench, latent, **changed):
    given = dict(
        add_noise="disable",
        noise_seed=5,
        steps=6,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        start_at_step=3,
        end_at_step=10_000,
        return_with_leftover_noise="disable",
    )
    texts = dict(positive=bench.positive, negative=bench.negative, latent_image=latent)
    return host_nodes.KSamplerAdvanced().sample(bench.model, **texts, **{**given, **changed})[0]


def shown(bench, monkeypatch, latent, **inputs):
    """The samples, the summary, and the text that the node shows."""
    lines = []
    messages = bench.module("comfyui.frontend.messages")
    monkeypatch.setattr(messages, "show_text", lambda node, text: lines.append(text))
    out, _, summary = bench.all(latent, unique_id="1", **inputs)
    return out["samples"], summary, lines[-1]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_latent_of_an_unfinished_run_is_refused(bench, name):
    changed = CHANGES[name](bench.all(end_step=3)[0])
    words = "add_noise: the latent comes from a run that ended early and was changed since: it holds the noise of sigma"
    for inputs in ({"start_step": 3}, {"start_step": 2}, {"denoise": 0.5}, {}):
        with pytest.raises(ValueError, match=f"FlowMatchingSampler: {words} 0.75. Set add_noise"):
            bench.run(changed, **inputs)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("mode", ["enable", "disable"])
def test_with_add_noise_set_it_runs_as_any_latent_and_both_texts_say_what_it_holds(bench, monkeypatch, name, mode):
    changed = CHANGES[name](bench.all(end_step=3)[0])
    inputs = dict(start_step=3, add_noise=mode)
    made, *texts = shown(bench, monkeypatch, changed, **inputs)
    assert torch.equal(made, bench.run({"samples": changed["samples"]}, **inputs))
    what = {"enable": "new noise was added to the noise that it holds", "disable": "it was sampled as it came"}[mode]
    line = f"Latent: it comes from a run that ended early and was changed since; {what}"
    assert all(line in text.splitlines() for text in texts)


def test_noise_on_an_unchanged_half_and_a_step_at_another_sigma_are_said(bench, monkeypatch):
    half = bench.all(end_step=3)[0]
    for text in shown(bench, monkeypatch, half, start_step=3, add_noise="enable")[1:]:
        assert "Latent: it comes from a run that ended early; new noise was added to the noise that it holds" in text
    for text in shown(bench, monkeypatch, half, start_step=4, add_noise="disable")[1:]:
        assert "Latent: it holds the noise of sigma 0.75, and the first step is at sigma 0.6" in text


@pytest.mark.parametrize("name", ["upscale", "repeat", "flip"])
def test_a_finished_image_that_was_changed_gets_its_noise(bench, monkeypatch, name):
    image = CHANGES[name](bench.all(bench.all(end_step=3)[0], start_step=3)[0])
    assert set(image) == {"samples"}
    made, summary, line = shown(bench, monkeypatch, image, denoise=0.5)
    assert torch.equal(made, bench.run({"samples": image["samples"].clone()}, denoise=0.5))
    assert "Noise: seed 5" in summary and "Latent:" not in summary + line


@pytest.mark.parametrize("change", [lambda latent: latent, upscaled], ids=["as it is", "made larger"])
def test_an_image_that_another_sampler_finished_gets_its_noise(bench, monkeypatch, change):
    """It still carries our resume state: ComfyUI's samplers copy it, too."""
    resume = bench.module("comfyui.run.resume")
    image = change(host_advanced(bench, bench.all(schedule="sd3", end_step=3)[0]))
    assert resume.KEY in image
    plain = {"samples": image["samples"]}
    made, summary, line = shown(bench, monkeypatch, image, denoise=0.5)
    assert torch.equal(made, bench.run(plain, denoise=0.5))
    assert "Noise: seed 5" in summary and all("Latent: it was taken for an image" in text for text in (summary, line))
    ours = bench.module("sampler.node").MMDiTSampler()
    given = dict(seed=5, steps=4, cfg=3.0, sampler_name="euler", scheduler="simple", denoise=0.5)
    ours.sample(bench.model, bench.positive, bench.negative, image, **given)


def test_remaining_noise_of_another_sampler_is_said(bench, monkeypatch):
    begun = dict(add_noise="enable", start_at_step=0, end_at_step=3, return_with_leftover_noise="enable")
    theirs = host_advanced(bench, bench.empty(), **begun)
    between = host_advanced(
        bench, bench.all(schedule="sd3", end_step=2)[0], start_at_step=2, end_at_step=3,
        return_with_leftover_noise="enable",
    )  # fmt: skip
    for latent in (theirs, between):
        for text in shown(bench, monkeypatch, latent, schedule="sd3", start_step=3)[1:]:
            assert "Latent: it was taken for an image, and noise was added to it. If it holds noise already" in text
        for text in shown(bench, monkeypatch, latent, schedule="sd3", start_step=3, add_noise="disable")[1:]:
            assert "Latent:" not in text
    assert "Latent:" not in bench.all(start_step=3)[2]  # an empty latent holds nothing


def test_a_changed_inversion_is_refused(bench):
    up = (
        bench.module("invert")
        .FlowInvert()
        .invert(bench.model, bench.positive, {"samples": bench.latent}, 6, "leapfrog", 0)
    )
    words = "add_noise: the latent comes from FlowInvert and was changed since: it is noise, and no image"
    for changed in (upscaled(up[0]), flipped(up[0])):
        with pytest.raises(ValueError, match=f"FlowMatchingSampler: {words}. Connect the latent as it was"):
            bench.run(changed)
        with pytest.raises(
            ValueError, match="add_noise: without noise there is nothing .* Connect the latent as it was"
        ):
            bench.run(changed, add_noise="disable")
        out, _, summary = bench.all(changed, add_noise="enable")
        assert torch.equal(out["samples"], bench.run({"samples": changed["samples"]}))
        assert "Latent: it comes from FlowInvert and was changed since; new noise took its place" in summary


@pytest.mark.parametrize("change", [lambda latent: latent, flipped], ids=["as it is", "flipped"])
@pytest.mark.parametrize("inverted", [False, True])
def test_nodes_that_cannot_continue_a_run_refuse_its_latent(bench, change, inverted):
    invert = bench.module("invert").FlowInvert().invert
    steps = (6, "leapfrog", 0)
    half = bench.all(end_step=3)[0]
    latent = change(invert(bench.model, bench.positive, {"samples": bench.latent}, *steps)[0] if inverted else half)
    given = dict(seed=5, steps=4, cfg=3.0, sampler_name="euler", scheduler="simple", denoise=0.5)
    with pytest.raises(ValueError, match="MMDiTSampler: latent_image: it comes from .* it still holds noise"):
        bench.module("sampler.node").MMDiTSampler().sample(bench.model, bench.positive, bench.negative, latent, **given)
    with pytest.raises(ValueError, match="FlowInvert: latent_image: it comes from .* it still holds noise"):
        invert(bench.model, bench.positive, latent, *steps)


def half_mask(first=32):
    mask = torch.zeros(1, 64, 64)
    mask[..., first:] = 1
    return mask


def test_a_noise_mask_set_changed_or_removed_between_two_halves_is_said(bench, monkeypatch):
    def with_mask(latent, mask):
        return host_nodes.SetLatentNoiseMask().set_mask(latent, mask)[0]

    def texts(latent):
        return shown(bench, monkeypatch, latent, start_step=3)

    picture = {"samples": bench.latent}
    for latent, becomes in ((bench.empty(), "empty, as the run began"), (picture, "the image that the run began with")):
        half = bench.all(latent, end_step=3, add_noise="enable")[0]
        made, *said = texts(with_mask(half, half_mask()))
        outside = f"outside the mask the latent becomes {becomes}"
        assert all(f"Latent: its noise mask was set since the last run; {outside}" in text for text in said)
        kept = made[..., :3]
        assert torch.allclose(kept, latent["samples"][..., :3], atol=1e-4) or kept.std() < 1e-6
    half = bench.all(with_mask(picture, half_mask()), end_step=3)[0]
    _, *said = texts(with_mask(half, half_mask(16)))
    assert all("Latent: its noise mask was changed since the last run" in text for text in said)
    _, *said = texts({key: value for key, value in half.items() if key != "noise_mask"})
    assert all("Latent: its noise mask was removed since the last run" in text for text in said)
    _, *said = texts(with_mask(half, half_mask()))  # the same again
    assert not any("Latent:" in text for text in said)
    up = bench.module("invert").FlowInvert().invert(bench.model, bench.positive, picture, 6, "leapfrog", 0)[0]
    _, *said = shown(bench, monkeypatch, with_mask(up, half_mask()))
    assert all("the latent becomes the image that the run began with" in text for text in said)


def test_noise_that_ksampler_leaves_outside_a_mask_is_said_in_both_orders(bench, monkeypatch):
    latent = {"samples": bench.latent, "noise_mask": half_mask()}
    half, *_ = bench.all(latent, schedule="sd3", end_step=3)
    for text in shown(bench, monkeypatch, latent, schedule="sd3", end_step=3)[1:]:
        assert "Parts: continue with Flow Matching Sampler. KSampler (Advanced) leaves noise outside the mask" in text
    outside = host_advanced(bench, half)["samples"][..., :3]
    assert not torch.allclose(outside, bench.latent[..., :3], atol=0.1)  # and so it does
    begun = dict(add_noise="enable", start_at_step=0, end_at_step=3, return_with_leftover_noise="enable")
    theirs = host_advanced(bench, latent, **begun)
    for text in shown(bench, monkeypatch, theirs, schedule="sd3", start_step=3, add_noise="disable")[1:]:
        assert "Latent: outside the noise mask it stays as it came, with the noise that it holds" in text
