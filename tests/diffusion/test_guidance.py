from itertools import pairwise

import pytest
import torch
from torch import Tensor

from soragen.diffusion.guidance import guided, held
from soragen.diffusion.schedule import NoiseLevel, flow

LEVEL = NoiseLevel(0.3, 0.7, 700.0)


def towards(velocity: Tensor):  # type: ignore[no-untyped-def]
    """A flow denoiser that predicts `velocity` = noise - clean."""
    return lambda latents, level, mask=None: latents - level.sigma * velocity


def never(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
    raise AssertionError("called")


def test_guiding_estimates_is_guiding_velocities() -> None:
    latents, cond, uncond = torch.randn(3, 1, 2, 3, 4, 4)
    clean = guided(towards(cond), towards(uncond), 5.0)(latents, LEVEL)
    torch.testing.assert_close(clean, latents - LEVEL.sigma * (uncond + 5.0 * (cond - uncond)))


def test_a_scale_of_one_never_calls_uncond() -> None:
    latents, cond = torch.randn(2, 1, 2, 3, 4, 4)
    assert torch.equal(guided(towards(cond), never, 1.0)(latents, LEVEL), towards(cond)(latents, LEVEL))
    assert torch.equal(guided(towards(cond), None, 1.0)(latents, LEVEL), towards(cond)(latents, LEVEL))


def test_guidance_needs_uncond() -> None:
    with pytest.raises(ValueError, match="unconditional"):
        guided(never, None, 5.0)


def test_both_are_given_the_mask_and_guidance_is_computed_in_float32() -> None:
    mask = torch.tensor([0, 1, 1])
    seen = []

    def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        seen.append(mask)
        return latents.bfloat16()

    assert guided(denoiser, denoiser, 5.0)(torch.randn(1, 2, 3, 4, 4), LEVEL, mask).dtype == torch.float32
    assert len(seen) == 2
    assert all(given is mask for given in seen)


def test_the_scale_may_depend_on_the_level() -> None:
    latents, cond, uncond = torch.randn(3, 1, 2, 3, 4, 4)
    denoiser = guided(towards(cond), towards(uncond), lambda level: 5.0 if level.sigma > 0.5 else 3.0)
    for level in (LEVEL, NoiseLevel(0.6, 0.4, 400.0)):
        fixed = guided(towards(cond), towards(uncond), 5.0 if level is LEVEL else 3.0)
        assert torch.equal(denoiser(latents, level), fixed(latents, level))
    unguided = guided(towards(cond), never, lambda level: 1.0)
    assert torch.equal(unguided(latents, LEVEL), towards(cond)(latents, LEVEL))


SOURCE, NOISE = torch.randn(2, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def drawing(picture: float, share: float = 0.3):  # type: ignore[no-untyped-def]
    """A network that sees a share of what is in the latents and fills in `picture`."""
    return lambda latents, level, mask=None: share * latents + (1 - share) * picture


def test_what_is_held_comes_back_where_nothing_else_is_asked_for() -> None:
    same = held(drawing(0.5), drawing(0.5), SOURCE, NOISE, 1.0)
    mixed = LEVEL.alpha * SOURCE + LEVEL.sigma * NOISE
    torch.testing.assert_close(same(mixed, LEVEL), SOURCE)
    assert torch.equal(held(drawing(0.5), drawing(0.5), SOURCE, NOISE, 0.0)(mixed, LEVEL), drawing(0.5)(mixed, LEVEL))


def test_holding_with_eulers_steps_is_flowedit() -> None:
    """Its algorithm 1, in its own variables, against ours."""
    schedule = flow(6, 3.0)[2:]
    target, unprompted = guided(drawing(1.0, 0.2), drawing(0.2), 3.5), drawing(0.2)
    edit, ours = SOURCE, schedule[0].alpha * SOURCE + schedule[0].sigma * NOISE
    denoiser = held(target, unprompted, SOURCE, NOISE, 1.0)
    for level, after in pairwise(schedule):
        noisy = level.alpha * SOURCE + level.sigma * NOISE
        beside = edit + noisy - SOURCE
        velocities = [(x - network(x, level)) / level.sigma for network, x in ((target, beside), (unprompted, noisy))]
        edit = edit + (after.sigma - level.sigma) * (velocities[0] - velocities[1])
        ours = ours + (after.sigma - level.sigma) * (ours - denoiser(ours, level)) / level.sigma
    torch.testing.assert_close(ours, edit)
    assert float((ours - SOURCE).abs().mean()) > 0.1


def test_what_is_held_is_clean_where_frames_are_given() -> None:
    seen: list[Tensor] = []

    def watching(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        seen.append(latents)
        return latents

    mask = torch.tensor([0, 1, 1])
    held(drawing(0.5), watching, SOURCE, NOISE, 1.0)(SOURCE, LEVEL, mask)
    assert torch.equal(seen[0][:, :, 0], SOURCE[:, :, 0])
    assert torch.equal(seen[0][:, :, 1:], (LEVEL.alpha * SOURCE + LEVEL.sigma * NOISE)[:, :, 1:])
