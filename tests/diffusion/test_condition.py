import pytest
import torch

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.schedule import NoiseLevel

GIVEN, LATENTS, NOISE = torch.randn(3, 1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
MASK = torch.tensor([0, 1, 0])


def test_known_frames_are_put_into_their_place_clean_or_as_noisy_as_the_others() -> None:
    known = KnownFrames(GIVEN, MASK, native=True)
    clean = known.put_into(LATENTS)
    noisy = known.put_noisy_into(LATENTS, NOISE, NoiseLevel(0.25, 0.75, 750.0))
    for frame, free in enumerate(MASK.tolist()):
        assert torch.equal(clean[:, :, frame], (LATENTS if free else GIVEN)[:, :, frame])
        expected = LATENTS if free else 0.25 * GIVEN + 0.75 * NOISE
        torch.testing.assert_close(noisy[:, :, frame], expected[:, :, frame])


def test_what_is_free_may_hold_anything_finite_and_does_not_leak() -> None:
    given = torch.where(MASK.bool()[:, None, None], 1e30, GIVEN)
    assert torch.equal(KnownFrames(given, MASK, native=True).put_into(LATENTS)[:, :, 1], LATENTS[:, :, 1])


@pytest.mark.parametrize("mask", [torch.ones(4), torch.ones(1, 3)])
def test_a_mask_that_does_not_fit_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        KnownFrames(GIVEN, mask, native=True)


def test_a_step_is_taken_at_least_once() -> None:
    with pytest.raises(ValueError, match="0 times"):
        KnownFrames(GIVEN, MASK, native=False, repeats=0)
