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
def test_the_noise_where_native_known_frames_lie_is_never_looked_at(solver: str) -> None:
    schedule, known = flow_truncated(5, 3), KnownFrames(GIVEN, MASK, native=True)
    other = torch.where(MASK.bool()[:, None, None], NOISE, 7.0)
    one, two = (
        list(denoise(Watched(), noise, schedule, make_solver(solver, schedule), known)) for noise in (NOISE, other)
    )
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("solver", ["euler", "unipc"])
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


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_walk_from_pure_noise_is_the_solvers_own(solver: str) -> None:
    schedule = flow_truncated(5, 3)
    stepper, denoiser, latents = make_solver(solver, schedule), Watched(), NOISE
    with torch.inference_mode():
        for index, level in enumerate(schedule[:-1]):
            latents = stepper.step(index, latents, denoiser(latents, level))
    assert torch.equal(run(schedule, solver)[0][-1].latents, latents)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("first_step", [1, 3, 5])
def test_a_late_start_is_the_walk_down_the_levels_that_are_left(solver: str, first_step: int) -> None:
    schedule = flow(6, 3)
    left = schedule[first_step:]
    latents = left[0].alpha * GIVEN + left[0].sigma * NOISE
    used = make_solver(solver, schedule)
    if solver != "renoise":  # which draws on from where it was
        list(denoise(Watched(), NOISE, schedule, used))  # what it remembers of another walk does not count
    steps = list(denoise(Watched(), latents, schedule, used, first_step=first_step))
    alone = list(denoise(Watched(), latents, left, make_solver(solver, left)))
    assert [step.index for step in steps] == list(range(first_step, 6))
    assert [step.num_steps for step in steps] == [6] * len(steps)
    assert tuple(step.level for step in steps) == left[1:]
    for late, short in zip(steps, alone, strict=True):
        assert torch.equal(late.latents, short.latents)


@pytest.mark.parametrize("native", [True, False])
def test_a_late_start_with_known_frames(native: bool) -> None:
    schedule, denoiser = flow(6, 3), Watched()
    known, solver = KnownFrames(GIVEN, MASK, native), make_solver("unipc", schedule)
    latents = schedule[2].sigma * NOISE
    *_, last = denoise(denoiser, latents, schedule, solver, known, first_step=2, noise=NOISE)
    for seen, level, _ in denoiser.calls:
        expected = GIVEN if native else level.alpha * GIVEN + level.sigma * NOISE
        torch.testing.assert_close(seen[:, :, [0, 3]], expected[:, :, [0, 3]])
    assert torch.equal(last.latents[:, :, [0, 3]], GIVEN[:, :, [0, 3]])


def test_a_start_that_makes_no_sense_is_refused() -> None:
    schedule = flow(6, 3)
    for first_step in (-1, 6):
        with pytest.raises(ValueError, match="first step"):
            next(denoise(Watched(), NOISE, schedule, make_solver("euler", schedule), first_step=first_step))
    with pytest.raises(ValueError, match="noise"):
        known = KnownFrames(GIVEN, MASK, native=False)
        next(denoise(Watched(), NOISE, schedule, make_solver("euler", schedule), known, first_step=2))


def repeated(seed: int, solver: str, native: bool = False) -> tuple[list[Step], list[Call]]:
    schedule, denoiser = flow(7, 3), Watched()
    known = KnownFrames(GIVEN, MASK, native, repeats=4)
    return list(denoise(denoiser, NOISE, schedule, make_solver(solver, schedule), known, seed=seed)), denoiser.calls


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_at_high_noise_are_repeated_where_known_frames_are_not_native(solver: str) -> None:
    schedule = flow(7, 3)
    steps, calls = repeated(3, solver)
    assert [schedule.index(level) for _, level, _ in calls] == [0, *[1] * 4, *[2] * 4, *[3] * 4, 4, 5, 6]
    assert tuple(step.level for step in steps) == schedule[1:]
    for latents, level, _ in calls:
        expected = level.alpha * GIVEN + level.sigma * NOISE
        torch.testing.assert_close(latents[:, :, [0, 3]], expected[:, :, [0, 3]])
    assert torch.equal(steps[-1].latents[:, :, [0, 3]], GIVEN[:, :, [0, 3]])

    assert torch.equal(repeated(3, solver)[0][-1].latents, steps[-1].latents)
    assert not torch.equal(repeated(4, solver)[0][-1].latents, steps[-1].latents)
    assert len(repeated(3, solver, native=True)[1]) == 7


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_way_back_to_a_level_leads_to_its_noise(solver: str) -> None:
    """Where nothing but noise is left of the free frames at every level, repeats leave its spread as it is."""
    schedule, spreads = flow(6, 2), []

    def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        spreads.append(float(latents.std()) / level.sigma)
        return torch.zeros_like(latents)

    noise = torch.randn(1, 8, 4, 32, 32, generator=torch.Generator().manual_seed(5))
    known = KnownFrames(torch.zeros_like(noise), torch.ones(4), native=False, repeats=3)
    list(denoise(denoiser, noise, schedule, make_solver(solver, schedule), known))
    assert len(spreads) == 10
    assert spreads == pytest.approx([1.0] * 10, rel=0.02)
