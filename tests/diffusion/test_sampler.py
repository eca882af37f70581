import pytest
import torch
from torch import Tensor

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.sampler import Step, denoise
from soragen.diffusion.schedule import NoiseLevel, Schedule, flow, flow_truncated
from soragen.diffusion.solver import SOLVERS, make_solver
from soragen.errors import NumericalError

SHAPE = (1, 3, 4, 5, 6)
MASK = torch.tensor([0, 1, 1, 0])
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
GIVEN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
Call = tuple[Tensor, NoiseLevel, Tensor | None]


class Watched:
    """A toy denoiser whose frames look at each other, and which remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.calls.append((latents.clone(), level, mask))
        return torch.tanh(latents + latents.mean(2, keepdim=True)) * level.sigma


def run(schedule: Schedule, solver: str, known: KnownFrames | None = None) -> tuple[list[Step], list[Call]]:
    denoiser = Watched()
    return list(denoise(denoiser, NOISE, schedule, make_solver(solver, schedule), known)), denoiser.calls


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_every_level_is_visited_once(solver: str, num_steps: int) -> None:
    schedule = flow(num_steps, 3)
    steps, calls = run(schedule, solver)
    assert [step.index for step in steps] == list(range(num_steps))
    assert tuple(step.level for step in steps) == schedule[1:]
    assert tuple(level for _, level, _ in calls) == schedule[:-1]
    assert torch.equal(calls[0][0], NOISE)
    assert all(torch.equal(step.latents, call[0]) for step, call in zip(steps, calls[1:], strict=False))
    assert all(mask is None for _, _, mask in calls)
    assert steps[-1].latents.dtype == torch.float32
    assert torch.equal(steps[-1].latents, steps[-1].clean)


@pytest.mark.parametrize("solver", SOLVERS)
def test_native_known_frames_are_clean_at_every_call_and_come_back_exactly(solver: str) -> None:
    steps, calls = run(flow_truncated(5, 3), solver, KnownFrames(GIVEN, MASK, native=True))
    for latents, _, mask in calls:
        assert mask is MASK
        assert torch.equal(latents[:, :, [0, 3]], GIVEN[:, :, [0, 3]])
    assert torch.equal(calls[0][0][:, :, 1:3], NOISE[:, :, 1:3])
    for step in steps:
        assert torch.equal(step.latents[:, :, [0, 3]], GIVEN[:, :, [0, 3]])
        assert torch.equal(step.clean[:, :, [0, 3]], GIVEN[:, :, [0, 3]])


@pytest.mark.parametrize("solver", SOLVERS)
def test_other_known_frames_are_as_noisy_as_the_free_ones_and_come_back_exactly(solver: str) -> None:
    steps, calls = run(flow_truncated(5, 3), solver, KnownFrames(GIVEN, MASK, native=False))
    for latents, level, mask in calls:
        assert mask is None
        expected = level.alpha * GIVEN + level.sigma * NOISE
        torch.testing.assert_close(latents[:, :, [0, 3]], expected[:, :, [0, 3]])
    for step in steps:  # what is yielded is at its level, too
        expected = step.level.alpha * GIVEN + step.level.sigma * NOISE
        torch.testing.assert_close(step.latents[:, :, [0, 3]], expected[:, :, [0, 3]])
    assert torch.equal(steps[-1].latents[:, :, [0, 3]], GIVEN[:, :, [0, 3]])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_known_frames_steer_the_free_ones_and_no_known_frames_change_nothing(solver: str, native: bool) -> None:
    schedule = flow_truncated(5, 3)
    alone = run(schedule, solver)[0][-1].latents
    steered = run(schedule, solver, KnownFrames(GIVEN, MASK, native))[0][-1].latents
    assert not torch.allclose(steered[:, :, 1:3], alone[:, :, 1:3], atol=1e-3)
    free = run(schedule, solver, KnownFrames(GIVEN, torch.ones(4), native))[0][-1].latents
    assert torch.equal(free, alone)


def test_inputs_are_left_as_they_were() -> None:
    noise, given = NOISE.clone(), GIVEN.clone()
    run(flow(3, 1), "unipc", KnownFrames(GIVEN, MASK, native=True))
    assert torch.equal(noise, NOISE)
    assert torch.equal(given, GIVEN)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        KnownFrames(GIVEN, torch.ones(5), native=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop_the_run_at_their_step(bad: float) -> None:
    def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        clean = latents.clone()
        if level.sigma < 0.6:
            clean[0, 1, 2, 3, 4] = bad
        return clean

    schedule = flow(4, 1)
    steps = denoise(denoiser, NOISE, schedule, make_solver("euler", schedule))
    assert [next(steps).index, next(steps).index] == [0, 1]
    with pytest.raises(NumericalError, match="denoising step 3 of 4"):
        next(steps)


def test_the_consumer_keeps_its_own_grad_mode_and_may_stop_early() -> None:
    schedule = flow(4, 1)
    steps = denoise(Watched(), NOISE, schedule, make_solver("euler", schedule))
    weight = torch.ones((), requires_grad=True)
    for step in steps:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert (weight * 2).requires_grad
        if step.index == 1:
            break
    steps.close()  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()
