import itertools

import pytest

from soragen.diffusion.schedule import (
    DynamicShift,
    Schedule,
    flow,
    flow_dynamic,
    flow_shifted_twice,
    flow_truncated,
    linear_quadratic,
    listed,
)
from soragen.errors import InputError


def dynamic(num_steps: int, shift: float) -> Schedule:
    return flow_dynamic(num_steps, round(1000 * shift), DynamicShift())


@pytest.mark.parametrize("make", [flow, flow_shifted_twice, flow_truncated, dynamic])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50, 100])
@pytest.mark.parametrize("shift", [0.1, 1, 3, 12])
def test_levels_fall_from_noise_to_clean(make, num_steps: int, shift: float) -> None:  # type: ignore[no-untyped-def]
    schedule = make(num_steps, shift)
    assert len(schedule) == num_steps + 1
    assert schedule[0].sigma == pytest.approx(1, abs=2e-6)
    assert (schedule[-1].alpha, schedule[-1].sigma) == (1, 0)
    assert all(before.sigma > after.sigma for before, after in itertools.pairwise(schedule))
    for level in schedule:
        assert 0 <= level.alpha <= 1
        assert level.alpha + level.sigma == pytest.approx(1)
        assert 1000 * level.sigma - 1.001 <= level.timestep <= 1000 * level.sigma + 1e-4


def test_flow_is_shifted_once() -> None:
    assert [level.sigma for level in flow(4, 1)] == [1, 0.75, 0.5, 0.25, 0]
    assert [level.sigma for level in flow(4, 3)] == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert [level.timestep for level in flow(4, 3)] == pytest.approx([1000, 900, 750, 500, 0])


def test_the_double_shift_is_that_of_the_published_table() -> None:
    assert flow_shifted_twice(5, 3)[-2].sigma == pytest.approx(0.00893, abs=5e-6)


def test_truncated_timesteps_are_whole_and_start_at_999() -> None:
    schedule = flow_truncated(50, 5)
    assert schedule[0].timestep == 999
    assert all(level.timestep == int(level.timestep) for level in schedule)


@pytest.mark.parametrize("num_tokens", [64, 4096, 32_760, 100_000, 10_000_000])
def test_dynamic_shift_holds_its_terminal_at_any_size(num_tokens: int) -> None:
    schedule = flow_dynamic(20, num_tokens, DynamicShift())
    assert schedule[0].sigma == 1
    assert schedule[-2].sigma == pytest.approx(0.1)


def test_dynamic_shift_is_extrapolated() -> None:
    assert DynamicShift().mu(1024) == pytest.approx(0.95)
    assert DynamicShift().mu(6144) == pytest.approx(2.783, abs=1e-3)


def test_linear_quadratic_ends_at_zero_with_growing_strides() -> None:
    sigmas = [level.sigma for level in linear_quadratic(64)]
    strides = [before - after for before, after in itertools.pairwise(sigmas)]
    assert sigmas[32] == pytest.approx(1 - 0.025)
    assert strides[:32] == pytest.approx([0.025 / 32] * 32)
    assert strides[32:] == sorted(strides[32:])
    assert [level.sigma for level in linear_quadratic(1)] == [1, 0]


def test_rising_timesteps_count_the_clean_share() -> None:
    assert all(
        level.timestep == pytest.approx(1000 * level.alpha) for level in linear_quadratic(6, rising_timesteps=True)[:-1]
    )


def test_listed_timesteps_are_taken_as_they_are() -> None:
    assert [level.timestep for level in listed([1000, 909, 725, 421, 0])] == pytest.approx([1000, 909, 725, 421, 0])
    assert len(listed([1000, 993, 987, 981, 975, 909, 725, 0.03])) == 9


@pytest.mark.parametrize("shift", [0, -1, float("nan"), float("inf"), 1e-320, 1e300])
@pytest.mark.parametrize("make", [flow, flow_shifted_twice, flow_truncated])
def test_a_shift_that_is_no_shift_is_refused(make, shift: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="shift"):
        make(4, shift)


@pytest.mark.parametrize("num_steps", [0, -3])
@pytest.mark.parametrize("make", [flow, flow_shifted_twice, flow_truncated, dynamic])
def test_less_than_one_step_is_refused(make, num_steps: int) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="steps"):
        make(num_steps, 3)


def test_levels_that_do_not_fall_are_refused() -> None:
    with pytest.raises(InputError, match="do not fall"):
        flow_truncated(2000, 1000)
    with pytest.raises(InputError, match="do not fall"):
        listed([1000, 500, 500])
    with pytest.raises(InputError, match="steps"):
        listed([])
