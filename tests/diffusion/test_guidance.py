import pytest
import torch
from torch import Tensor

from soragen.diffusion.guidance import guided
from soragen.diffusion.schedule import NoiseLevel

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
