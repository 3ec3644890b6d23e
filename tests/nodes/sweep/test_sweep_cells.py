"""Every cell of SweepXY is what the plain nodes give with its values, bit for bit, on every family."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.sweep.helpers import WINDOW, Vae, boosted, empty, latents, sampled, skipped, sweep, texts


@pytest.mark.parametrize(
    ("axis", "values", "settings"),
    [
        ("cfg", "1, 4.5", [dict(cfg=1.0), dict(cfg=4.5)]),
        ("steps", "2-4 (3)", [dict(steps=2), dict(steps=3), dict(steps=4)]),
        ("solver", "heun, dpmpp_2m_sde, bosh3", [dict(solver=s) for s in ("heun", "dpmpp_2m_sde", "bosh3")]),
        ("shift", "0, 1, 3.3", [dict(shift=s) for s in (0.0, 1.0, 3.3)]),
        ("seed", "0, 18446744073709551615", [dict(seed=0), dict(seed=2**64 - 1)]),
    ],
)
@pytest.mark.parametrize("control", [False, True])
def test_an_axis_of_the_sampler_is_that_input_of_flow_matching_sampler(
    node, nodes, model, axis, values, settings, control
):
    model = boosted(nodes, model, start_percent=0.3) if control else model
    sweep(node, model, x=axis, x_values=values)
    for found, changed in zip(latents(node), settings, strict=True):
        assert torch.equal(found, sampled(nodes, model, **changed)), changed


@pytest.mark.parametrize(
    ("axis", "values", "settings"),
    [
        ("strength", "0, 1, 1.5", [dict(strength=s) for s in (0.0, 1.0, 1.5)]),
        ("blocks", "0 | 0-1 | none | !0", [dict(blocks=b) for b in ("0", "0-1", "none", "!0")]),
        ("blocks", "0:1.5, 1 | 0:0, 1:3", [dict(blocks="0:1.5, 1"), dict(blocks="0:0, 1:3")]),
        ("window", "0-0.5 | 0.5-1 | 0.2-0.2", [
            dict(start_percent=s, end_percent=e) for s, e in ((0.0, 0.5), (0.5, 1.0), (0.2, 0.2))
        ]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", [dict(), dict(mode="residual", fade="in", branch="positive")])
def test_an_axis_of_a_control_is_that_input_of_its_node(node, nodes, model, axis, values, settings, given):
    before = skipped(nodes, model, blocks="1", start_percent=0.5)
    _, _, report = sweep(node, boosted(nodes, before, **given), x=axis, x_values=values)
    for cell, changed in zip(report["cells"], settings, strict=True):
        expected = sampled(nodes, boosted(nodes, before, **given, **changed))
        found = found_of(node, cell)
        assert torch.equal(found, expected), changed
        assert cell["ran"]["controls"][0]["action"] == "skip"


def found_of(node, cell) -> torch.Tensor:
    """The latent of a cell of a report: cells that are alike are sampled once."""
    (made,) = {id(made): made for made in node._kept.values() if made.ran == cell["ran"]}.values()
    return made.latent


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("BlockSkip", dict(branch="negative")),
        ("TextDisable", dict(scope="block", branch="both")),
        ("BlockPrompt", None),
    ],
)
def test_blocks_and_window_act_on_every_block_node(node, nodes, model, name, given):
    given = given or dict(conditioning=texts(5)[0])

    def applied(on, **changed):
        return nodes[name]().apply(on, **{**given, "blocks": "0", **WINDOW, **changed})[0]

    cells = [(b, w) for w in ((0.0, 0.5), (0.5, 1.0)) for b in ("0", "1")]
    sweep(node, applied(boosted(nodes, model)), x="blocks", x_values="0 | 1", y="window", y_values="0-0.5 | 0.5-1")
    for found, (blocks, (start, end)) in zip(latents(node), cells, strict=True):
        plain = applied(boosted(nodes, model), blocks=blocks, start_percent=start, end_percent=end)
        assert torch.equal(found, sampled(nodes, plain)), (blocks, start)


def test_cells_are_made_row_by_row_and_two_axes_of_one_control_act_together(node, nodes, model):
    boost = boosted(nodes, model)
    _, images, report = sweep(
        node, boost, x="strength", x_values="0, 3", y="blocks", y_values="0 | 0, 1:1.5 | 0-1", steps=2
    )
    shown = [(cell["row"], cell["column"], cell["x"], cell["y"]) for cell in report["cells"]]
    assert shown == [
        (row, column, x, y) for row, y in enumerate(("0", "0, 1:1.5", "0-1")) for column, x in enumerate(("0", "3"))
    ]
    for index, (found, cell) in enumerate(zip(latents(node), report["cells"], strict=True)):
        plain = boosted(nodes, model, strength=float(cell["x"]), blocks=cell["y"])
        assert torch.equal(found, sampled(nodes, plain, steps=2))
        assert torch.equal(images[index], Vae().decode(found)[0])
        baseline = latents(node)[0]
        assert cell["distance"]["latent"] == pytest.approx(((found - baseline).norm() / baseline.norm()).item(), 1e-4)
    assert report["x"] == {"axis": "strength", "values": ["0", "3"]} and report["y"]["axis"] == "blocks"


def test_controls_before_the_last_and_a_speed_plan_after_it_stay(node, nodes, model):
    def chain(strength):
        on = boosted(nodes, boosted(nodes, model, blocks="1", mode="residual"), strength=strength)
        return nodes["SpeedPlan"]().apply(on, "2x")[0]

    _, _, report = sweep(node, chain(2.0), x="strength", x_values="0.5, 4", steps=12)
    for found, strength in zip(latents(node), (0.5, 4.0), strict=True):
        assert torch.equal(found, sampled(nodes, chain(strength), steps=12))
    assert all(cell["ran"]["speed_plan"]["work"] < 1 for cell in report["cells"])


def test_a_window_acts_on_all_controls_of_one_node_and_strength_on_one_alone(node, nodes, model):
    listed = dict(blocks="0:1.5, 1:3", unique_id="9")
    sweep(node, boosted(nodes, model, **listed), x="window", x_values="0-0.5")
    assert torch.equal(latents(node)[0], sampled(nodes, boosted(nodes, model, **listed, end_percent=0.5)))
    for axis in ("strength", "blocks"):
        with pytest.raises(ValueError, match=f"SweepXY: x: the last block node put 2 controls .*{axis} acts on one"):
            sweep(node, boosted(nodes, model, **listed), x=axis, x_values="1")


def test_strength_and_blocks_act_on_the_last_row_that_is_on_and_a_window_on_all_rows(node, nodes, model):
    before, off = "on | 1 | 3 |\n", "\noff | 0 | 9 |"
    given = dict(unique_id="9", rows=f"{before}on | 0 | 2 |{off}")
    axes = dict(x="strength", x_values="4", y="blocks", y_values="1 | 0:0, 1")
    sweep(node, boosted(nodes, model, **given), **axes)
    for found, last in zip(latents(node), ("on | 1 | 4 |", "on | 0:0, 1 | 4 |"), strict=True):
        expected = sampled(nodes, boosted(nodes, model, rows=before + last))
        assert torch.equal(found, expected)
    node._keep_only(None)
    sweep(node, boosted(nodes, model, **given), x="window", x_values="0-0.5")
    assert torch.equal(latents(node)[0], sampled(nodes, boosted(nodes, model, **given, end_percent=0.5)))
    for blocks in ("", "0"):
        with pytest.raises(ValueError, match="SweepXY: x: row 1 of the last block node put 2 controls .*without"):
            row = dict(blocks=blocks, unique_id="9", rows="on | 0:2, 1:3 | 2 |")
            sweep(node, boosted(nodes, model, **row), x="strength", x_values="1")


def test_a_boost_that_has_no_effect_yet_is_the_last_control(node, nodes, model):
    for given in (dict(strength=1.0), dict(blocks="")):
        node._keep_only(None)
        axes = dict(x="strength", x_values="3", y="blocks", y_values="1")
        sweep(node, boosted(nodes, skipped(nodes, model), **given), **axes)
        expected = boosted(nodes, skipped(nodes, model), strength=3.0, blocks="1")
        assert torch.equal(latents(node)[0], sampled(nodes, expected))


def test_a_noise_mask_an_image_and_denoise_act_as_in_the_sampler(node, nodes, model):
    torch.manual_seed(3)
    latent = {"samples": torch.randn(1, 16, 8, 8), "noise_mask": torch.zeros(1, 1, 8, 8)}
    latent["noise_mask"][..., 4:] = 1
    sweep(node, model, latent=latent, x_values="1, 5", denoise=0.6, schedule="beta")
    for found, cfg in zip(latents(node), (1.0, 5.0), strict=True):
        assert torch.equal(found, sampled(nodes, model, latent=latent, cfg=cfg, denoise=0.6, schedule="beta"))


def test_only_the_first_image_of_a_batch_is_used_and_the_report_says_so(node, nodes, model):
    latent = {**empty(3), "batch_index": [4, 5, 6], "noise_mask": torch.ones(3, 8, 8)}
    _, images, report = sweep(node, model, latent=latent)
    assert len(images) == 2 and report["notes"] == ["The latent held 3 images: the first was used."]
    first = {**empty(), "batch_index": [4], "noise_mask": torch.ones(1, 8, 8)}
    assert torch.equal(latents(node)[1], sampled(nodes, model, latent=first))


def test_seed_step_gives_each_cell_its_own_seed(node, nodes, model):
    _, _, report = sweep(node, model, x_values="1, 3", y="steps", y_values="2, 3", seed=2**64 - 2, seed_step=1)
    assert [cell["seed"] for cell in report["cells"]] == [2**64 - 2, 2**64 - 1, 0, 1]
    assert torch.equal(latents(node)[2], sampled(nodes, model, cfg=1.0, steps=3, seed=0))
    _, _, report = sweep(node, model, x="seed", x_values="5, 5, 8", seed_step=10)
    assert [cell["seed"] for cell in report["cells"]] == [5, 15, 28]


@pytest.mark.parametrize(("axes", "shape"), [(dict(x="none", y="cfg", y_values="1, 3"), (2, 1)), (dict(), (1, 2))])
def test_an_axis_may_be_none(node, model, axes, shape):
    sheet, images, report = sweep(node, model, **{"x_values": "1, 3", **axes})
    assert images.shape == (2, 64, 64, 3)
    assert (max(c["row"] for c in report["cells"]) + 1, max(c["column"] for c in report["cells"]) + 1) == shape
    assert (report["x"] is None) == (shape == (2, 1)) and sheet.shape[0] == 1
    unused = [note for note in report["notes"] if "not used" in note]
    assert unused == (["x_values is not used: x is none."] if shape == (2, 1) else [])
