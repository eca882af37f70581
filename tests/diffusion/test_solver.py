import math

import pytest
import torch

from soragen.diffusion.schedule import NoiseLevel, Schedule, flow, flow_truncated, listed
from soragen.diffusion.solver import make_solver
from soragen.errors import InputError

DETERMINISTIC = ("euler", "unipc")


def walk(name: str, schedule: Schedule, latents: torch.Tensor, spread: float) -> torch.Tensor:
    """Solve towards clean latents drawn from a normal distribution of standard deviation `spread`.

    For those the best clean estimate is known: x * alpha * spread**2 / (alpha**2 * spread**2 + sigma**2).
    """
    solver = make_solver(name, schedule)
    for index, level in enumerate(schedule[:-1]):
        weight = level.alpha * spread**2 / ((level.alpha * spread) ** 2 + level.sigma**2)
        latents = solver.step(index, latents, weight * latents)
    return latents


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("make", [flow, flow_truncated])
def test_solvers_reach_the_exact_solution_at_their_order(name: str, make) -> None:  # type: ignore[no-untyped-def]
    noise = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = [
        # The exact flow scales unit noise to the spread of the clean latents.
        float((walk(name, make(num_steps, 1), noise, 0.5) / noise - 0.5).abs().max())
        for num_steps in (20, 40, 80)
    ]
    order = math.log2(errors[1] / errors[2])
    assert errors[0] < (0.05 if name == "euler" else 0.005)
    assert order > (0.9 if name == "euler" else 1.8)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
def test_a_certain_estimate_is_reached_exactly(name: str, num_steps: int) -> None:
    schedule = flow(num_steps, 3)
    clean = torch.randn(1, 2, 3, 4, 4)
    noise = torch.randn(1, 2, 3, 4, 4)
    solver = make_solver(name, schedule)
    latents = noise
    for index in range(num_steps):
        latents = solver.step(index, latents, clean)
        level = schedule[index + 1]
        torch.testing.assert_close(latents, level.alpha * clean + level.sigma * noise)
    assert torch.equal(latents, clean)


def test_euler_is_a_ddim_step_where_alpha_and_sigma_lie_on_a_circle() -> None:
    schedule = tuple(NoiseLevel(math.cos(angle), math.sin(angle), 0.0) for angle in (1.2, 0.7))
    clean, noise = torch.randn(2, 1, 2, 3, 4, 4)
    latents = schedule[0].alpha * clean + schedule[0].sigma * noise
    expected = schedule[1].alpha * clean + schedule[1].sigma * noise
    torch.testing.assert_close(make_solver("euler", schedule).step(0, latents, clean), expected)


def test_a_solver_may_be_used_again() -> None:
    schedule = flow_truncated(5, 3)
    solver = make_solver("unipc", schedule)
    noise = torch.randn(1, 2, 3, 4, 4)
    runs = []
    for _ in range(2):
        latents = noise
        for index in range(5):
            latents = solver.step(index, latents, torch.tanh(latents))
        runs.append(latents)
    assert torch.equal(*runs)


def test_an_unknown_solver_names_the_known_ones() -> None:
    with pytest.raises(InputError) as raised:
        make_solver("heun", flow(4, 1))
    assert raised.value.hint == "use one of: euler, unipc, renoise"


def test_renoise_mixes_the_estimate_with_new_noise_of_the_seed() -> None:
    schedule = listed([1000, 757, 522])
    clean = torch.full((1, 2, 3, 4, 4), 2.0)
    generator = torch.Generator().manual_seed(5)
    start, first, second = (torch.randn(clean.shape, generator=generator) for _ in range(3))
    solver = make_solver("renoise", schedule, seed=5)
    for _ in range(2):  # used again, it draws the same
        for index, noise in enumerate([first, second]):
            expected = schedule[index + 1].alpha * clean + schedule[index + 1].sigma * noise
            torch.testing.assert_close(solver.step(index, start, clean), expected)
        assert torch.equal(solver.step(2, start, clean), clean)
    other = make_solver("renoise", schedule, seed=6).step(0, start, clean)
    assert not torch.allclose(other, schedule[1].alpha * clean + schedule[1].sigma * first, atol=0.1)
