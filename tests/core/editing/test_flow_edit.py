"""FlowEdit against the published algorithm, written out, on affine velocities in float64; its identities; its mask."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.editing.flow_edit import EditState, flow_edit

STEPS = 12
SIGMAS = [(1 - k / STEPS) for k in range(STEPS + 1)]
SHAPE = (2, 3, 4, 4)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(step, draw):
    return randn(1000 + 10 * step + draw, *SHAPE)


def affine(seed):
    """x -> A x + b with a slope in sigma, on the channels. Its calls are counted."""
    matrix, offset = randn(seed, 3, 3) / 3, randn(seed + 1, 3, 1, 1)

    def velocity(x, sigma):
        velocity.calls += 1
        return torch.einsum("ij,bjhw->bihw", matrix, x) + offset * (1 + sigma)

    velocity.calls = 0
    return velocity


def published(source, target, image, sigmas, n_max, n_min, n_avg):
    """The authors' loop, in their order of operations."""
    count = len(sigmas) - 1
    z, x = image.clone(), None
    for i in range(count):
        t, after = sigmas[i], sigmas[i + 1]
        if count - i > n_max:
            continue
        step = i - (count - n_max)
        if count - i > n_min:
            mean = torch.zeros_like(image)
            for k in range(n_avg):
                zt_src = (1 - t) * image + t * noise(step, k)
                zt_tar = z + zt_src - image
                mean += (
                    target(zt_tar, torch.tensor(t, dtype=image.dtype))
                    - source(zt_src, torch.tensor(t, dtype=image.dtype))
                ) / n_avg
            z = z + (after - t) * mean
        else:
            if count - i == n_min:
                x = z + ((1 - t) * image + t * noise(step, 0)) - image
            x = x + (after - t) * target(x, torch.tensor(t, dtype=image.dtype))
    return z if n_min == 0 else x


@pytest.mark.parametrize(
    ("n_max", "n_min", "n_avg"), [(12, 0, 1), (8, 0, 1), (8, 0, 3), (8, 3, 1), (8, 8, 2), (1, 0, 1)]
)
def test_it_is_the_published_algorithm(n_max, n_min, n_avg):
    image, source, target = randn(1, *SHAPE), affine(2), affine(4)
    expected = published(source, target, image, SIGMAS, n_max, n_min, n_avg)
    source.calls = target.calls = 0
    ours = flow_edit(source, target, image, SIGMAS[STEPS - n_max :], noise, refine_steps=n_min, average=n_avg)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    assert (source.calls, target.calls) == ((n_max - n_min) * n_avg, (n_max - n_min) * n_avg + n_min)


@pytest.mark.parametrize("average", [1, 3])
def test_equal_velocities_give_the_image_bit_for_bit(average):
    image, same = randn(1, *SHAPE).float(), affine(2)
    velocity = lambda x, sigma: same(x.double(), sigma.double()).float()  # noqa: E731
    drawn = lambda step, draw: noise(step, draw).float()  # noqa: E731
    for n_max in (0, 5, STEPS):
        ours = flow_edit(velocity, velocity, image, SIGMAS[STEPS - n_max :], drawn, average=average)
        assert torch.equal(ours, image)


def test_a_mask_keeps_what_is_outside_bit_for_bit_and_halves_where_it_is_half():
    image, source, target = randn(1, *SHAPE), affine(2), affine(4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2, :] = 1
    whole = flow_edit(source, target, image, SIGMAS[-2:], noise)
    ours = flow_edit(source, target, image, SIGMAS[-2:], noise, mask_at=lambda x, sigma: mask)
    assert torch.equal(ours[..., 2:, :], image[..., 2:, :]) and torch.equal(ours[..., :2, :], whole[..., :2, :])
    half = flow_edit(source, target, image, SIGMAS[-2:], noise, mask_at=lambda x, sigma: torch.full_like(mask, 0.5))
    assert torch.allclose(half - image, (whole - image) / 2)


def test_refining_under_a_mask_ends_at_the_image_outside():
    image, source, target = randn(1, *SHAPE), affine(2), affine(4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2, :] = 1
    ours = flow_edit(source, target, image, SIGMAS[4:], noise, refine_steps=3, mask_at=lambda x, sigma: mask)
    assert torch.allclose(ours[..., 2:, :], image[..., 2:, :], rtol=0, atol=1e-12)
    assert (ours - image)[..., :2, :].abs().max() > 0.1


@pytest.mark.parametrize("refine_steps", [0, 4])
def test_an_edit_continues_from_any_step_bit_for_bit(refine_steps):
    image, source, target = randn(1, *SHAPE), affine(2), affine(4)
    states = []
    given = dict(refine_steps=refine_steps)
    whole = flow_edit(source, target, image, SIGMAS, noise, report=lambda step, x: states.append((step, x)), **given)
    for step, x in states:
        assert torch.equal(
            flow_edit(source, target, image, SIGMAS, noise, start=EditState(step + 1, x), **given), whole
        )


def test_numbers_out_of_range_are_refused():
    image, same = randn(1, *SHAPE), affine(2)
    with pytest.raises(ValueError, match="refine_steps is 13; it must be from 0 to 12"):
        flow_edit(same, same, image, SIGMAS, noise, refine_steps=13)
    with pytest.raises(ValueError, match="average is 0"):
        flow_edit(same, same, image, SIGMAS, noise, average=0)
