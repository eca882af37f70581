"""Tables and trajectories against diffusers, which the `test` extra installs. Without it these tests fail."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from soragen.diffusion.grid import Compression, lay_grid
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import (
    DynamicShift,
    NoiseLevel,
    Schedule,
    flow,
    flow_dynamic,
    flow_shifted_twice,
    flow_truncated,
    linear_quadratic,
    listed,
)
from soragen.diffusion.solver import make_solver
from soragen.size import VideoSize

STEPS = [1, 2, 4, 6, 20, 40, 50]
SHIFTS = [1.0, 3.0, 5.0, 12.0]
TOLERANCE = 1e-6  # relative to the largest value
NOISE = torch.randn(1, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 2.4

Scheduler = FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler


def velocity(latents: Tensor, timestep: float) -> Tensor:
    """A toy network: nonlinear in the latents, and it reads the timestep."""
    return torch.tanh(latents @ WEIGHT * (1 + timestep / 1000)) + 0.3 * torch.sin(3 * latents)


def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
    return latents - level.sigma * velocity(latents, level.timestep)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


def assert_same_table(ours: Schedule, theirs: Scheduler) -> None:
    assert_near(torch.tensor([level.sigma for level in ours]), theirs.sigmas)
    assert_near(torch.tensor([level.timestep for level in ours[:-1]]), theirs.timesteps.float())


def assert_same_trajectory(ours: Schedule, solver: str, theirs: Scheduler) -> None:
    latents = NOISE
    theirs.set_begin_index(0)
    for step, timestep in zip(denoise(denoiser, NOISE, ours, make_solver(solver, ours)), theirs.timesteps, strict=True):
        predicted = velocity(latents, float(timestep))
        latents = theirs.step(predicted, timestep, latents, return_dict=False)[0]
        assert_near(step.latents, latents)


def euler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def unipc(num_steps: int, shift: float) -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(num_steps)
    return scheduler


def ltx(num_steps: int, num_tokens: int) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    slope = (2.05 - 0.95) / (4096 - 1024)
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=num_tokens * slope + 0.95 - slope * 1024)
    return scheduler


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", STEPS)
def test_fixed_shift_euler(num_steps: int, shift: float) -> None:
    theirs = euler(shift)
    theirs.set_timesteps(num_steps)
    ours = flow_shifted_twice(num_steps, shift)
    assert_same_table(ours, theirs)
    assert_same_trajectory(ours, "euler", theirs)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", STEPS)
def test_flow_shifted_once_is_their_table_for_sigmas_given(num_steps: int, shift: float) -> None:
    theirs = euler(shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 0, num_steps + 1)[:-1])
    ours = flow(num_steps, shift)
    assert_same_table(ours, theirs)
    assert_same_trajectory(ours, "euler", theirs)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", STEPS)
def test_unipc(num_steps: int, shift: float) -> None:
    assert_same_table(flow_truncated(num_steps, shift), unipc(num_steps, shift))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 6])
def test_unipc_trajectory(num_steps: int, shift: float) -> None:
    assert_same_trajectory(flow_truncated(num_steps, shift), "unipc", unipc(num_steps, shift))


@pytest.mark.parametrize("shift", [0.5, 2.22, 7.0, *SHIFTS])
def test_unipc_tables_are_equal_to_the_bit(shift: float) -> None:
    for num_steps in range(1, 101):  # cutting timesteps to whole numbers forgives no rounding
        ours, theirs = flow_truncated(num_steps, shift), unipc(num_steps, shift)
        assert [level.sigma for level in ours] == theirs.sigmas.tolist()
        assert [level.timestep for level in ours[:-1]] == theirs.timesteps.tolist()


@pytest.mark.parametrize("num_tokens", [256, 1024, 2112, 4096, 6144])
@pytest.mark.parametrize("num_steps", STEPS[1:])  # with one step theirs is not a number
def test_dynamic_shift(num_steps: int, num_tokens: int) -> None:
    ours, theirs = flow_dynamic(num_steps, num_tokens, DynamicShift()), ltx(num_steps, num_tokens)
    assert_same_table(ours, theirs)
    assert_same_trajectory(ours, "euler", theirs)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 6, 64])
def test_linear_quadratic(num_steps: int) -> None:
    sigmas = linear_quadratic_schedule(num_steps)
    falling = euler(1.0)
    falling.set_timesteps(sigmas=sigmas.tolist(), timesteps=(sigmas * 1000).tolist())
    assert_same_table(linear_quadratic(num_steps), falling)
    assert_same_trajectory(linear_quadratic(num_steps), "euler", falling)


@pytest.mark.parametrize("num_steps", [2, 5, 6, 64])
def test_linear_quadratic_with_rising_timesteps(num_steps: int) -> None:
    rising = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    rising.set_timesteps(sigmas=linear_quadratic_schedule(num_steps).tolist())
    ours = linear_quadratic(num_steps, rising_timesteps=True)
    assert_near(torch.tensor([level.alpha for level in ours]), rising.sigmas)
    assert_near(torch.tensor([level.timestep for level in ours[:-1]]), rising.timesteps)


def test_listed() -> None:
    timesteps = [1000, 993, 987, 981, 975, 909, 725, 0.03]
    theirs = euler(1.0)
    theirs.set_timesteps(timesteps=timesteps)
    assert_same_table(listed(timesteps), theirs)
    assert_same_trajectory(listed(timesteps), "euler", theirs)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 + 7, 2**64 - 1])
def test_starting_noise(seed: int) -> None:
    grid = lay_grid(VideoSize(160, 96, 33, Fraction(16)), Compression((4, 8, 8), (1, 2, 2)))
    generator = torch.Generator("cpu").manual_seed(seed)
    theirs = randn_tensor((1, 16, *grid.latent_shape), generator=generator, dtype=torch.float32)
    torch.manual_seed(123)  # what else was drawn is of no account
    assert torch.equal(starting_noise(seed, 16, grid), theirs)
